"""The axes of a mesh of processes, their order and their sizes (pure).

| axis, outermost first | processes along it |
| --- | --- |
| "pipeline_parallel" | have other stages of the module, and see the same batches |
| "replicate" | hold the same parameters, and see other batches |
| "data_parallel" | hold other parts of each parameter, and see other batches |
| "tensor_parallel" | hold other parts of each parameter, compute with these, and see the same batches |

Of the processes along "data_parallel", neighbours may form groups that see the same batches, each its part of the
sequence: the context. Parameters are split over them as over the others.

The innermost axis talks most, and its processes have neighbouring ranks: on one machine, if its size allows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fulmen.fabric.errors import ConfigurationError

Size: TypeAlias = int | Literal["auto"]

PIPELINE, REPLICATE, DATA, TENSOR = "pipeline_parallel", "replicate", "data_parallel", "tensor_parallel"
AXES = (PIPELINE, REPLICATE, DATA, TENSOR)
CONTEXT = "context_parallel"  # no axis of its own: neighbours along the data axis
# Processes along these see other batches.
DATA_AXES = (REPLICATE, DATA)
# These are in every mesh, also with one process.
_ALWAYS = (DATA, TENSOR)


@dataclass(frozen=True)
class MeshSizes:
    """How many processes are along each axis.

    >>> sizes = MeshSizes({"replicate": 2, "data_parallel": 2, "tensor_parallel": 2})
    >>> sizes.coordinates(5), sizes.data_rank(5)
    ({'pipeline_parallel': 0, 'replicate': 1, 'data_parallel': 0, 'tensor_parallel': 1}, 2)
    """

    sizes: Mapping[str, int]
    context: int = 1  # how many neighbours along the data axis see the same batches

    def of(self, axis: str) -> int:
        """The size of one axis."""
        return self.sizes.get(axis, 1)

    @property
    def names(self) -> tuple[str, ...]:
        """The axes that the mesh has, outermost first; the others have one process and are left out."""
        return tuple(axis for axis in AXES if axis in _ALWAYS or self.of(axis) > 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of `names`."""
        return tuple(self.of(axis) for axis in self.names)

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return math.prod(map(self.of, AXES))

    @property
    def num_data(self) -> int:
        """How many processes, or groups of them, compute different values."""
        return math.prod(self.of(axis) for axis in DATA_AXES)

    def coordinates(self, rank: int) -> dict[str, int]:
        """The place of a process along each axis."""
        found: dict[str, int] = {}
        for axis in reversed(AXES):
            rank, found[axis] = divmod(rank, self.of(axis))
        return {axis: found[axis] for axis in AXES}

    @property
    def num_shares(self) -> int:
        """Into how many shares the batches are divided."""
        return self.num_data // self.context

    def share(self, rank: int) -> int:
        """Which share of the batches a process sees, of `num_shares`."""
        return self.data_rank(rank) // self.context

    def context_rank(self, rank: int) -> int:
        """Which part of the sequence a process sees, of `context`."""
        return self.data_rank(rank) % self.context

    def data_rank(self, rank: int) -> int:
        """The place of a process along all axes of data, of `num_data`."""
        places, share = self.coordinates(rank), 0
        for axis in DATA_AXES:
            share = share * self.of(axis) + places[axis]
        return share

    def distinct_ranks(self, last: int | None = None) -> list[int]:
        """One process of each group that computes the same values; of a pipeline, where its last stage is.

        Args:
            last: That place along the pipeline axis; by default its end.
        """
        last = self.of(PIPELINE) - 1 if last is None else last
        ranks = [rank for rank in range(self.world_size) if self.coordinates(rank)[PIPELINE] == last]
        first = {self.data_rank(rank): rank for rank in reversed(ranks)}
        return [first[share] for share in range(self.num_data)]

    def groups_without_copies(self) -> list[list[int]]:
        """The processes in groups, each with one of those that compute the same values: there nothing counts twice."""
        copies: dict[tuple[int, int], list[int]] = {}
        for rank in range(self.world_size):
            copies.setdefault((self.data_rank(rank), self.coordinates(rank)[PIPELINE]), []).append(rank)
        return [sorted(group) for group in zip(*copies.values(), strict=True)]

    def crosses_machines(self, axis: str, num_processes: int) -> bool:
        """Are processes along an axis on several machines, with `num_processes` on each?"""
        if self.of(axis) == 1:
            return False
        stride = math.prod(self.of(inner) for inner in AXES[AXES.index(axis) + 1 :])
        return num_processes % (stride * self.of(axis)) != 0


def mesh_sizes(
    asked: Mapping[str, Size],
    num_nodes: int,
    num_processes: int,
    *,
    splits_tensors: bool = True,
    context: int = 1,
) -> MeshSizes:
    """The sizes of all axes.

    Args:
        asked: For each axis a number of processes, or "auto"; 1 for those that are not there.
        num_nodes, num_processes: How many machines, and processes on each.
        splits_tensors: Is anything split over the tensor axis? If not, "auto" there is 1.
        context: How many neighbours along the data axis see the same batches.

    Raises:
        ConfigurationError: If the product of the sizes is not the number of processes, or the context does not divide
            the data axis.

    >>> mesh_sizes({"data_parallel": "auto", "tensor_parallel": 2}, num_nodes=1, num_processes=8).shape
    (4, 2)
    """
    world_size = num_nodes * num_processes
    sizes: dict[str, Size] = {axis: asked.get(axis, 1) for axis in AXES}
    left = world_size // math.prod(size for size in sizes.values() if size != "auto")
    # Tensors go to the processes of one machine, and replicas to different machines; what is left splits parameters.
    open_axes = [axis for axis in (TENSOR, REPLICATE, DATA) if sizes[axis] == "auto"]
    if TENSOR in open_axes and not splits_tensors and len(open_axes) > 1:
        open_axes.remove(TENSOR)
        sizes[TENSOR] = 1
    for axis in open_axes:
        room = left
        if len(open_axes) > 1 and axis != open_axes[-1]:
            room = math.gcd(left, num_processes if axis == TENSOR else num_nodes)
        sizes[axis] = room
        left //= max(room, 1)
    found = MeshSizes({axis: int(size) for axis, size in sizes.items()}, context)
    if found.world_size != world_size:
        shown = [axis for axis in AXES if asked.get(axis, 1) != 1 or axis in _ALWAYS]
        given = ", ".join(f"{axis}_size={asked.get(axis, 1)!r}" for axis in shown)
        along = int(sizes[PIPELINE])
        if world_size % along:
            raise ConfigurationError(
                f"ModelParallelStrategy({given}) does not fit {world_size} processes. A pipeline has {along} of them,"
                f" and each copy of it as many. Pass devices and num_nodes for a multiple of {along} processes, or"
                " other split points."
            )
        raise ConfigurationError(
            f"ModelParallelStrategy({given}) does not fit {world_size} processes."
            f" Every process has one place in the mesh. Pass sizes whose product is {world_size}, such as"
            f" {_suggested(asked, world_size)}, or other devices or num_nodes."
        )
    if found.of(DATA) % context:
        raise ConfigurationError(
            f"ModelParallelStrategy(context_parallel_size={context}) does not fit data_parallel_size={found.of(DATA)}."
            " Neighbours along the data axis share a sequence, and each is in one such group."
            f" Pass a size that divides {found.of(DATA)}, or data_parallel_size={found.of(DATA) * context} with more"
            " devices."
        )
    return found


def every_mesh(world_size: int, pipeline: int = 1) -> Iterator[MeshSizes]:
    """All meshes that so many processes can form, with `pipeline` of them along the pipeline axis.

    >>> [mesh.shape for mesh in every_mesh(2)]
    [(1, 2), (2, 1), (2, 1, 1)]
    """
    divisors = [size for size in range(1, world_size + 1) if world_size % size == 0]
    for sizes in itertools.product(divisors, repeat=len(AXES) - 1):
        if pipeline * math.prod(sizes) == world_size:
            yield MeshSizes(dict(zip(AXES, (pipeline, *sizes), strict=True)))


def _suggested(asked: Mapping[str, Size], world_size: int) -> str:
    """Sizes that fit: as asked from the tensor axis outwards as far as they divide, the rest on the data axis."""
    sizes: dict[str, int] = {}
    left = world_size
    for axis in reversed([axis for axis in AXES if axis != DATA]):
        size = asked.get(axis, 1)
        sizes[axis] = 1 if size == "auto" else math.gcd(size, left)
        left //= sizes[axis]
    sizes[DATA] = left
    return ", ".join(f"{axis}_size={sizes[axis]}" for axis in AXES if axis in _ALWAYS or asked.get(axis, 1) != 1)
