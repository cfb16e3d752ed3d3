"""Watch a step over tensors without numbers: which collectives there are, and what memory is alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fulmen.fabric.forecast.figures import Traffic, ring_bytes
from fulmen.fabric.strategies.mesh_axes import CONTEXT
from fulmen.fabric.strategies.sharded_tensors import is_dtensor

# Operations of torch, by the beginning of their names, and what they are called in the forecast.
_OPERATIONS: Final = {
    "all_gather": "all_gather",
    "allgather": "all_gather",
    "_allgather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "_reduce_scatter": "reduce_scatter",
    "all_reduce": "all_reduce",
    "allreduce": "all_reduce",
    "all_to_all": "all_to_all",
    "alltoall": "all_to_all",
    "broadcast": "broadcast",
    "send": "send",
}
# What gathers parameters and reduces gradients for strategies; their tensors are not the user's.
_EXCHANGING: Final = ("c10d", "fsdp")
# What processes of a context do, where other groups may have the same processes.
_IN_CONTEXT: Final = ("send", "all_to_all")


class Watch(TorchDispatchMode):
    """Inside, collectives are counted and memory that comes into being is followed.

    Args:
        axes: The ranks along each axis of the mesh, for rank 0.
        apart: What is known to be there: parameters, buffers, the batch.
        context: The ranks that share sequences with rank 0.
    """

    def __init__(self, axes: Mapping[str, Sequence[int]], apart: Sequence[Tensor], context: Sequence[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._apart = {_storage(tensor)._cdata for tensor in apart}
        self._axes = {tuple(sorted(ranks)): name for name, ranks in axes.items()}
        self._context = tuple(context)
        # By operation, axis and number of processes, and how often they come in a step.
        self._calls: dict[tuple[str, str, int, int], list[int]] = {}
        self._times = 1
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._exchanging: set[int] = set()
        self.most_exchanged = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let the operation run, and note what it was."""
        if any(is_dtensor_type(kind) for kind in types):
            return NotImplemented  # its parts come here by themselves
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        exchanges = func.namespace in _EXCHANGING
        tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        if exchanges:
            tensors += _exchanged_whole(func, tree_leaves((args, kwargs)))
        for tensor in tensors:
            self._follow(tensor, exchanges)
        if "c10d" in func.namespace:
            self._count(func, args, kwargs, found)
        if exchanges:
            self.most_exchanged = max(self.most_exchanged, self._exchanged())
        return found

    def alive_bytes(self) -> int:
        """Memory that has come into being here and is alive, but for what strategies gather."""
        return sum(size for key, size in self._sizes() if key not in self._exchanging)

    @contextmanager
    def times(self, number: int) -> Iterator[None]:
        """Inside, the watch is on, and what is counted comes so many times in a step."""
        before, self._times = self._times, number
        try:
            with self:
                yield
        finally:
            self._times = before

    def traffic(self) -> list[Traffic]:
        """What was counted."""
        found: dict[tuple[str, str, int], list[int]] = {}
        for (operation, axis, num_processes, times), counted in self._calls.items():
            together = found.setdefault((operation, axis, num_processes), [0, 0])
            for place, number in enumerate(counted):
                together[place] += number * times
        return [
            Traffic(operation, axis, num_processes, num_calls, size, ring_bytes(operation, size, num_processes))
            for (operation, axis, num_processes), (num_calls, size) in found.items()
        ]

    def _follow(self, tensor: Tensor, exchanges: bool) -> None:
        storage = _storage(tensor)
        if storage._cdata in self._apart:
            return
        if exchanges:
            self._exchanging.add(storage._cdata)
        if storage._cdata not in self._alive:
            self._alive[storage._cdata] = weakref.ref(storage, self._forget(storage._cdata))

    def _forget(self, key: int) -> Any:
        def forget(_: Any) -> None:
            self._alive.pop(key, None)
            self._exchanging.discard(key)

        return forget

    def _sizes(self) -> Iterator[tuple[int, int]]:
        for key, found in list(self._alive.items()):
            storage = found()
            if storage is not None:
                yield key, storage.nbytes()

    def _exchanged(self) -> int:
        storages = [self._alive[key]() for key in list(self._exchanging) if key in self._alive]
        return sum(storage.nbytes() for storage in storages if storage is not None)

    def _count(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        name = func._schema.name.partition("::")[2]
        operation = next((ours for theirs, ours in _OPERATIONS.items() if name.startswith(theirs)), None)
        ranks = _ranks(func, args, kwargs)
        if operation is None or len(ranks) < 2:
            return
        groups = [tree_leaves(args), tree_leaves(found)]
        # The whole tensor is the larger one of what goes in and what comes out.
        size = max(sum(_bytes(leaf) for leaf in group if isinstance(leaf, Tensor)) for group in groups)
        if func.namespace == "c10d":  # both are arguments there
            size = max(_bytes(leaf) for leaf in groups[0] if isinstance(leaf, Tensor))
        axis = self._axes.get(ranks, "all")
        if ranks == self._context and (operation in _IN_CONTEXT or ranks not in self._axes):
            axis = CONTEXT
        counted = self._calls.setdefault((operation, axis, len(ranks), self._times), [0, 0])
        counted[0] += 1
        counted[1] += size


def is_dtensor_type(kind: type) -> bool:
    """Is it the class of tensors that are split over a mesh?"""
    return kind.__name__ == "DTensor"


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def local_bytes(tensors: Any) -> int:
    """The memory of these tensors in this process; what two of them share is counted once.

    What claims to be on the meta device is in another stage of a pipeline.
    """
    storages = {id(one): _bytes(local(one)) for one in tensors if not one.is_meta}
    return sum(storages.values())


@contextmanager
def one_speaks_for_all(strategy: Any) -> Iterator[None]:
    """Inside, what processes would decide together is decided by the one that is there."""
    replaced = {"reduce_boolean_decision": lambda decision, all=True: decision, "broadcast": lambda obj, src=0: obj}
    before = {name: strategy.__dict__.get(name) for name in replaced}
    strategy.__dict__.update(replaced)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del strategy.__dict__[name]
            else:
                strategy.__dict__[name] = value


def _exchanged_whole(func: Any, values: Sequence[Any]) -> list[Tensor]:
    """Of the arguments of an exchange, the gathered tensors; their parts have owners."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if func.namespace == "c10d":
        largest = max(map(_bytes, tensors), default=0)
        return [tensor for tensor in tensors if _bytes(tensor) == largest]
    return tensors


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _ranks(func: Any, args: Any, kwargs: Any) -> tuple[int, ...]:
    """The processes that take part."""
    from torch._C._distributed_c10d import _resolve_process_group

    for value in [*args, *kwargs.values()]:
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):
            return tuple(dist.get_process_group_ranks(dist.ProcessGroup.unbox(value)))
    if func.namespace == "_c10d_functional":
        name = next((value for value in reversed([*args, *kwargs.values()]) if isinstance(value, str)), None)
        if name is not None:
            return tuple(dist.get_process_group_ranks(_resolve_process_group(name)))  # type: ignore[arg-type]  # a text with a name
    return ()
