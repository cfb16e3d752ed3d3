"""A nested state as named entries, under the names that `torch.distributed.checkpoint` gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from fulmen.fabric.errors import ConfigurationError

Step = str | int


@dataclass
class Entry:
    """One value in a nested state.

    Args:
        name: Its keys, joined by dots.
        container: The dictionary or list that holds it.
        key: Where it stands in there.
        path: Its keys; an index into a list is an `int`, a key of a dictionary always text.
        real_path: The same with the keys as they are; an index into a list is `[index]`.
    """

    name: str
    container: Any
    key: Any
    path: tuple[Step, ...]
    real_path: tuple[Any, ...]

    @property
    def value(self) -> Any:
        """What stands there now."""
        return self.container[self.key]

    @value.setter
    def value(self, value: Any) -> None:
        self.container[self.key] = value

    @property
    def has_plain_path(self) -> bool:
        """Is every key of a dictionary text, so that `path` tells the place?"""
        return all(isinstance(step, (str, list)) for step in self.real_path)


def flatten(state: Mapping[str, Any]) -> dict[str, Entry]:
    """The entries of `state` by name. Dictionaries are opened, and lists that hold a tensor or a dictionary.

    Raises:
        ConfigurationError: If two entries have one name, or a key is neither text nor a number.
    """
    entries: dict[str, Entry] = {}
    for entry in _walk(state, (), ()):
        if entry.name in entries:
            raise ConfigurationError(
                f"Two entries of the state are both named {entry.name!r}. In a sharded checkpoint an entry is named by"
                " its keys, joined by dots. Rename one of the keys."
            )
        entries[entry.name] = entry
    return entries


def _walk(container: Any, path: tuple[Step, ...], real_path: tuple[Any, ...]) -> Iterator[Entry]:
    is_mapping = isinstance(container, Mapping)
    for key, value in container.items() if is_mapping else enumerate(container):
        if is_mapping and not isinstance(key, (str, int)):
            raise ConfigurationError(
                f"The key {key!r} in the state is of type {type(key).__name__}. In a sharded checkpoint, beside"
                " tensors, keys are text or whole numbers. Save it under another key."
            )
        here = (*path, str(key) if is_mapping else key)
        real = (*real_path, key if is_mapping else [key])
        if (isinstance(value, Mapping) and value) or _is_opened(value):
            yield from _walk(value, here, real)
        else:
            yield Entry(".".join(map(str, here)), container, key, here, real)


def _is_opened(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return any(isinstance(part, (torch.Tensor, Mapping)) or _is_opened(part) for part in value)


def holds_tensor(value: Any) -> bool:
    """Is there a tensor in the dictionaries, lists and tuples of `value`?"""
    if isinstance(value, torch.Tensor):
        return True
    if isinstance(value, Mapping):
        return any(map(holds_tensor, value.values()))
    return isinstance(value, (list, tuple)) and any(map(holds_tensor, value))


def unflatten(values: Mapping[str, Any], real_paths: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The nested state of values by name; what has no path stands under its name."""
    state: dict[str, Any] = {}
    for name, value in values.items():
        path = real_paths.get(name) or (name,)
        container: Any = state
        for step, following in pairwise(path):
            container = _get_or_make(container, step, list if isinstance(following, list) else dict)
        _put(container, path[-1], value)
    return state


def _get_or_make(container: Any, step: Any, kind: type[Any]) -> Any:
    if isinstance(step, list):
        (index,) = step
        _put(container, step, container[index] if index < len(container) and container[index] is not None else kind())
        return container[index]
    return container.setdefault(step, kind())


def _put(container: Any, step: Any, value: Any) -> None:
    if isinstance(step, list):
        (index,) = step
        container.extend([None] * (index + 1 - len(container)))
        container[index] = value
    else:
        container[step] = value
