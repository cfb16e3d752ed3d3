"""What all strategies with several processes share: ranks and communication."""

from __future__ import annotations

import os
from abc import ABC
from datetime import timedelta
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.arguments import check_part, check_text
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.checkpoint_io.ranks import Ranks
from fulmen.fabric.collectives import process_group, tensors
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.launchers.base import Launcher
from fulmen.fabric.launchers.script import ScriptLauncher
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.fabric.strategies.base import Strategy, TBroadcast
from fulmen.fabric.types import PathLike, ReduceOp


class ParallelStrategy(Strategy, ABC):
    """One process per device.

    Args:
        accelerator: The kind of hardware.
        parallel_devices: The devices of this node, one per process.
        cluster_environment: Says which process this is, and where the processes meet.
        checkpoint_io: Writes and reads checkpoints.
        precision: How numbers are held and computed.
    """

    is_distributed: ClassVar[bool] = True

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(accelerator=accelerator, checkpoint_io=checkpoint_io, precision=precision)
        check_part(self, "cluster_environment", cluster_environment, method="global_rank", kind="ClusterEnvironment")
        if parallel_devices is not None and not (
            isinstance(parallel_devices, list | tuple)
            and all(isinstance(device, torch.device) for device in parallel_devices)
        ):
            raise ArgumentTypeError(
                f"{type(self).__name__}(parallel_devices={parallel_devices!r}) is no list of devices. Each of them gets"
                " a process or a replica. Pass [torch.device('cuda', 0), ...], or leave it out and pass devices=... to"
                " Fabric or Trainer."
            )
        self._parallel_devices = parallel_devices
        self._num_nodes = 1
        self.cluster_environment = cluster_environment

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        """The devices of this node."""
        return self._parallel_devices

    @parallel_devices.setter
    def parallel_devices(self, parallel_devices: list[torch.device] | None) -> None:
        self._parallel_devices = parallel_devices

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self._num_nodes

    @num_nodes.setter
    def num_nodes(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes

    @property
    def num_processes(self) -> int:
        """Number of processes on this node."""
        return len(self._parallel_devices or ())

    @property
    def root_device(self) -> torch.device:
        """The device of this process.

        Raises:
            ConfigurationError: If there is none for its local rank.
        """
        devices = self._parallel_devices or []
        if self.local_rank >= len(devices):
            raise ConfigurationError(
                f"devices={len(devices)} leaves none for local rank {self.local_rank}."
                " Every process of a node has a device of its own."
                " Pass as many devices as processes were started on a node."
            )
        return devices[self.local_rank]

    @property
    def global_rank(self) -> int:
        """Rank of this process over all nodes."""
        return self.cluster_environment.global_rank() if self.cluster_environment is not None else 0

    @property
    def local_rank(self) -> int:
        """Rank of this process within its node."""
        return self.cluster_environment.local_rank() if self.cluster_environment is not None else 0

    @property
    def node_rank(self) -> int:
        """Rank of this node."""
        return self.cluster_environment.node_rank() if self.cluster_environment is not None else 0

    @property
    def world_size(self) -> int:
        """Number of processes over all nodes."""
        return self.cluster_environment.world_size() if self.cluster_environment is not None else 1

    @property
    def is_global_zero(self) -> bool:
        """Is this the process of rank 0?"""
        return self.global_rank == 0

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any] | None:
        """Every process sees its own part of the data."""
        return {"num_replicas": self.num_nodes * self.num_processes, "rank": self.global_rank}

    def set_world_ranks(self) -> None:
        """Tell the environment the rank of this process and the number of all."""
        environment = self.cluster_environment
        if environment is not None:
            environment.set_global_rank(self.node_rank * self.num_processes + self.local_rank)
            environment.set_world_size(self.num_nodes * self.num_processes)
        rank_zero_only.rank = self.global_rank

    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        """The tensors of all processes on a new first axis: (processes, *tensor.shape)."""
        return tensors.gather_even(tensor, group, sync_grads)

    def all_reduce(self, tensor: Any, group: Any | None = None, reduce_op: ReduceOp | None = "mean") -> Any:
        """The reduction of the tensor over all processes; what is no tensor comes back as it is."""
        return tensors.reduce_tensor(tensor, group, reduce_op) if isinstance(tensor, Tensor) else tensor

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait until all processes are here."""
        process_group.barrier(self.root_device)

    def broadcast(self, obj: TBroadcast, src: int = 0) -> TBroadcast:
        """The `obj` of rank `src`; it must pickle."""
        result: TBroadcast = process_group.broadcast_object(obj, src, self.root_device)
        return result

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Do all processes say yes (or any, with `all=False`)?"""
        if not process_group.is_initialized():
            return decision
        votes = torch.tensor(int(decision), device=self.root_device)
        return bool(tensors.reduce_tensor(votes, op="min" if all else "max"))

    def read_checkpoint(self, path: PathLike, weights_only: bool | None = None) -> dict[str, Any]:
        """What is in a file, on the CPU. All processes must call it: they wait for what one of them still writes."""
        self.wait_for_saves()
        return super().read_checkpoint(path, weights_only)

    def wait_for_saves(self) -> None:
        """Wait until no process has a save under way. All must call it; if one has failed, all hear of it."""
        if self.checkpoint_io.saves_in_background:
            Ranks().each(self.checkpoint_io.wait)

    def teardown(self) -> None:
        """Release what the run held. The process group stays open for the next run of the program."""
        super().teardown()
        if self.cluster_environment is not None:
            self.cluster_environment.teardown()


class Parts(TypedDict, total=False):
    """The arguments of `ProcessGroupStrategy`."""

    accelerator: Accelerator | None
    parallel_devices: list[torch.device] | None
    cluster_environment: ClusterEnvironment | None
    checkpoint_io: CheckpointIO | None
    precision: Precision | None
    process_group_backend: str | None
    timeout: timedelta | None


class ProcessGroupStrategy(ParallelStrategy, ABC):
    """One process per device, joined in the process group of `torch.distributed`.

    Args:
        accelerator, parallel_devices, cluster_environment, checkpoint_io, precision: See `ParallelStrategy`.
        process_group_backend: "gloo", "nccl", ...; by default the one for the device.
        timeout: How long a collective waits for the other processes.
    """

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = process_group.default_pg_timeout,
    ) -> None:
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision=precision,
        )
        if timeout is not None and not isinstance(timeout, timedelta):
            raise ArgumentTypeError(
                f"{type(self).__name__}(timeout={timeout!r}) is a {type(timeout).__name__}. It says how long a"
                " collective waits. Pass a datetime.timedelta, such as timedelta(minutes=5)."
            )
        check_text(self, "process_group_backend", process_group_backend, "It says by what the processes communicate.")
        self._process_group_backend = process_group_backend
        self._timeout = timeout

    @property
    def process_group_backend(self) -> str | None:
        """The backend: what was asked for, or what fits the device."""
        if self._process_group_backend is None and self.parallel_devices:
            return process_group.default_backend(self.root_device)
        return self._process_group_backend

    def joined_environment(self) -> ClusterEnvironment:
        """The environment; one machine without a cluster manager if none was given."""
        if self.cluster_environment is None:
            self.cluster_environment = LightningEnvironment()
        return self.cluster_environment

    def configure_launcher(self) -> Launcher:
        """Runs the program again in every process.

        Raises:
            ConfigurationError: If torch has no such backend: before a process is started.
        """
        if self._process_group_backend is not None:
            process_group.check_backend(self._process_group_backend)
        return ScriptLauncher(self.joined_environment(), self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        """Take the device and join the other processes."""
        environment = self.joined_environment()
        self.set_world_ranks()
        super().setup_environment()
        _share_threads(self.num_processes)
        backend = self.process_group_backend or "gloo"
        device_id = self.root_device if backend == "nccl" else None
        process_group.init_distributed(environment, backend, self._timeout, device_id)


def _share_threads(num_processes: int) -> None:
    """Processes that each use all cores slow each other down; what the user has set stays."""
    if num_processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Never more than now: forked processes are held at one.
        torch.set_num_threads(min(torch.get_num_threads(), max(1, num_cores // num_processes)))
