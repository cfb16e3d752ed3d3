"""Precision for sharded parameters: what FSDP casts when it gathers them and when it reduces gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from fulmen.fabric.arguments import check_part
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.double import DoublePrecision
from fulmen.fabric.precision.half import HalfPrecision
from fulmen.fabric.precision.mixed import MixedPrecision, check_device_type
from fulmen.fabric.types import Optimizable

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecision as TorchMixedPrecision

_REDUCED_IN = {
    "16-mixed": torch.float16,
    "16-true": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "64-true": torch.float64,
}
NAMES = ("32-true", *_REDUCED_IN)


class FSDPPrecision(Precision):
    """The precision that `FSDPStrategy` works with.

    | name | parameters | computed in | gradients reduced in |
    | --- | --- | --- | --- |
    | "32-true" | as they are | their type | their type |
    | "bf16-mixed", "16-mixed" | as they are | autocast, 16 bits where that is safe | 16 bits |
    | "bf16-true", "16-true", "64-true" | that type | that type | that type |

    Args:
        precision: One of these names.
        scaler: Scales the loss so that float16 gradients do not vanish. Only for "16-mixed", which makes its own.
        device: Type of the device, such as "cuda" or "cpu"; by default that of this machine's accelerator.
    """

    def __init__(
        self,
        precision: Literal["32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"],
        scaler: GradScaler | None = None,
        device: str | None = None,
    ) -> None:
        if precision not in NAMES:
            raise ConfigurationError(
                f"FSDPPrecision(precision={precision!r}) is unknown. It holds or computes sharded parameters in one of"
                f" few types. Pass one of {', '.join(map(repr, NAMES))}."
            )
        if scaler is not None and precision != "16-mixed":
            raise ConfigurationError(
                f"FSDPPrecision(precision={precision!r}, scaler={type(scaler).__name__}(...)) scales a loss that needs"
                " no scaling. Only float16 gradients vanish. Leave the scaler out, or pass '16-mixed'."
            )
        check_part(self, "scaler", scaler, method="unscale_", kind="torch.amp.GradScaler")
        if device is not None:
            check_device_type(self, device)
        self.precision = precision
        self._inner: Precision
        match precision:
            case "16-mixed" | "bf16-mixed":
                self._inner = MixedPrecision(precision, device or _device_here(), scaler)
            case "16-true" | "bf16-true":
                self._inner = HalfPrecision(precision)
            case "64-true":
                self._inner = DoublePrecision()
            case _:
                self._inner = Precision()

    @property
    def scaler(self) -> GradScaler | None:
        """What scales the loss; None except for "16-mixed"."""
        return self._inner.scaler if isinstance(self._inner, MixedPrecision) else None

    @property
    def mixed_precision_config(self) -> TorchMixedPrecision:
        """The types in which FSDP gathers parameters, reduces gradients and holds buffers; None is their own."""
        from torch.distributed.fsdp import MixedPrecision as TorchMixedPrecision

        reduced_in = _REDUCED_IN.get(self.precision)
        is_true = self.precision in ("16-true", "bf16-true", "64-true")
        return TorchMixedPrecision(
            param_dtype=reduced_in if is_true else None,
            reduce_dtype=reduced_in,
            buffer_dtype=reduced_in if is_true else None,
        )

    @property
    def has_forward_context(self) -> bool:
        """Must forward run inside `forward_context()`?"""
        return self._inner.has_forward_context

    @property
    def converts_input(self) -> bool:
        """Does `convert_input` do anything?"""
        return self._inner.converts_input

    @property
    def scales_loss(self) -> bool:
        """True for "16-mixed"."""
        return self._inner.scales_loss

    @property
    def is_plain(self) -> bool:
        """True for "32-true"."""
        return self._inner.is_plain

    def check_training(self, device_type: str, call: str) -> None:
        """Refuse what a precision without splitting refuses."""
        self._inner.check_training(device_type, call)

    def convert_module(self, module: Module) -> Module:
        """The module, its parameters in the type of a "true" precision."""
        return self._inner.convert_module(module)

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Tensors created inside have the right type."""
        return self._inner.tensor_init_context()

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Modules created inside have parameters of the right type."""
        return self._inner.module_init_context()

    def forward_context(self) -> AbstractContextManager[Any]:
        """What forward and loss run in."""
        return self._inner.forward_context()

    def convert_input(self, data: Any) -> Any:
        """A batch as the module wants it."""
        return self._inner.convert_input(data)

    def convert_output(self, data: Any) -> Any:
        """What the module returned, as users want it."""
        return self._inner.convert_output(data)

    def backward(self, tensor: Tensor, model: Module | None, *args: Any, **kwargs: Any) -> None:
        """Backward of the loss, scaled where there is a scaler."""
        self._inner.backward(tensor, model, *args, **kwargs)

    def optimizer_step(self, optimizer: Optimizable, **kwargs: Any) -> Any:
        """One step; with a scaler, none if a gradient is not finite on some process."""
        return self._inner.optimizer_step(optimizer, **kwargs)

    def main_params(self, optimizer: Optimizer) -> Iterator[Parameter]:
        """The parameters that the optimizer steps, whose gradients are clipped."""
        return self._inner.main_params(optimizer)

    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Bring gradients to their true size; does nothing the second time before a step."""
        self._inner.unscale_gradients(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The state of the scaler, or nothing."""
        return self._inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back the state of the scaler."""
        self._inner.load_state_dict(state_dict)


def _device_here() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type
