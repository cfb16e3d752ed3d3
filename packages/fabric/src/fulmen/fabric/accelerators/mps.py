"""Apple GPUs: at most one."""

from __future__ import annotations

from typing import Any

import torch

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.accelerators.parse_devices import parse_device_indices
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.types import DeviceLike


class MPSAccelerator(Accelerator):
    """Apple GPU, through Metal Performance Shaders."""

    def setup_device(self, device: torch.device) -> None:
        """Check that `device` is the Apple GPU.

        Raises:
            ConfigurationError: If it is another device.
        """
        if device.type != "mps":
            raise ConfigurationError(
                f"MPSAccelerator was given the device {str(device)!r}. It runs on 'mps' only."
                " Pass torch.device('mps', 0), or the accelerator of that device."
            )

    def teardown(self) -> None:
        """Give cached memory back to the system."""
        if self.is_available():
            torch.mps.empty_cache()

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        """[0], the only index there is; see `parse_device_indices`."""
        return parse_device_indices(devices, range(MPSAccelerator.auto_device_count()), kind="Apple GPU")

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        """One device per index."""
        return [torch.device("mps", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        """One, or none."""
        return int(MPSAccelerator.is_available())

    @staticmethod
    def is_available() -> bool:
        """Is this a Mac with such a GPU, and a torch built for it?"""
        return torch.backends.mps.is_available()

    @staticmethod
    def name() -> str:
        """Its registered name, "mps"."""
        return "mps"

    def get_device_stats(self, device: DeviceLike) -> dict[str, Any]:
        """Memory held by tensors and by the driver, in bytes."""
        return {
            "mps_current_allocated_bytes": torch.mps.current_allocated_memory(),
            "mps_driver_allocated_bytes": torch.mps.driver_allocated_memory(),
        }
