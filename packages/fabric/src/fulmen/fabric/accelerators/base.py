"""What one kind of hardware must answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from fulmen.fabric.registry import Registry
from fulmen.fabric.types import DeviceLike


class Accelerator(ABC):
    """One kind of hardware. Subclass it and register the subclass to add a kind."""

    @abstractmethod
    def setup_device(self, device: torch.device) -> None:
        """Make `device` the one this process works on; called in each process before the model is placed."""

    @abstractmethod
    def teardown(self) -> None:
        """Give back what the run held on the device."""

    @staticmethod
    @abstractmethod
    def parse_devices(devices: Any) -> Any:
        """Check `devices=` as the user wrote it, and bring it into the form that `get_parallel_devices` takes."""

    @staticmethod
    @abstractmethod
    def get_parallel_devices(devices: Any) -> Any:
        """The `torch.device` of each process of this machine, from what `parse_devices` gave."""

    @staticmethod
    @abstractmethod
    def auto_device_count() -> int:
        """How many devices `devices="auto"` takes."""

    @staticmethod
    @abstractmethod
    def is_available() -> bool:
        """Is there such hardware here, and can this torch use it? Must not initialise it: processes may be forked."""

    @staticmethod
    @abstractmethod
    def name() -> str:
        """The name under which it is registered."""

    @classmethod
    def register_accelerators(cls, accelerator_registry: Registry[type[Accelerator]]) -> None:
        """Register this class under its name."""
        accelerator_registry.register(cls.name(), cls, (cls.__doc__ or cls.__name__).splitlines()[0])

    def get_device_stats(self, device: DeviceLike) -> dict[str, Any]:
        """Memory and load of `device`, as numbers by name."""
        return {}
