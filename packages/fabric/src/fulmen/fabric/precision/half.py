"""16-bit parameters and computation."""

from __future__ import annotations

from typing import Literal

import torch

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.precision.base import UniformPrecision

_DTYPES = {"16-true": torch.float16, "bf16-true": torch.bfloat16}


class HalfPrecision(UniformPrecision):
    """Parameters, inputs and gradients are float16 or bfloat16: half the memory, and no loss scaling.

    Args:
        precision: "16-true" or "bf16-true".
    """

    def __init__(self, precision: Literal["bf16-true", "16-true"] = "16-true") -> None:
        if not isinstance(precision, str) or precision not in _DTYPES:
            raise ConfigurationError(
                f"HalfPrecision(precision={precision!r}) is unknown. It holds parameters in one 16-bit type."
                " Pass '16-true' or 'bf16-true'."
            )
        super().__init__(_DTYPES[precision])
        self.precision = precision
