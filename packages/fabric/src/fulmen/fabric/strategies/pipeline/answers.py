"""What the last stage of a pipeline gives for a batch, made known to all stages.

What is given for one batch mostly has the form of what was given for the batch before: names, options and shapes are
the same, and only numbers differ. So the form is sent once, pickled, and from then on one tensor of bytes for a batch.
Whoever waits for it knows how long it is. Its first byte says whether the form is still the same; else it follows.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from math import prod
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fulmen.fabric.trees import map_tensors

# Of kinds of batches for which the form is kept.
_NUM_KEPT = 16
# Each value begins at a multiple of this, so that bytes can be read as any type.
_ALIGNED = 16
# What stays as it is, and is not sent again.
_PLAIN = (str, bytes, bool, type(None), Enum, type, FunctionType, BuiltinFunctionType, torch.dtype, torch.device)


@dataclass(frozen=True)
class _Place:
    """Where a value lies in the bytes."""

    kind: type  # Tensor, float or int
    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int

    @property
    def end(self) -> int:
        """Behind it."""
        return self.begin + prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Same:
    """A value that is part of the form."""

    kind: type
    value: Any


class _Unlike:
    """In the place of what cannot be compared; no form with it equals another."""


@dataclass(frozen=True)
class Form:
    """What is the same in what is given for many batches.

    Attributes:
        tree: Nested tuples (of a dict: keys and values) with places of values.
        size: Bytes of all values, and the byte before them.
    """

    tree: Any
    size: int

    def write(self, values: list[Tensor], device: torch.device) -> Tensor:
        """The bytes of values that have this form."""
        data = torch.zeros(self.size, dtype=torch.uint8, device=device)
        for place, value in zip(_places(self.tree), values, strict=True):
            plain = value.detach().resolve_conj().resolve_neg().contiguous()
            data[place.begin : place.end].copy_(plain.reshape(-1).view(torch.uint8))
        return data

    def read(self, data: Tensor, device: torch.device) -> Any:
        """The values in the bytes, as they were given; tensors on `device`."""
        return _read(self.tree, data, device)


def form_of(value: Any) -> tuple[Form, list[Tensor]]:
    """The form of nested dicts, lists and tuples, and the values in it."""
    values: list[Tensor] = []
    size = _ALIGNED

    def placed(leaf: Any) -> Any:
        nonlocal size
        kind = type(leaf)
        if kind is dict:
            return (dict, tuple((key, placed(one)) for key, one in leaf.items()))
        if kind in (list, tuple):
            return (kind, tuple(map(placed, leaf)))
        if kind is int and not -(2**63) <= leaf < 2**63:
            return _Unlike()
        if kind in (int, float):
            tensor = torch.tensor(leaf, dtype=torch.float64 if kind is float else torch.int64)
        elif kind is Tensor and leaf.layout is torch.strided and not leaf.is_quantized:
            kind, tensor = Tensor, leaf
        else:
            return _Same(kind, leaf) if isinstance(leaf, _PLAIN) else _Unlike()
        place = _Place(kind, tuple(tensor.shape), tensor.dtype, size)
        values.append(tensor)
        size = -(-place.end // _ALIGNED) * _ALIGNED
        return place

    tree = placed(value)
    return Form(tree, size), values


def _places(tree: Any) -> list[_Place]:
    if isinstance(tree, _Place):
        return [tree]
    if not isinstance(tree, tuple):
        return []
    kind, parts = tree
    return [place for part in parts for place in _places(part[1] if kind is dict else part)]


def _read(tree: Any, data: Tensor, device: torch.device) -> Any:
    if isinstance(tree, _Same):
        return tree.value
    if isinstance(tree, _Place):
        tensor = data[tree.begin : tree.end].view(tree.dtype).view(tree.shape)
        return tensor.to(device) if tree.kind is Tensor else tree.kind(tensor.item())
    kind, parts = tree
    if kind is dict:
        return {key: _read(part, data, device) for key, part in parts}
    return kind(_read(part, data, device) for part in parts)


class Answers:
    """What one process gives for batches, in all processes of a group.

    Args:
        group: All of them must ask at the same time.
        source: The rank, among all processes, of the one that gives.
        device: Of this process.
        device_of_group: Where the group can send.
    """

    def __init__(self, group: Any, source: int, device: torch.device, device_of_group: torch.device) -> None:
        self._group, self._source = group, source
        self._device, self._device_of_group = device, device_of_group
        self._forms: OrderedDict[Any, Form] = OrderedDict()

    def share(self, key: Any, value: Any) -> Any:
        """What the source gives, in every process.

        Args:
            key: The same in all processes; batches with the same key are expected to be answered in the same form.
            value: Of the source; of others it is not looked at.
        """
        gives = dist.get_rank() == self._source
        form, values = form_of(value) if gives else (None, [])
        known = self._forms.get(key)
        if known is not None:
            self._forms.move_to_end(key)
            is_same = form == known
            data = known.write(values, self._device_of_group) if is_same else self._zeros(known.size)
            data[0] = is_same
            dist.broadcast(data, self._source, group=self._group)
            if is_same:
                return self._here(value)
            if not gives and data[0].item():
                return known.read(data, self._device)
        found: list[Any] = [(form, map_tensors(value, _detached, torch.device("cpu")) if gives else None)]
        dist.broadcast_object_list(found, self._source, group=self._group, device=self._device_of_group)
        self._forms[key] = found[0][0]
        if len(self._forms) > _NUM_KEPT:
            self._forms.popitem(last=False)
        return self._here(found[0][1])

    def _zeros(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.uint8, device=self._device_of_group)

    def _here(self, value: Any) -> Any:
        return map_tensors(value, _detached, self._device)


def _detached(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.detach().to(device)
