"""What was found, as a piece of the configuration that `lightning-cli fit --config` takes.

Plain data in, plain data out: knows no parser, no file, no trainer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

_CLASS, _ARGUMENTS = "class_path", "init_args"


def snippet(config: Mapping[str, Any], sections: Sequence[str], name: str, value: Any) -> dict[str, Any]:
    """The part of `config` that sets `name` to `value`; empty if it has no such argument.

    Args:
        config: A whole configuration, as `fit --print_config` shows it.
        sections: Where to look: "model", "data", "optimizer". All that have the argument are set.
        name: Of the argument, perhaps nested: "lr", "optimizer.lr". A leading "hparams." means the same.
        value: What was found.

    >>> snippet({"model": {"class_path": "my.Net", "init_args": {"lr": 0.1, "width": 3}}}, ["model"], "lr", 0.02)
    {'model': {'class_path': 'my.Net', 'init_args': {'lr': 0.02}}}
    """
    path = name.removeprefix("hparams.").split(".")
    found = {}
    for section in sections:
        with suppress(KeyError):
            found[section] = _only(config.get(section), path, value)
    return found


def _only(described: Any, path: Sequence[str], value: Any) -> Any:
    """`described` with nothing in it but what `path` leads to, which is `value`; KeyError if it leads nowhere."""
    if not path:
        return value
    if not isinstance(described, Mapping):
        raise KeyError(path[0])
    if _CLASS in described:
        return {_CLASS: described[_CLASS], _ARGUMENTS: _only(described.get(_ARGUMENTS), path, value)}
    return {path[0]: _only(described[path[0]], path[1:], value)}


def options_of(found: Mapping[str, Any]) -> list[str]:
    """The names of the options that a snippet sets, as the command line writes them.

    >>> options_of({"model": {"class_path": "my.Net", "init_args": {"lr": 0.02}}})
    ['model.lr']
    """
    options = []
    for key, value in found.items():
        inner = value.get(_ARGUMENTS, {}) if isinstance(value, Mapping) and _CLASS in value else value
        options += [f"{key}.{rest}" for rest in options_of(inner)] if isinstance(inner, Mapping) else [key]
    return options
