"""What a flag means, however it is written: two that mean the same are equal."""

from __future__ import annotations

from typing import Any

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.accelerators.catalog import best_available, best_gpu
from fulmen.fabric.precision.catalog import PRECISIONS
from fulmen.fabric.strategies.catalog import STRATEGY_REGISTRY


def flag_meaning(name: str, value: Any) -> Any:
    """The meaning of a flag of Fabric on this machine; the value itself if it has no other way to be written.

    | flag | mean the same |
    | --- | --- |
    | precision | "16", 16, "16-mixed" |
    | devices | 2, "2", [0, 1], "0,1" |
    | devices | -1, "-1", "auto" |
    | accelerator | "gpu" and the kind that is here; a name and an object of its class |
    | strategy | names that build the same with the same arguments |
    """
    match name:
        case "precision":
            return PRECISIONS.get(str(value), value)
        case "devices":
            return _devices(value)
        case "accelerator":
            return _accelerator(value)
        case "strategy" if isinstance(value, str) and value in STRATEGY_REGISTRY:
            entry = STRATEGY_REGISTRY[value]
            return entry.value, dict(entry.preset)
    return value


def _devices(value: Any) -> Any:
    written = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    try:
        indices = tuple(int(part) for part in written.split(",") if part.strip())
    except ValueError:
        return value
    if isinstance(value, list | tuple) or "," in written:
        return indices
    if len(indices) != 1:
        return value
    return "auto" if indices == (-1,) else tuple(range(indices[0]))


def _accelerator(value: Any) -> Any:
    if isinstance(value, Accelerator):
        return value.name()
    if value == "auto":
        return best_available()
    return (best_gpu() or value) if value == "gpu" else value
