"""The values of `precision=`, and what each builds."""

from __future__ import annotations

import torch

from fulmen.fabric.errors import ConfigurationError, MissingPackageError
from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.double import DoublePrecision
from fulmen.fabric.precision.half import HalfPrecision
from fulmen.fabric.precision.mixed import MixedPrecision
from fulmen.fabric.rank_zero import rank_zero_warn

# What may be written for each precision; the values are the full names.
PRECISIONS: dict[str, str] = {
    "64-true": "64-true",
    "32-true": "32-true",
    "16-true": "16-true",
    "16-mixed": "16-mixed",
    "bf16-true": "bf16-true",
    "bf16-mixed": "bf16-mixed",
    "transformer-engine": "transformer-engine",
    "transformer-engine-float16": "transformer-engine-float16",
    "64": "64-true",
    "32": "32-true",
    "16": "16-mixed",
    "bf16": "bf16-mixed",
}


def precision_name(precision: object, caller: str = "Fabric") -> str:
    """The full name ("16-mixed") of what a user wrote (16).

    Raises:
        ConfigurationError: If it is none of `PRECISIONS`, nor their number.
    """
    if precision is None:
        return "32-true"
    name = PRECISIONS.get(str(precision)) if isinstance(precision, str | int) else None
    if name is None:
        raise ConfigurationError(
            f"{caller}(precision={precision!r}) names no precision. Known are {', '.join(map(repr, PRECISIONS))},"
            " and the numbers 64, 32 and 16. Pass one of them."
        )
    return name


def make_precision(name: str, device_type: str, caller: str = "Fabric") -> Precision:
    """The precision of a full name ("16-mixed") on a kind of device ("cpu").

    Raises:
        MissingPackageError: For Transformer Engine where it is not installed.
    """
    match name:
        case "32-true":
            return Precision()
        case "64-true":
            return DoublePrecision()
        case "16-true" | "bf16-true":
            return HalfPrecision(name)
        case "16-mixed" if device_type == "cpu":
            rank_zero_warn(
                f"{caller}(precision='16-mixed') uses bfloat16, since CPUs compute in float16 slowly or not at all."
                " Pass precision='bf16-mixed' to say so."
            )
            return MixedPrecision("bf16-mixed", device_type)
        case "16-mixed" | "bf16-mixed":
            return MixedPrecision(name, device_type)
    if not is_installed("transformer_engine"):
        raise MissingPackageError(
            f"{caller}(precision={name!r}) needs the package 'transformer_engine'. It is not installed here. Install it"
            " with `python -m pip install \"transformer-engine[pytorch]\"`, or pass precision='bf16-mixed'."
        )
    from fulmen.fabric.precision.transformer_engine import TransformerEnginePrecision

    weights_dtype = torch.float16 if name == "transformer-engine-float16" else torch.bfloat16
    return TransformerEnginePrecision(weights_dtype=weights_dtype)
