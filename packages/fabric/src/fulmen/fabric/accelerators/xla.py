"""TPUs, through torch_xla.

Asking what is there neither imports torch_xla where no TPU can be, nor starts its runtime: a process that has done so
cannot be forked any more.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.accelerators.parse_devices import parse_device_indices
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.optional_packages import is_installed, require
from fulmen.fabric.types import DeviceLike


def num_xla_devices() -> int:
    """How many XLA devices this machine has for this process; 0 without torch_xla.

    With PJRT_DEVICE=CPU these are as many virtual devices as CPU_NUM_DEVICES says, or one: for tests without a TPU.
    """
    if not is_installed("torch_xla"):
        return 0
    if has_only_virtual_devices():
        text = os.environ.get("CPU_NUM_DEVICES", "1")
        return int(text) if text.isdecimal() else 0
    tpu: Any = require("torch_xla._internal.tpu", purpose="XLAAccelerator", pip="torch_xla")
    # First the chips, which are found on the PCI bus: without any, the other call would ask a server of Google Cloud.
    return int(tpu.num_available_devices()) if tpu.num_available_chips() > 0 else 0


def has_only_virtual_devices() -> bool:
    """Are the XLA devices made of the CPU? torch_xla itself decides so, when it is imported, where it finds no TPU."""
    return os.environ.get("PJRT_DEVICE", "").upper() == "CPU"


class XLAAccelerator(Accelerator):
    """TPU, or another device that torch_xla drives.

    Raises:
        MissingPackageError: If torch_xla is not installed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require("torch_xla", purpose=type(self).__name__)
        super().__init__(*args, **kwargs)

    def setup_device(self, device: torch.device) -> None:
        """Check that `device` is an XLA device.

        Raises:
            ConfigurationError: If it is another device.
        """
        if device.type != "xla":
            raise ConfigurationError(
                f"XLAAccelerator was given the device {str(device)!r}. It runs on 'xla' devices only."
                " Pass torch.device('xla', index), or the accelerator of that device."
            )

    def teardown(self) -> None:
        """Nothing is held."""

    @staticmethod
    def parse_devices(devices: Any) -> int | list[int]:
        """How many TPU cores to use, or the list of the one that was named; see `parse_device_indices`.

        Raises:
            ConfigurationError: If several are named: only their number can be chosen.
        """
        indices = parse_device_indices(devices, range(num_xla_devices()), kind="TPU core")
        if isinstance(devices, int) or (isinstance(devices, str) and "," not in devices):
            return len(indices)
        if len(indices) > 1:
            raise ConfigurationError(
                f"devices={devices!r} names {len(indices)} TPU cores. Several cores are taken by their number, from the"
                f" first one on, and only a single one by its index. Pass devices={len(indices)}, or"
                f" devices=[{indices[0]}]."
            )
        return indices

    @staticmethod
    def get_parallel_devices(devices: int | list[int]) -> list[torch.device]:
        """One device per core."""
        indices = range(devices) if isinstance(devices, int) else devices
        return [torch.device("xla", index) for index in indices]

    @staticmethod
    def auto_device_count() -> int:
        """All cores of this machine."""
        return num_xla_devices()

    @staticmethod
    def is_available() -> bool:
        """Is torch_xla installed, and is there a device for it?"""
        return num_xla_devices() > 0

    @staticmethod
    def name() -> str:
        """Its registered name, "tpu"."""
        return "tpu"

    def get_device_stats(self, device: DeviceLike) -> dict[str, Any]:
        """Memory of the device, as torch_xla counts it."""
        xla_model: Any = require("torch_xla.core.xla_model", purpose="get_device_stats()", pip="torch_xla")
        return {f"xla_{name}": value for name, value in xla_model.get_memory_info(device).items()}
