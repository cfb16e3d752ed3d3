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
        precision: "16-true" or "bf16-true". On the CPU, "16-true" is for evaluation only.
    """

    def __init__(self, precision: Literal["bf16-true", "16-true"] = "16-true") -> None:
        if not isinstance(precision, str) or precision not in _DTYPES:
            raise ConfigurationError(
                f"HalfPrecision(precision={precision!r}) is unknown. It holds parameters in one 16-bit type."
                " Pass '16-true' or 'bf16-true'."
            )
        super().__init__(_DTYPES[precision])
        self.precision = precision

    def check_training(self, device_type: str, call: str) -> None:
        """Refuse float16 on the CPU.

        Raises:
            ConfigurationError: If that is what it is.
        """
        if self.dtype is torch.float16 and device_type == "cpu":
            raise ConfigurationError(
                f"{call} cannot train with precision='16-true' on the CPU. Its numbers are too coarse there: the eps of"
                " Adam is 0 in float16, so that weights become NaN in the first steps, and convolutions take several"
                " times as long as in 32 bit. Pass precision='bf16-true' or 'bf16-mixed'; or strategy='deepspeed',"
                " which keeps weights in 32 bit beside those in float16. Evaluation in '16-true' goes on working."
            )
