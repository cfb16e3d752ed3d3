"""The shapes of things we accept: Protocols and aliases, no code."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
import torch.distributed

PathLike: TypeAlias = str | os.PathLike[str]
DeviceLike: TypeAlias = torch.device | str | int
# A string: on builds of torch without distributed there is no such class.
ReduceOp: TypeAlias = "torch.distributed.ReduceOp | torch.distributed.ReduceOp.RedOpType | str"


@runtime_checkable
class CollectibleGroup(Protocol):
    """A group of processes."""

    def size(self) -> int:
        """How many processes are in the group."""

    def rank(self) -> int:
        """The rank of this process within the group."""


@runtime_checkable
class Stateful(Protocol):
    """Something that can be saved and put back."""

    def state_dict(self) -> dict[str, Any]:
        """What to save."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Put back what `state_dict` gave."""


@runtime_checkable
class Steppable(Protocol):
    """What can do an optimization step."""

    def step(self, closure: Callable[[], float] | None = ...) -> float | None:
        """Do one step."""


@runtime_checkable
class Optimizable(Steppable, Protocol):
    """What can stand in for a `torch.optim.Optimizer`."""

    param_groups: list[dict[Any, Any]]
    defaults: dict[Any, Any]
    state: defaultdict[torch.Tensor, Any]

    def state_dict(self) -> dict[str, dict[Any, Any]]:
        """The state of the optimizer."""

    def load_state_dict(self, state_dict: dict[str, dict[Any, Any]]) -> None:
        """Put back what `state_dict` gave."""
