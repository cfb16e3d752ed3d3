"""The CPU: always there, as many processes as asked for."""

from __future__ import annotations

from typing import Any

import torch

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.accelerators.parse_devices import parse_process_count
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.optional_packages import require
from fulmen.fabric.types import DeviceLike


class CPUAccelerator(Accelerator):
    """CPU."""

    def setup_device(self, device: torch.device) -> None:
        """Check that `device` is the CPU.

        Raises:
            ConfigurationError: If it is another device.
        """
        if device.type != "cpu":
            raise ConfigurationError(
                f"CPUAccelerator was given the device {str(device)!r}. It runs on 'cpu' only."
                " Pass torch.device('cpu'), or the accelerator of that device."
            )

    def teardown(self) -> None:
        """Nothing is held."""

    @staticmethod
    def parse_devices(devices: Any) -> int:
        """The number of processes; see `parse_process_count`."""
        return parse_process_count(devices)

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        """The CPU, once per process."""
        return [torch.device("cpu")] * parse_process_count(devices)

    @staticmethod
    def auto_device_count() -> int:
        """One: more processes on the same cores rarely help."""
        return 1

    @staticmethod
    def is_available() -> bool:
        """Always."""
        return True

    @staticmethod
    def name() -> str:
        """Its registered name, "cpu"."""
        return "cpu"

    def get_device_stats(self, device: DeviceLike) -> dict[str, float]:
        """See `get_cpu_stats`."""
        return get_cpu_stats()


def get_cpu_stats() -> dict[str, float]:
    """Memory, load since the last call, and swap of this machine, in percent.

    Raises:
        MissingPackageError: If psutil is not installed.
    """
    psutil: Any = require("psutil", purpose="get_cpu_stats()")
    return {
        "cpu_vm_percent": psutil.virtual_memory().percent,
        "cpu_percent": psutil.cpu_percent(),
        "cpu_swap_percent": psutil.swap_memory().percent,
    }
