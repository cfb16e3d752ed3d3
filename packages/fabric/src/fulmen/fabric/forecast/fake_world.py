"""One process that stands for rank 0 of many: a process group without others, and tensors without numbers."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.overrides import TorchFunctionMode

from fulmen.fabric.collectives import process_group
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.fabric.trees import map_tensors

ModuleT = TypeVar("ModuleT", bound=Module)


class FakeEnvironment(ClusterEnvironment):
    """Rank 0 of a number of processes, none of which runs."""

    def __init__(self, num_nodes: int, num_processes: int) -> None:
        self._num_nodes, self._num_processes = num_nodes, num_processes

    @property
    def creates_processes_externally(self) -> bool:
        """True: nobody has to start them."""
        return True

    @property
    def main_address(self) -> str:
        """Nobody goes there."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Nobody goes there."""
        return 0

    @staticmethod
    def detect() -> bool:
        """Never."""
        return False

    def world_size(self) -> int:
        """As many as were asked for."""
        return self._num_nodes * self._num_processes

    def set_world_size(self, size: int) -> None:
        """Nothing: it is known."""

    def global_rank(self) -> int:
        """0."""
        return 0

    def set_global_rank(self, rank: int) -> None:
        """Nothing: it is known."""

    def local_rank(self) -> int:
        """0."""
        return 0

    def node_rank(self) -> int:
        """0."""
        return 0

    def local_world_size(self) -> int | None:
        """As many as were asked for."""
        return self._num_processes


@contextmanager
def fake_group(world_size: int) -> Iterator[None]:
    """Inside, a process group is open in which this is rank 0; its collectives return at once, and do nothing.

    Raises:
        ConfigurationError: If a real one is open.
    """
    if process_group.is_initialized():
        raise ConfigurationError(
            "A forecast was asked for while a process group is open. It needs one of its own, for processes that do not"
            " exist. Make the forecast before anything is launched, or in another program."
        )
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    # Collectives of tensors without numbers; torch 2.13 knows them by itself, and 2.9 does not.
    import_module("torch.distributed._tools.fake_collectives")
    forget_meshes()
    shows_errors = sys.excepthook  # torch puts the rank before each line of a traceback
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    sys.excepthook = shows_errors
    try:
        with rank_zero_only.as_rank(0):  # a strategy sets it for good
            yield
    finally:
        dist.destroy_process_group()
        forget_meshes()


def forget_meshes() -> None:
    """Let torch forget what it has worked out for the meshes of process groups that are gone.

    It finds that again for every mesh of the same ranks, with the names of groups that may be others, or none, by then.
    """
    # What is not loaded has worked nothing out.
    tensors, redistribute = (sys.modules.get(f"torch.distributed.tensor.{name}") for name in ("_api", "_redistribute"))
    if tensors is not None:
        known = tensors.DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding
        getattr(known, "cache", known).cache_clear()  # torch 2.9 has it inside
    for owner, name in (
        (torch._C, "_clear_DTensor_sharding_propagator_cache"),
        (redistribute, "clear_redistribute_planner_cache"),
        (getattr(redistribute, "_gen_transform_infos", None), "cache_clear"),
    ):
        clear = getattr(owner, name, None)  # some came with later torches
        if clear is not None:
            clear()


def mode() -> Any:
    """Inside of it, new tensors have no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


class FewParts(TorchFunctionMode):
    """Inside, `torch.chunk` of a tensor without numbers makes one part, and puts it where all of that shape stand.

    `fully_shard` cuts every parameter into parts for all processes, and asks for the shapes and the part of its own;
    for a thousand processes, making the parts would be most of a forecast.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it, or what takes its place."""
        from torch._subclasses.fake_tensor import FakeTensor

        called = _chunk if func is torch.chunk and args and isinstance(args[0], FakeTensor) else func
        return called(*args, **(kwargs or {}))


def _chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    length = input.shape[dim]
    if length == 0:
        return torch.chunk(input, chunks, dim)
    size = -(-length // chunks)
    num_full, rest = divmod(length, size)
    parts = (input.narrow(dim, 0, size),) * num_full
    return (*parts, input.narrow(dim, length - rest, rest)) if rest else parts


def without_memory(module: ModuleT, apart: Iterable[Any] = ()) -> ModuleT:
    """A copy on the meta device.

    Args:
        module: Stays as it is.
        apart: What is not copied, although the module has it.
    """

    def shell(tensor: Tensor) -> Tensor:
        made = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        return Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, Parameter) else made

    # What a deep copy finds here it takes for copied: no parameter is copied for real.
    memo: dict[int, Any] = {id(tensor): shell(tensor) for tensor in [*module.parameters(), *module.buffers()]}
    memo |= {id(one): one for one in apart}
    return copy.deepcopy(module, memo)


def claim_device(module: Module, device: torch.device) -> None:
    """Put tensors that claim to be on the device in the place of those on the meta device. Needs an active `mode()`."""
    made: dict[int, Tensor] = {}  # tensors that are shared stay so
    for part in module.modules():
        for own in (part._parameters, part._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        made[id(tensor)] = _claiming(tensor, device)
                    own[name] = made[id(tensor)]  # type: ignore[assignment]  # a parameter for a parameter


def claiming(batch: Any, device: torch.device) -> Any:
    """The batch, of tensors that claim to be on the device. Needs an active `mode()`."""
    return map_tensors(batch, lambda tensor: _claiming(tensor, device))


def _claiming(tensor: Tensor, device: torch.device) -> Tensor:
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, Parameter) else made
