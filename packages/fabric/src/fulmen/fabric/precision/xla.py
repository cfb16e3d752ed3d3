"""32-bit or 16-bit numbers on XLA devices."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch.nn import Module

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.precision.base import UniformPrecision

_DTYPES = {"32-true": torch.float32, "16-true": torch.float16, "bf16-true": torch.bfloat16}


class XLAPrecision(UniformPrecision):
    """Parameters, inputs and gradients have one type. With "32-true" nothing is converted.

    XLA computes float32 products on a TPU in bfloat16 unless it is told otherwise, so there is no mixed precision.

    Args:
        precision: "32-true", "16-true" or "bf16-true".

    Raises:
        ConfigurationError: For any other.
    """

    device_types = ("xla",)

    def __init__(self, precision: Literal["32-true", "16-true", "bf16-true"] = "32-true") -> None:
        if not isinstance(precision, str) or precision not in _DTYPES:
            raise ConfigurationError(
                f"XLAPrecision(precision={precision!r}) is not for XLA devices. A TPU computes products of 32-bit"
                " numbers in bfloat16 by itself, and has no 64-bit ones."
                f" Pass one of {', '.join(map(repr, _DTYPES))}."
            )
        super().__init__(_DTYPES[precision])
        self.precision = precision

    @property
    def _converts(self) -> bool:
        return self.precision != "32-true"

    @property
    def has_forward_context(self) -> bool:
        """Must forward run inside `forward_context()`?"""
        return self._converts

    @property
    def converts_input(self) -> bool:
        """Does `convert_input` do anything?"""
        return self._converts

    @property
    def is_plain(self) -> bool:
        """Are forward, backward and step what they are without any precision?"""
        return not self._converts

    def convert_module(self, module: Module) -> Module:
        """The module with its floating-point parameters and buffers in the type; as it is with "32-true"."""
        return super().convert_module(module) if self._converts else module

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Floating-point tensors created inside have the type."""
        return super().tensor_init_context() if self._converts else nullcontext()

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Modules created inside have parameters of the type."""
        return super().module_init_context() if self._converts else nullcontext()

    def forward_context(self) -> AbstractContextManager[Any]:
        """Tensors that forward creates have the type."""
        return super().forward_context() if self._converts else nullcontext()

    def convert_input(self, data: Any) -> Any:
        """Floating-point tensors in the type."""
        return super().convert_input(data) if self._converts else data

    def convert_output(self, data: Any) -> Any:
        """Floating-point tensors in the default type of torch."""
        return super().convert_output(data) if self._converts else data
