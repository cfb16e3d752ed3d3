"""The state of modules in stages on its way to one file: whole, on rank 0, in the order of the names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fulmen.fabric.strategies.sharded_tensors import gather
from fulmen.fabric.trees import map_tree


def gather_stages(
    own: Mapping[Any, Any], order: Iterable[Any], device: torch.device, group: Any, *, is_first: bool
) -> dict[Any, Any]:
    """What all stages have, on rank 0; elsewhere nothing. All processes must call it.

    Args:
        own: Nested tensors that are here, split or whole.
        order: All names.
        device: Where the processes can talk to each other.
        group: The processes along the pipeline axis.
        is_first: Is this among the processes that rank 0 talks to along that axis?
    """
    whole = {name: _whole(value, device, keep=is_first) for name, value in own.items()}
    if not is_first:
        return {}
    size, place = dist.get_world_size(group), dist.get_rank(group)
    if place:
        _send(whole, dist.get_global_rank(group, 0), device)
        return {}
    for other in range(1, size):
        whole |= _receive(dist.get_global_rank(group, other), device)
    return {name: whole[name] for name in order if name in whole}


def _whole(value: Any, device: torch.device, *, keep: bool) -> Any:
    return map_tree(value, lambda leaf: gather(leaf, device, keep=keep) if isinstance(leaf, Tensor) else leaf)


def _send(state: dict[Any, Any], to: int, device: torch.device) -> None:
    tensors: list[Tensor] = []

    def described(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        tensors.append(leaf)
        return _Described(tuple(leaf.shape), leaf.dtype)

    dist.send_object_list([map_tree(state, described)], to, device=device)
    for tensor in tensors:  # one at a time: the whole state may be larger than memory on the device
        dist.send(tensor.to(device).contiguous(), to)


def _receive(source: int, device: torch.device) -> dict[Any, Any]:
    found: list[Any] = [None]
    dist.recv_object_list(found, source, device=device)

    def received(leaf: Any) -> Any:
        if not isinstance(leaf, _Described):
            return leaf
        tensor = torch.empty(leaf.shape, dtype=leaf.dtype, device=device)
        dist.recv(tensor, source)
        return tensor.cpu()

    state: dict[Any, Any] = map_tree(found[0], received)
    return state


class _Described:
    """A tensor that follows."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype


def only(state: Mapping[Any, Any], wanted: Callable[[Any], bool]) -> dict[Any, Any]:
    """The entries whose names are wanted."""
    return {name: value for name, value in state.items() if wanted(name)}
