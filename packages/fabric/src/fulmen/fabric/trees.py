"""Walk a nested batch: move, convert, measure.

A tree is made of mappings, lists, tuples, named tuples and dataclasses; everything else is a leaf. A walk returns new
containers of the same types and never changes the ones it was given.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.types import DeviceLike


class AttributeDict(dict[str, Any]):
    """A dict whose string keys are attributes too.

    >>> AttributeDict(lr=0.1).lr
    0.1
    """

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"no attribute or key {key!r}; there are {list(self)}", name=key, obj=self) from None

    def __setattr__(self, key: str, val: Any) -> None:
        self[key] = val

    def __delattr__(self, item: str) -> None:
        if item not in self:
            raise AttributeError(f"no attribute or key {item!r}; there are {list(self)}", name=item, obj=self)
        del self[item]

    def __repr__(self) -> str:
        if not self:
            return ""
        width = max(len(str(key)) for key in self)
        return "\n".join(f"{f'{key!s}:':<{width + 2}}{value!r}" for key, value in self.items())


def map_tree(tree: Any, fn: Callable[[Any], Any], *, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """`fn` of every leaf, in containers like those of `tree`.

    Args:
        tree: What to walk.
        fn: Called once per leaf.
        is_leaf: True for containers of a type of their own that `fn` takes whole.
    """
    # Exact types first: a batch is walked on every step, and is nearly always made of these.
    kind = type(tree)
    if kind is Tensor:
        return fn(tree)
    if kind is tuple:
        return tuple([map_tree(item, fn, is_leaf=is_leaf) for item in tree])
    if kind is list:
        return [map_tree(item, fn, is_leaf=is_leaf) for item in tree]
    if kind is dict:
        return {key: map_tree(item, fn, is_leaf=is_leaf) for key, item in tree.items()}
    if is_leaf is not None and is_leaf(tree):
        return fn(tree)
    return _map_rare(tree, fn, is_leaf)


def _map_rare(tree: Any, fn: Callable[[Any], Any], is_leaf: Callable[[Any], bool] | None) -> Any:
    def walk(item: Any) -> Any:
        return map_tree(item, fn, is_leaf=is_leaf)

    if isinstance(tree, MutableMapping):
        # A copy keeps what the constructor of a subclass cannot be asked for, such as a default factory.
        mapping = copy.copy(tree)
        mapping.update({key: walk(item) for key, item in tree.items()})
        return mapping
    if isinstance(tree, Mapping):
        return type(tree)({key: walk(item) for key, item in tree.items()})  # type: ignore[call-arg]  # as dict's
    if isinstance(tree, deque):
        return type(tree)((walk(item) for item in tree), tree.maxlen)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(walk(item) for item in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)([walk(item) for item in tree])
    if _is_dataclass_instance(tree):
        result = copy.copy(tree)
        for field in dataclasses.fields(tree):
            if hasattr(tree, field.name):
                # Past a frozen class: `result` is ours until it is returned.
                object.__setattr__(result, field.name, walk(getattr(tree, field.name)))
        return result
    return fn(tree)


def _is_dataclass_instance(tree: Any) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def leaves(tree: Any) -> Iterator[Any]:
    """Every leaf of `tree`, in order."""
    if isinstance(tree, Mapping):
        for item in tree.values():
            yield from leaves(item)
    elif isinstance(tree, (list, tuple, deque)):
        for item in tree:
            yield from leaves(item)
    elif _is_dataclass_instance(tree):
        for field in dataclasses.fields(tree):
            if hasattr(tree, field.name):
                yield from leaves(getattr(tree, field.name))
    else:
        yield tree


def apply_func(tree: Any, kinds: type | tuple[type, ...], fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`fn(leaf, *args, **kwargs)` of every leaf that is an instance of `kinds`; other leaves stay as they are."""
    return map_tree(tree, lambda leaf: fn(leaf, *args, **kwargs) if isinstance(leaf, kinds) else leaf)


def map_tensors(tree: Any, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`fn(tensor, *args, **kwargs)` of every tensor in `tree`."""
    return apply_func(tree, Tensor, fn, *args, **kwargs)


def convert_tensors(tree: Any, dtype: torch.dtype) -> Any:
    """`tree` with its floating-point tensors as `dtype`; integers and booleans stay."""
    return map_tensors(tree, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def move_data_to_device(batch: Any, device: DeviceLike) -> Any:
    """`batch` on `device`: every tensor, and every other object with a method `to(device)`, also a container.

    Copies to a GPU do not wait; whoever reads the result on that GPU finds them done.
    """
    target = torch.device(device)
    non_blocking = not waits_for_copies(target)

    def move(item: Any) -> Any:
        if isinstance(item, Tensor):
            return item.to(target, non_blocking=non_blocking)
        if not can_move(item):
            return item
        moved = item.to(target)
        # `to` of an object that moves in place often returns nothing.
        return item if moved is None else moved

    return map_tree(batch, move, is_leaf=can_move)


move_to_device = move_data_to_device


def waits_for_copies(device: torch.device) -> bool:
    """Must a copy to `device` have ended before Python goes on? To the CPU and to MPS, what is read would be wrong."""
    return device.type in ("cpu", "mps")


def can_move(item: Any) -> bool:
    """Has `item` a method `to(device)`, as tensors have?"""
    return callable(getattr(item, "to", None)) and not isinstance(item, type)


def _conversions() -> list[tuple[type, Callable[[Any], Tensor]]]:
    """What becomes a tensor, and how; the first that fits."""
    found: list[tuple[type, Callable[[Any], Tensor]]] = [
        (bool, partial(torch.tensor, dtype=torch.uint8)),
        (int, partial(torch.tensor, dtype=torch.int32)),
        (float, torch.tensor),
    ]
    # Whoever has an array has loaded numpy.
    numpy = sys.modules.get("numpy")
    return found if numpy is None else [*found, (numpy.ndarray, torch.from_numpy)]


def __getattr__(name: str) -> Any:
    # Not a constant: its last entry would load numpy for everybody.
    if name == "CONVERSION_DTYPES":
        with suppress(ImportError):
            importlib.import_module("numpy")
        return _conversions()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def convert_to_tensors(data: Any, device: DeviceLike) -> Any:
    """`data` with its numbers, booleans and numpy arrays as tensors, all on `device`.

    Booleans become uint8, integers int32, floats the default float type; arrays keep their type.

    Raises:
        ConfigurationError: For a leaf that is none of these, such as a string.
    """
    target = torch.device(device)
    conversions = _conversions()

    def convert(leaf: Any) -> Any:
        for kind, to_tensor in conversions:
            if isinstance(leaf, kind):
                return to_tensor(leaf)
        if can_move(leaf):
            return leaf
        raise ConfigurationError(
            f"{leaf!r} cannot become a tensor. It is a {type(leaf).__name__}, and only tensors, numbers, booleans and"
            " numpy arrays can travel between processes and devices as tensors. Leave it out, or convert it before."
        )

    return move_data_to_device(map_tree(data, convert, is_leaf=can_move), target)


def convert_to_scalars(data: Any) -> Any:
    """`data` with its tensors of one element as Python numbers.

    What lies on a GPU is read in one transfer per device and dtype, not in one per tensor.

    Raises:
        ConfigurationError: If a tensor has more or fewer elements than one.
    """
    far: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for leaf in leaves(data):
        if isinstance(leaf, Tensor):
            if leaf.numel() != 1:
                raise ConfigurationError(
                    f"A tensor of shape {tuple(leaf.shape)} is no scalar. It has {leaf.numel()} elements, and one"
                    " number is needed. Reduce it first, for example with `.mean()`."
                )
            if leaf.device.type != "cpu":
                far.setdefault((leaf.device, leaf.dtype), []).append(leaf)
    values: dict[int, Any] = {}
    for group in far.values():
        numbers = torch.stack([tensor.detach().reshape(()) for tensor in group]).tolist()
        values.update((id(tensor), number) for tensor, number in zip(group, numbers, strict=True))
    return map_tensors(data, lambda tensor: values[id(tensor)] if id(tensor) in values else tensor.item())


convert_tensors_to_scalars = convert_to_scalars


def num_bytes(tree: Any) -> int:
    """The size of all tensors in `tree`, in bytes; a tensor that appears twice counts twice."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(tree) if isinstance(leaf, Tensor))
