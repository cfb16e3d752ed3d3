"""What a user hands to `self.log`, as one scalar; and scalars to Python numbers, in one transfer."""

import sys
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fulmen.fabric.rank_zero import warn_once
from fulmen.trainer.errors import ConfigurationError, MisconfigurationException
from fulmen.trainer.metrics.accumulator import Scalar


def to_floats(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same mapping with every tensor of one element as a Python number; anything else stays as it is.

    All tensors of a device come in one transfer.
    """
    on_device: dict[torch.device, list[str]] = {}
    floats = dict(values)
    for name, value in values.items():
        if isinstance(value, Tensor) and value.numel() == 1:
            on_device.setdefault(value.device, []).append(name)
    for names in on_device.values():
        if len(names) == 1:
            floats[names[0]] = float(values[names[0]].detach())
            continue
        # Exact integers of 64 bits and booleans do not come here: metrics are floats by then.
        stacked = torch.stack([values[name].detach().reshape(()) for name in names])
        floats.update(zip(names, stacked.tolist(), strict=True))
    return floats


def is_metric(value: object) -> bool:
    """Is it a torchmetrics.Metric? Answered without importing torchmetrics: who made one has imported it."""
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.Metric)


def to_scalar(name: str, value: object) -> Scalar:
    """A 0-dim float32 or float64 tensor on its device, with its graph, or a Python number.

    Raises:
        ConfigurationError: The value is no number, or not exactly one.
    """
    if isinstance(value, Tensor):
        return _tensor_to_scalar(name, value)
    if isinstance(value, Real):  # also numpy's scalars
        return float(value)
    raise ConfigurationError(_not_a_number(name, value))


def _tensor_to_scalar(name: str, value: Tensor) -> Tensor:
    if value.numel() != 1 or value.is_complex():
        what = "a complex value" if value.is_complex() else f"a tensor of shape {tuple(value.shape)}"
        raise ConfigurationError(
            f"self.log({name!r}, ...) was given {what}."
            f" A metric is one real number per call, since it is averaged, compared and plotted."
            f" Reduce it first, such as self.log({name!r}, value.mean())."
        )
    if not value.is_floating_point():
        warn_once(
            f"self.log({name!r}, ...) was given a tensor of {value.dtype}. It is kept as float32, so that it can be"
            f" averaged. Pass value.float() to say that this is meant."
        )
    if value.dtype is not torch.float64:
        value = value.float()
    return value.reshape(()) if value.ndim else value


def metric_result(name: str, value: object) -> Tensor | None:
    """What a torchmetrics.Metric computed, as a scalar of its own; None if there is nothing yet.

    Raises:
        ConfigurationError: It computes something else than one number.
    """
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ConfigurationError(
            f"The metric object logged as {name!r} computes {what}."
            f" A metric is one real number, since it is compared and plotted."
            f" Log metric.compute()[...] or a mean of it in on_validation_epoch_end instead."
        )
    value = value.detach()
    return value.to(torch.float64 if value.dtype is torch.float64 else torch.float32, copy=True).reshape(())


def check_is_part(name: str, metric: object, module: torch.nn.Module | None) -> None:
    """Make sure that a metric object is a part of the module, where there is one.

    Raises:
        MisconfigurationException: It is not.
    """
    if module is not None and all(part is not metric for part in module.modules()):
        raise MisconfigurationException(
            f"self.log({name!r}, {type(metric).__name__}(...)) was given a metric object that is no part of the module."
            f" It would stay on its device, and be missing from checkpoints, when the module moves."
            f" Assign it in __init__, such as self.{name.replace('/', '_')} = ..., or put it into a ModuleDict."
        )


def two_kinds(name: str, hook: str, value: object) -> str:
    """The message for one name that stands for two metric objects, or for one and for numbers."""
    return (
        f"self.log({name!r}, ...) was called in `{hook}` with a {type(value).__name__} after another kind of value or"
        f" another metric object. One name in one hook is one metric: the values of two would be mixed up."
        f" Give each its own name."
    )


def _not_a_number(name: str, value: Any) -> str:
    if isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "values")):  # or a MetricCollection
        nested = any(isinstance(inner, Mapping) for inner in value.values())
        what = "a nested dict" if nested else f"a {type(value).__name__}"
        return (
            f"self.log({name!r}, ...) was given {what} with the keys {list(value.keys())}."
            f" One name stands for one number."
            f" Call self.log_dict(...), with a flat dict of names and numbers or a MetricCollection."
        )
    return (
        f"self.log({name!r}, {_short(value)}) was given a {type(value).__name__}."
        f" A metric is one number: a float, an int, a tensor of one element or a torchmetrics.Metric."
        f" Convert it, such as self.log({name!r}, float(value)); text belongs to self.logger."
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
