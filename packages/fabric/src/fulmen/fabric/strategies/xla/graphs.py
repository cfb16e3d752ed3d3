"""What all strategies for XLA devices share: where graphs end, and which parts go with them.

Operations on an XLA device are collected, and run when the graph of them is cut. It is compiled when a graph of this
form is met for the first time, which takes seconds or minutes. So a graph is cut once per optimizer step and once per
batch, always at the same place, and nothing in between reads a value.
"""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar

import torch
from torch.nn import Module

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.checkpoint_io.wrapper import WrappingCheckpointIO
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.optional_packages import require
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.xla import XLAPrecision
from fulmen.fabric.strategies.base import Filter, Strategy
from fulmen.fabric.types import Optimizable, PathLike

_PLAIN = XLAPrecision("32-true")


class XLAGraphs(Strategy, ABC):
    """Cuts the graph after each step and before each batch.

    Args:
        accelerator: The kind of hardware.
        checkpoint_io: A `XLACheckpointIO`, or one that wraps it.
        precision: A `XLAPrecision`.

    Raises:
        MissingPackageError: If torch_xla is not installed.
        ArgumentTypeError: If a part is of another kind.
    """

    device_type: ClassVar[str | None] = "xla"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
        **kwargs: Any,
    ) -> None:
        require("torch_xla", purpose=f"{type(self).__name__}()")
        super().__init__(accelerator=accelerator, checkpoint_io=checkpoint_io, precision=precision, **kwargs)
        self.checkpoint_io, self.precision = checkpoint_io, precision  # checked now

    @property
    def precision(self) -> XLAPrecision:
        """How numbers are held and computed."""
        return _PLAIN if self._precision is None else self._precision  # type: ignore[return-value]  # checked when set

    @precision.setter
    def precision(self, precision: Precision | None) -> None:
        if precision is not None and not isinstance(precision, XLAPrecision):
            name = getattr(precision, "precision", "bf16-true")
            name = name if name in ("32-true", "16-true", "bf16-true") else "bf16-true"
            raise ArgumentTypeError(
                f"{type(self).__name__} got {type(precision).__name__} as its precision. What XLA compiles is not cast"
                f" on the way. Pass XLAPrecision({name!r}), or precision={name!r} to Fabric or Trainer."
            )
        self._precision = precision

    def adapt_precision(self, precision: Precision, device_type: str) -> Precision:
        """A `XLAPrecision` of the same name.

        Raises:
            ConfigurationError: There is none.
        """
        return XLAPrecision(precision.precision)  # type: ignore[arg-type]  # checked there

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """What writes and reads checkpoints."""
        if self._checkpoint_io is None:
            from fulmen.fabric.checkpoint_io.xla import XLACheckpointIO

            self._checkpoint_io = XLACheckpointIO()
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO | None) -> None:
        if io is not None:
            from fulmen.fabric.checkpoint_io.xla import XLACheckpointIO

            inner = io
            while isinstance(inner, WrappingCheckpointIO):
                inner = inner.checkpoint_io
            if not isinstance(inner, XLACheckpointIO):
                raise ArgumentTypeError(
                    f"{type(self).__name__} got {type(io).__name__} to write its checkpoints. Tensors of an XLA device"
                    " have to be brought to the CPU first, together, and this one does not. Pass XLACheckpointIO(), a"
                    " subclass of it, or a checkpoint IO that wraps one."
                )
        self._checkpoint_io = io

    def module_to_device(self, module: Module) -> None:
        """Move the module to the device; its parameters stay the objects that they are."""
        move_in_place(module, self.root_device)

    def end_graph(self) -> None:
        """Run what was collected, and begin a new graph. Does not wait for the device."""
        _xla().sync()

    def batch_to_device(self, batch: Any, device: torch.device | None = None) -> Any:
        """The batch on the device. What was collected for the one before it runs."""
        self.end_graph()
        return super().batch_to_device(batch, device)

    def optimizer_step(self, optimizer: Optimizable, **kwargs: Any) -> Any:
        """One step; forward, backward and step run as one graph. `kwargs` are those of `optimizer.step`."""
        output = super().optimizer_step(optimizer, **kwargs)
        self.end_graph()
        return output

    def save_checkpoint(
        self,
        path: PathLike,
        state: dict[str, Any],
        storage_options: Any | None = None,
        filter: Filter | None = None,
    ) -> None:
        """Write one checkpoint; see `Strategy.save_checkpoint`."""
        # Everywhere: rank 0 alone would wait for the others in what is pending.
        self.end_graph()
        super().save_checkpoint(path, state, storage_options, filter)


def move_in_place(module: Module, device: torch.device) -> None:
    """Move a module to or from an XLA device, where `Module.to` would put other parameters in the place of its own.

    Optimizers would go on with those that nobody uses any more, and parameters that are one would be two.

    Raises:
        ConfigurationError: If torch cannot exchange what is in a parameter, since there is a weak reference to it.
    """
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.to(device)
    except RuntimeError as error:
        if "swap" not in str(error):
            raise
        raise ConfigurationError(
            f"{type(module).__name__} could not be moved to {str(device)!r}: {error}. Parameters that are moved to or"
            " from XLA devices are exchanged, and must not be known by weak references. Look for who holds these, such"
            " as torch.compile; move the module before that, or build it on the device with `fabric.init_module()`."
        ) from error
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def _xla() -> Any:
    return require("torch_xla", purpose="A strategy for XLA devices")
