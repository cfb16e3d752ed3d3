"""Bound: one process, one device."""

import torch

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy as FabricSingleDeviceStrategy
from fulmen.trainer.strategies.base import Strategy


class SingleDeviceStrategy(Strategy):
    """The module runs in this process, on one device.

    Args:
        device: "cpu", "cuda:0", a `torch.device`, or the index of a GPU.
        accelerator, checkpoint_io, precision_plugin: See `Strategy`.
    """

    strategy_name = "single_device"

    def __init__(
        self,
        device: torch.device | str | int = "cpu",
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        self._adopt(
            FabricSingleDeviceStrategy(
                device, accelerator=accelerator, checkpoint_io=checkpoint_io, precision=precision_plugin
            )
        )
