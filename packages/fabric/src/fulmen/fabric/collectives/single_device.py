"""The collective operations when there is one process: each gives back what it was given."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fulmen.fabric.collectives.base import Collective
from fulmen.fabric.types import CollectibleGroup


class _Alone:
    """The group of one."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


class SingleDeviceCollective(Collective):
    """One process, so that a program with collectives also runs alone. Further arguments mean nothing here."""

    @property
    def rank(self) -> int:
        """0."""
        return 0

    @property
    def world_size(self) -> int:
        """1."""
        return 1

    @classmethod
    def is_available(cls) -> bool:
        """True."""
        return True

    @classmethod
    def is_initialized(cls) -> bool:
        """True: there is nobody to connect to."""
        return True

    @classmethod
    def init_group(cls, **_: Any) -> None:
        """Nothing."""

    @classmethod
    def new_group(cls, **_: Any) -> CollectibleGroup:
        """The group of one."""
        return _Alone()

    @classmethod
    def destroy_group(cls, group: CollectibleGroup) -> None:
        """Nothing."""

    def broadcast(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        """The tensor itself."""
        return tensor

    def all_reduce(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        """The tensor itself."""
        return tensor

    def reduce(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        """The tensor itself."""
        return tensor

    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor, **__: Any) -> list[Tensor]:
        """A list of the tensor; `tensor_list` is filled, too."""
        tensor_list[:] = [tensor]
        return tensor_list

    def gather(self, tensor: Tensor, gather_list: list[Tensor] | None = None, *_: Any, **__: Any) -> list[Tensor]:
        """A list of the tensor; the list that was passed is filled, too."""
        gather_list = [] if gather_list is None else gather_list
        gather_list[:] = [tensor]
        return gather_list

    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], *_: Any, **__: Any) -> Tensor:
        """The first of the list."""
        return tensor.copy_(scatter_list[0])

    def reduce_scatter(self, output: Tensor, input_list: list[Tensor], *_: Any, **__: Any) -> Tensor:
        """The first of the list."""
        return output.copy_(input_list[0])

    def all_to_all(
        self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor], *_: Any, **__: Any
    ) -> list[Tensor]:
        """The tensors of the input list."""
        output_tensor_list[:] = input_tensor_list
        return output_tensor_list

    def send(self, *_: Any, **__: Any) -> None:
        """Nothing: there is nobody."""

    def recv(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        """The tensor as it is: there is nobody."""
        return tensor

    def barrier(self, *_: Any, **__: Any) -> None:
        """Nothing: there is nobody to wait for."""
