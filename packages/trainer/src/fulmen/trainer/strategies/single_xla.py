"""Bound: one process, one XLA device."""

import torch

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.arguments import check_flag
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.strategies.single_xla import SingleDeviceXLAStrategy as FabricSingleDeviceXLAStrategy
from fulmen.trainer.strategies.on_xla import OnXLA
from fulmen.trainer.strategies.single_device import SingleDeviceStrategy


class SingleDeviceXLAStrategy(OnXLA, SingleDeviceStrategy):
    """The module runs in this process, on one XLA device.

    Args:
        device: The device, or its index.
        accelerator: See `Strategy`.
        checkpoint_io: A `XLACheckpointIO`, or one that wraps it.
        precision_plugin: A `XLAPrecision`.
        debug: Let torch_xla report where graphs end and why they are compiled.

    Raises:
        MissingPackageError: If torch_xla is not installed.
    """

    strategy_name = "single_xla"

    def __init__(
        self,
        device: torch.device | str | int,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        debug: bool = False,
    ) -> None:
        check_flag(self, "debug", debug)
        self.debug = debug
        self._adopt(
            FabricSingleDeviceXLAStrategy(
                device, accelerator=accelerator, checkpoint_io=checkpoint_io, precision=precision_plugin
            )
        )
