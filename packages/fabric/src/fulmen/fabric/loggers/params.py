"""Nested hyperparameters to flat, printable ones; prefixes for metrics."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor

_PRIMITIVES = (bool, int, float, str)


def params_dict(params: Mapping[str, Any] | Namespace | None) -> dict[str, Any]:
    """Hyperparameters as a dict: of a dict, a namespace of argparse, or None."""
    if params is None:
        return {}
    return dict(vars(params)) if isinstance(params, Namespace) else dict(params)


def flatten_params(params: Mapping[Any, Any], delimiter: str = "/", parent: str = "") -> dict[str, Any]:
    """Nested dicts, namespaces and dataclasses to one level; names are joined by `delimiter`.

    >>> flatten_params({"lr": 0.1, "model": {"width": 3, 5: "five"}})
    {'lr': 0.1, 'model/width': 3, 'model/5': 'five'}
    """
    flat: dict[str, Any] = {}
    for key, value in params.items():
        name = f"{parent}{delimiter}{key}" if parent else str(key)
        nested = _as_mapping(value)
        if nested is None:
            flat[name] = value
        else:
            flat |= flatten_params(nested, delimiter, name)
    return flat


def _as_mapping(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Namespace):
        return vars(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value if isinstance(value, MutableMapping) else None


def printable_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Values that are no number, text or tensor become text; numpy's numbers become Python's.

    >>> printable_params({"lr": 0.1, "betas": (0.9, 0.99), "name": None})
    {'lr': 0.1, 'betas': '(0.9, 0.99)', 'name': 'None'}
    """
    return {name: _printable(value) for name, value in params.items()}


def _printable(value: Any) -> Any:
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    return value if isinstance(value, (*_PRIMITIVES, Tensor)) else str(value)


def add_prefix(metrics: Mapping[str, Any], prefix: str, separator: str) -> dict[str, Any]:
    """`metrics` with "{prefix}{separator}" before each name; without a prefix, as they are.

    >>> add_prefix({"loss": 1.0}, "train", "-")
    {'train-loss': 1.0}
    """
    return {f"{prefix}{separator}{name}": value for name, value in metrics.items()} if prefix else dict(metrics)


def as_number(value: Any) -> Any:
    """A tensor or array of one element as the number in it; others as they are."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value
    return value.item() if getattr(value, "ndim", None) == 0 else value
