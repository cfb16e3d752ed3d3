"""One process, one XLA device."""

from __future__ import annotations

from typing import Any

import torch

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.optional_packages import require
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy
from fulmen.fabric.strategies.xla.graphs import XLAGraphs
from fulmen.fabric.types import DeviceLike


class SingleDeviceXLAStrategy(XLAGraphs, SingleDeviceStrategy):
    """Everything runs on one XLA device, such as a TPU core; nothing is communicated.

    Args:
        device: The device, or its index.
        accelerator: The kind of hardware.
        checkpoint_io: A `XLACheckpointIO`, or one that wraps it.
        precision: A `XLAPrecision`.

    Raises:
        MissingPackageError: If torch_xla is not installed.
    """

    def __init__(
        self,
        device: DeviceLike | int,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(
            accelerator=accelerator,
            checkpoint_io=checkpoint_io,
            precision=precision,
            device=torch.device("xla", device) if isinstance(device, int) else device,
        )

    def setup_environment(self) -> None:
        """Take the device: what is collected for it is cut, from now on."""
        super().setup_environment()
        xla: Any = require("torch_xla", purpose=type(self).__name__)
        xla.device(self.root_device.index or 0)

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[type[Strategy]]) -> None:
        """Register "single_xla" and "single_tpu"."""
        for name in ("single_xla", "single_tpu"):
            strategy_registry.register(name, cls, description="One process, one XLA device.")
