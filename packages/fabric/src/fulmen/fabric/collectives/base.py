"""The collective operations, named: what a group of processes can do with tensors.

For programs that talk to other processes themselves. Strategies have their own `all_gather`, `all_reduce`, `broadcast`
and `barrier`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

from torch import Tensor

from fulmen.fabric.errors import NotLaunchedError
from fulmen.fabric.types import CollectibleGroup


class Collective(ABC):
    """A group of processes and its operations. Every process of the group calls each operation, in the same order.

    Operations work in place and return what they have filled. Ranks in `src` and `dst` are those of all processes.
    """

    def __init__(self) -> None:
        self._group: CollectibleGroup | None = None

    @property
    @abstractmethod
    def rank(self) -> int:
        """The rank of this process within the group."""

    @property
    @abstractmethod
    def world_size(self) -> int:
        """How many processes are in the group."""

    @property
    def group(self) -> CollectibleGroup:
        """The group.

        Raises:
            NotLaunchedError: If there is none yet.
        """
        if self._group is None:
            raise NotLaunchedError(
                f"{type(self).__name__}.group was read before there was a group. Operations need one to work in."
                " Call `create_group()` first."
            )
        return self._group

    def create_group(self, **kwargs: Any) -> Self:
        """Make a group of its own; `kwargs` are those of `new_group`. All processes must call it.

        Raises:
            NotLaunchedError: If it has one already.
        """
        if self._group is not None:
            raise NotLaunchedError(
                f"{type(self).__name__}.create_group() was called, and this object has a group already."
                " One object works in one group. Make another object, or call `teardown()` first."
            )
        self._group = self.new_group(**kwargs)
        return self

    def setup(self, **kwargs: Any) -> Self:
        """Open the connection of all processes, unless it is open; `kwargs` are those of `init_group`."""
        if not self.is_initialized():
            self.init_group(**kwargs)
        return self

    def teardown(self) -> Self:
        """Give up the group."""
        if self._group is not None:
            self.destroy_group(self._group)
            self._group = None
        return self

    @classmethod
    @abstractmethod
    def is_available(cls) -> bool:
        """Can it be used here?"""

    @classmethod
    @abstractmethod
    def is_initialized(cls) -> bool:
        """Is the connection of all processes open?"""

    @classmethod
    @abstractmethod
    def init_group(cls, **kwargs: Any) -> None:
        """Open the connection of all processes."""

    @classmethod
    @abstractmethod
    def new_group(cls, **kwargs: Any) -> CollectibleGroup:
        """A new group of some of the processes."""

    @classmethod
    @abstractmethod
    def destroy_group(cls, group: CollectibleGroup) -> None:
        """Give up a group."""

    @abstractmethod
    def broadcast(self, tensor: Tensor, src: int) -> Tensor:
        """`tensor` of process `src`, in all."""

    @abstractmethod
    def all_reduce(self, tensor: Tensor, op: str) -> Tensor:
        """The reduction of all tensors ("sum", "mean", "min", "max", "product"), in all processes."""

    @abstractmethod
    def reduce(self, tensor: Tensor, dst: int, op: str) -> Tensor:
        """The reduction of all tensors, in process `dst`; elsewhere `tensor` is undefined afterwards."""

    @abstractmethod
    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes by rank, into `tensor_list`, in all processes."""

    @abstractmethod
    def gather(self, tensor: Tensor, gather_list: list[Tensor], dst: int = 0) -> list[Tensor]:
        """The tensors of all processes by rank, into `gather_list`, in process `dst`; elsewhere it stays as it is."""

    @abstractmethod
    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], src: int = 0) -> Tensor:
        """Into `tensor`, the one of the `scatter_list` of process `src` that stands at this process's rank."""

    @abstractmethod
    def reduce_scatter(self, output: Tensor, input_list: list[Tensor], op: str) -> Tensor:
        """Into `output`, the reduction over all processes of what stands in `input_list` at this process's rank."""

    @abstractmethod
    def all_to_all(self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor]) -> list[Tensor]:
        """What process i has in its input list at rank j comes to place i of the output list of process j."""

    @abstractmethod
    def send(self, tensor: Tensor, dst: int, tag: int = 0) -> None:
        """Send `tensor` to process `dst`, which receives it with the same tag."""

    @abstractmethod
    def recv(self, tensor: Tensor, src: int | None = None, tag: int = 0) -> Tensor:
        """Into `tensor`, what process `src` (None: any) sent with this tag."""

    @abstractmethod
    def barrier(self, device_ids: list[int] | None = None) -> None:
        """Wait until all processes of the group are here."""
