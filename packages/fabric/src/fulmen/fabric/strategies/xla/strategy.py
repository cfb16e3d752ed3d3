"""A replica of the model per XLA device, or one model that XLA itself spreads over all devices of this machine."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module, Parameter
from torch.utils.hooks import RemovableHandle

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.arguments import check_flag
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.environments.xla import XLAEnvironment
from fulmen.fabric.errors import ConfigurationError, NotLaunchedError
from fulmen.fabric.launchers.base import Launcher
from fulmen.fabric.launchers.xla import XLALauncher
from fulmen.fabric.optional_packages import require
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy, TBroadcast
from fulmen.fabric.strategies.parallel import ParallelStrategy
from fulmen.fabric.strategies.xla.graphs import XLAGraphs
from fulmen.fabric.strategies.xla.mesh import XLAMesh
from fulmen.fabric.types import ReduceOp

T = TypeVar("T")
# What torch_xla calls the operations.
_OPERATIONS = {"sum": "sum", "mean": "sum", "avg": "sum", "min": "min", "max": "max", "product": "mul"}


class XLAParallelStrategy(XLAGraphs, ParallelStrategy):
    """What both strategies for several XLA devices share: who takes part, and how they talk to each other.

    Args:
        accelerator: The kind of hardware.
        parallel_devices: The devices of this machine.
        checkpoint_io: A `XLACheckpointIO`, or one that wraps it.
        precision: A `XLAPrecision`.
        spmd: Run one process that computes on all devices, and let XLA divide the work.
    """

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
        *,
        spmd: bool = False,
    ) -> None:
        check_flag(self, "spmd", spmd)
        super().__init__(
            accelerator=accelerator,
            checkpoint_io=checkpoint_io,
            precision=precision,
            parallel_devices=parallel_devices,
            cluster_environment=XLAEnvironment(),
        )
        self.spmd = spmd
        self._is_launched = False
        self._mesh: XLAMesh | None = None
        self._num_stores = 0

    @property
    def mesh(self) -> XLAMesh:
        """All devices of this machine, over which XLA divides batches.

        Raises:
            ConfigurationError: Without `spmd=True`.
            NotLaunchedError: If the run has not begun.
        """
        if not self.spmd:
            raise ConfigurationError(
                f"{type(self).__name__}.mesh was read, and each device has a process of its own. Only one process that"
                f" computes on all devices has a mesh. Pass {type(self).__name__}(spmd=True)."
            )
        if self._mesh is None:
            raise _not_launched(self, "mesh", "XLA learns of its devices when a run begins")
        return self._mesh

    @property
    def root_device(self) -> torch.device:
        """The device of this process; with `spmd=True`, the one that stands for all.

        Raises:
            NotLaunchedError: If the processes have not been started: only torch_xla knows which device each will get.
        """
        if not self._is_launched:
            raise _not_launched(self, "root_device", "Who uses a device before, keeps the others from it")
        device: torch.device = _xla().device()
        return device

    @property
    def global_rank(self) -> int:
        """Rank of this process over all machines."""
        return super().global_rank if self._is_replica else 0

    @property
    def local_rank(self) -> int:
        """Rank of this process within its machine."""
        return super().local_rank if self._is_replica else 0

    @property
    def node_rank(self) -> int:
        """Rank of this machine."""
        return super().node_rank if self._is_replica else 0

    @property
    def world_size(self) -> int:
        """Number of processes over all machines."""
        return super().world_size if self._is_replica else 1

    @property
    def num_processes(self) -> int:
        """Number of processes on this machine."""
        return 1 if self.spmd else super().num_processes

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any] | None:
        """Every process sees its own part of the data."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    @property
    def _is_replica(self) -> bool:
        """Is this one of several processes? Before they are started, nobody may ask torch_xla."""
        return self._is_launched and not self.spmd

    def set_world_ranks(self) -> None:
        """Tell this process its rank, which torch_xla knows."""
        rank_zero_only.rank = self.global_rank

    def configure_launcher(self) -> Launcher | None:
        """Starts a process for each device of this machine; None where this process does everything.

        Raises:
            ConfigurationError: If there cannot be one process for each device.
        """
        if self.num_processes * self.num_nodes == 1:
            return None
        if self.spmd:
            raise ConfigurationError(
                f"{type(self).__name__}(spmd=True) with num_nodes={self.num_nodes} runs on one machine. The part of"
                " the batch that each machine has would have to be put together, which is not built."
                " Pass num_nodes=1, or leave out spmd=True."
            )
        _check_one_device_per_process(type(self).__name__, self.num_processes)
        return XLALauncher(self.num_processes)

    def setup_environment(self) -> None:
        """Take the device of this process, or make a mesh of all."""
        self._is_launched = True
        if self.spmd and self._mesh is None:
            self._mesh = XLAMesh.of_this_machine(len(self.parallel_devices or ()), type(self).__name__)
        self.set_world_ranks()
        if self.accelerator is not None:
            self.accelerator.setup_device(self.root_device)

    def batch_to_device(self, batch: Any, device: torch.device | None = None) -> Any:
        """The batch on the device; with `spmd=True`, its first axis divided over all."""
        batch = super().batch_to_device(batch, device)
        return batch if self._mesh is None else self._mesh.divide_batch(batch)

    # ---- communicate

    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        """The tensors of all processes on a new first axis: (processes, *tensor.shape).

        Raises:
            ConfigurationError: For a group.
        """
        _check_no_group(group, "all_gather")
        if self.world_size == 1:
            return tensor
        here = tensor.to(self.root_device).unsqueeze(0)
        if sync_grads and torch.is_grad_enabled():
            functions: Any = require("torch_xla.core.functions", purpose="all_gather(sync_grads=True)")
            gathered: Tensor = functions.all_gather(here, dim=0)
        else:
            gathered = _model().all_gather(here.detach(), dim=0)
        return gathered.to(tensor.device)

    def all_reduce(self, output: Any, group: Any | None = None, reduce_op: ReduceOp | None = None) -> Any:
        """The reduction of `output` over all processes, their sum by default; what is no tensor comes back as it is.

        Raises:
            ConfigurationError: For a group, or an operation that torch_xla does not have.
        """
        _check_no_group(group, "all_reduce")
        name = _operation(reduce_op)
        if self.world_size == 1 or not isinstance(output, Tensor):
            return output
        here = output.detach().to(self.root_device)
        reduced: Tensor = _model().all_reduce(_OPERATIONS[name], here.int() if here.dtype == torch.bool else here)
        return (reduced / self.world_size if name in ("mean", "avg") else reduced).to(output.device)

    def barrier(self, name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Wait until all processes are here."""
        if self.world_size > 1:
            _model().rendezvous(name or "barrier")

    def gather_objects(self, obj: T) -> list[T]:
        """The `obj` of every process, by rank, in every process; it must pickle."""
        if self.world_size == 1:
            return [obj]
        # They are processes of this very run.
        return [pickle.loads(text) for text in _model().rendezvous("gather_objects", pickle.dumps(obj))]

    def broadcast(self, obj: TBroadcast, src: int = 0) -> TBroadcast:
        """The `obj` of rank `src`; it must pickle."""
        if self.world_size == 1:
            return obj
        result: TBroadcast = self.gather_objects(obj if self.global_rank == src else None)[src]  # type: ignore[assignment]
        return result

    def shared_store(self) -> Any:
        """A key-value store of all processes, over a connection of its own; None when alone, and on several machines.

        For what cannot wait for a collective. The launcher keeps it.
        """
        if self.world_size == 1 or self.num_nodes > 1:
            return None
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._num_stores += 1
        store = dist.TCPStore(address, port, self.world_size, is_master=False)  # type: ignore[attr-defined]
        return dist.PrefixStore(f"fulmen/xla{self._num_stores}", store)  # type: ignore[attr-defined]

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Do all processes say yes (or any, with `all=False`)?"""
        if self.world_size == 1:
            return decision
        vote = torch.tensor(int(decision), device=self.root_device)
        return bool(self.all_reduce(vote, reduce_op="min" if all else "max"))


class XLAStrategy(XLAParallelStrategy):
    """Data parallel on XLA devices.

    Without `spmd`, every device has a process with a replica of the module, trained on its part of the data. With
    `spmd=True` there is one process: it sees one device and whole batches, and XLA divides these over all devices.

    Args:
        accelerator: The kind of hardware.
        parallel_devices: The devices of this machine.
        checkpoint_io: A `XLACheckpointIO`, or one that wraps it.
        precision: A `XLAPrecision`.
        sync_module_states: Let all replicas begin with the parameters and buffers of the first.
        spmd: One process for all devices of one machine. Batches are as large as all devices together shall take.

    Raises:
        MissingPackageError: If torch_xla is not installed.
    """

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
        sync_module_states: bool = True,
        *,
        spmd: bool = False,
    ) -> None:
        check_flag(self, "sync_module_states", sync_module_states)
        super().__init__(accelerator, parallel_devices, checkpoint_io, precision, spmd=spmd)
        self._sync_module_states = sync_module_states
        self._exchanges = True
        self._backward_id = -1
        self._waiting: list[Parameter] = []
        self._hooks: dict[Parameter, RemovableHandle] = {}

    def setup_module(self, module: Module) -> Module:
        """The module; from now on, its gradients are averaged over the replicas at the end of each backward."""
        if self._mesh is not None:
            self._mesh.replicate(module)
        if self.world_size > 1:
            trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
            is_new = not any(parameter in self._hooks for parameter in trained)
            if self._sync_module_states and is_new:
                self._take_values_of_rank_zero(module)
            for parameter in trained:
                if parameter not in self._hooks:
                    self._hooks[parameter] = parameter.register_post_accumulate_grad_hook(self._has_gradient)
        self.end_graph()
        return module

    def teardown(self) -> None:
        """Release what the run held; gradients are averaged no more."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        super().teardown()

    def no_backward_sync(self, module: Module, enabled: bool) -> AbstractContextManager[Any]:
        """Backward inside exchanges no gradients, if `enabled`."""
        return self._without_exchange() if enabled and self.world_size > 1 else nullcontext()

    @contextmanager
    def _without_exchange(self) -> Iterator[None]:
        before, self._exchanges = self._exchanges, False
        try:
            yield
        finally:
            self._exchanges = before

    def _has_gradient(self, parameter: Tensor) -> None:
        """A hook: backward has added to the gradient of this parameter."""
        if not self._exchanges:
            return
        backward_id = torch._C._current_graph_task_id()
        if backward_id != self._backward_id:
            self._backward_id, self._waiting = backward_id, []
            torch.autograd.Variable._execution_engine.queue_callback(self._average)
        self._waiting.append(parameter)  # type: ignore[arg-type]  # hooks are called with their parameter

    def _average(self) -> None:
        # All at once. A mean that is averaged again, in the last backward of an accumulation, stays what it is.
        gradients = [parameter.grad for parameter in self._waiting if parameter.grad is not None]
        self._waiting = []
        _model().all_reduce("sum", gradients, scale=1.0 / self.world_size)

    def _take_values_of_rank_zero(self, module: Module) -> None:
        # Moved, not made there: all replicas must have the same graph, so no value may be a constant of it.
        is_source = torch.tensor(self.global_rank == 0).to(self.root_device)
        with torch.no_grad():
            for tensor in _tensors_of(module):
                own = tensor.int() if tensor.dtype == torch.bool else tensor
                tensor.copy_(_model().all_reduce("sum", torch.where(is_source, own, torch.zeros_like(own))))

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[type[Strategy]]) -> None:
        """Register "xla"."""
        strategy_registry.register("xla", cls, description="A replica per XLA device.")


def _tensors_of(module: Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _not_launched(strategy: Strategy, name: str, why: str) -> NotLaunchedError:
    return NotLaunchedError(
        f"{type(strategy).__name__}.{name} was read before the run began. {why}. Call `fabric.launch()` first."
    )


def _check_one_device_per_process(name: str, num_processes: int) -> None:
    if os.environ.get("PJRT_DEVICE", "").upper() == "CPU":
        raise ConfigurationError(
            f"{name} with devices={num_processes} cannot run where PJRT_DEVICE=CPU. torch_xla has no working exchange"
            f" between replicas on the CPU. Pass devices=1, or {name}(spmd=True), which computes on all of them."
        )
    tpu: Any = require("torch_xla._internal.tpu", purpose=f"{name}()")
    has = int(tpu.num_local_processes())
    if num_processes != has:
        raise ConfigurationError(
            f"{name} with devices={num_processes} cannot give each device a process: torch_xla starts {has} here, one"
            " per chip. The chips of a TPU v2 or v3 have two devices, which would share a process and all that is in"
            f" it. Pass devices='auto' or devices=1, or {name}(spmd=True), which computes on all of them."
        )


def _check_no_group(group: object, method: str) -> None:
    if group is not None:
        raise ConfigurationError(
            f"{method}(group={group!r}) was called on XLA devices. Their replicas form one group only."
            " Leave the group out."
        )


def _operation(reduce_op: ReduceOp | None) -> str:
    name = "sum" if reduce_op is None else str(reduce_op).rpartition(".")[2].lower()
    if name not in _OPERATIONS:
        raise ConfigurationError(
            f"reduce_op={reduce_op!r} is no operation of XLA devices. It says how the values of all processes become"
            f" one. Pass one of {', '.join(map(repr, _OPERATIONS))}."
        )
    return name


def _xla() -> Any:
    return require("torch_xla", purpose="A strategy for XLA devices")


def _model() -> Any:
    return require("torch_xla.core.xla_model", purpose="A strategy for XLA devices", pip="torch_xla")
