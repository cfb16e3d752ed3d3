"""One process, one device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy, TBroadcast
from fulmen.fabric.types import DeviceLike


class SingleDeviceStrategy(Strategy):
    """Everything runs on one device; nothing is communicated.

    Args:
        device: The device.
        accelerator: The kind of hardware.
        checkpoint_io: Writes and reads checkpoints.
        precision: How numbers are held and computed.
    """

    def __init__(
        self,
        device: DeviceLike = "cpu",
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(accelerator=accelerator, checkpoint_io=checkpoint_io, precision=precision)
        try:
            if isinstance(device, int) and not torch.accelerator.is_available():
                raise RuntimeError("a number is that of an accelerator, and there is none.")  # builds for GPUs take it
            self._root_device = torch.device(device)
        except (TypeError, RuntimeError) as error:
            raise ConfigurationError(
                f"{type(self).__name__}(device={device!r}) names no device of this machine. torch says: {error}"
                " Pass a torch.device, or its name, such as 'cpu' or 'cuda:0'."
            ) from error

    @property
    def root_device(self) -> torch.device:
        """The device."""
        return self._root_device

    @property
    def is_global_zero(self) -> bool:
        """True."""
        return True

    def module_to_device(self, module: Module) -> None:
        """Move the module to the device."""
        module.to(self._root_device)

    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        """The tensor itself."""
        return tensor

    def all_reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        """The tensor itself."""
        return tensor

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Nobody to wait for."""

    def broadcast(self, obj: TBroadcast, src: int = 0) -> TBroadcast:
        """The object itself."""
        return obj

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[type[Strategy]]) -> None:
        """Register "single_device"."""
        strategy_registry.register("single_device", cls, description="One process, one device.")
