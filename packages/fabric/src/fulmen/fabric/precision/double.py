"""64-bit parameters and computation."""

from __future__ import annotations

import torch

from fulmen.fabric.precision.base import UniformPrecision


class DoublePrecision(UniformPrecision):
    """Parameters, inputs and results are float64."""

    precision = "64-true"

    def __init__(self) -> None:
        super().__init__(torch.float64)
