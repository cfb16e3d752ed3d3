"""Precision that DeepSpeed itself applies: its engine casts the module, keeps master weights and scales the loss."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.precision.base import DefaultDtype, Precision
from fulmen.fabric.trees import convert_tensors

_DTYPES = {
    "32-true": torch.float32,
    "16-true": torch.float16,
    "16-mixed": torch.float16,
    "bf16-true": torch.bfloat16,
    "bf16-mixed": torch.bfloat16,
}


class DeepSpeedPrecision(Precision):
    """The precision that `DeepSpeedStrategy` works with.

    | name | parameters and forward | master weights, optimizer | loss |
    | --- | --- | --- | --- |
    | "32-true" | float32 | float32 | as it is |
    | "16-true", "16-mixed" | float16 | float32 | scaled by the engine |
    | "bf16-true", "bf16-mixed" | bfloat16 | float32 | as it is |

    Args:
        precision: One of these names. "true" ones make modules in 16 bits from the start, which takes less memory.
    """

    def __init__(self, precision: Literal["32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"]) -> None:
        if not isinstance(precision, str) or precision not in _DTYPES:
            raise ConfigurationError(
                f"DeepSpeedPrecision(precision={precision!r}) is unknown. DeepSpeed holds parameters in 32 or 16 bits."
                f" Pass one of {', '.join(map(repr, _DTYPES))}."
            )
        self.precision = precision
        self._dtype = _DTYPES[precision]
        self._makes_in_dtype = precision.endswith("-true") and precision != "32-true"

    @property
    def dtype(self) -> torch.dtype:
        """The type of parameters in the engine."""
        return self._dtype

    @property
    def converts_input(self) -> bool:
        """Must batches be converted?"""
        return self._dtype is not torch.float32

    @property
    def leaves_forward(self) -> bool:
        """Is forward what it is without any precision?"""
        return not self.converts_input

    def convert_module(self, module: Module) -> Module:
        """The module; its parameters in the type of a "true" precision, else the engine casts them."""
        return module.to(self._dtype) if self._makes_in_dtype else module

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Tensors created inside have the type of a "true" precision."""
        return DefaultDtype(self._dtype) if self._makes_in_dtype else nullcontext()

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Modules created inside have parameters of the type of a "true" precision."""
        return self.tensor_init_context()

    def convert_input(self, data: Any) -> Any:
        """Floating-point tensors in the type of the parameters."""
        return convert_tensors(data, self._dtype) if self.converts_input else data

    def convert_output(self, data: Any) -> Any:
        """Floating-point tensors in the default type of torch."""
        return convert_tensors(data, torch.get_default_dtype()) if self.converts_input else data

    def backward(self, tensor: Tensor, model: Module | None, *args: Any, **kwargs: Any) -> None:
        """Backward by the engine `model`, which scales the loss and reduces gradients."""
        run: Any = model
        run.backward(tensor, *args, **kwargs)
