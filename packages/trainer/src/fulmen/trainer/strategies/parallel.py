"""Bound: what all strategies with several processes share."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import torch

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.strategies.ddp import DDPStrategy as FabricDDPStrategy
from fulmen.fabric.strategies.parallel import ParallelStrategy as FabricParallelStrategy
from fulmen.trainer.strategies.base import Strategy


class ParallelStrategy(Strategy):
    """The module runs in several processes, unwrapped. A base for strategies that say how gradients become one.

    Args:
        accelerator, checkpoint_io, precision_plugin: See `Strategy`.
        parallel_devices: The devices of this machine, one for each of its processes.
        cluster_environment: Who tells this process its rank, and where the first one is.
    """

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        self._adopt(
            # Fabric's DDP starts and joins the processes; nothing is wrapped unless a subclass says so.
            FabricDDPStrategy(
                accelerator=accelerator,
                parallel_devices=parallel_devices,
                cluster_environment=cluster_environment,
                checkpoint_io=checkpoint_io,
                precision=precision_plugin,
            )
        )

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        """The devices of this machine, one for each of its processes."""
        return self._fabric_parallel.parallel_devices

    @parallel_devices.setter
    def parallel_devices(self, parallel_devices: list[torch.device] | None) -> None:
        self._fabric_parallel.parallel_devices = parallel_devices

    @property
    def cluster_environment(self) -> ClusterEnvironment | None:
        """Who tells this process its rank, and where the first one is."""
        return self._fabric_parallel.cluster_environment

    @cluster_environment.setter
    def cluster_environment(self, cluster_environment: ClusterEnvironment) -> None:
        self._fabric_parallel.cluster_environment = cluster_environment

    @property
    def num_nodes(self) -> int:
        """How many machines."""
        return self._fabric_parallel.num_nodes

    @num_nodes.setter
    def num_nodes(self, num_nodes: int) -> None:
        self._fabric_parallel.num_nodes = num_nodes

    @property
    def num_processes(self) -> int:
        """How many processes on this machine."""
        return self._fabric_parallel.num_processes

    @property
    def process_group_backend(self) -> str | None:
        """The backend of the process group, such as "gloo"; None if there is no group."""
        backend: str | None = getattr(self._fabric_parallel, "process_group_backend", None)
        return backend

    def setup_environment(self) -> None:
        """Take the device and join the other processes."""
        self.setup_distributed()

    def setup_distributed(self) -> None:
        """Learn the rank of this process, and open the process group."""
        self.set_world_ranks()
        self.fabric_strategy.setup_environment()

    def set_world_ranks(self) -> None:
        """Tell the environment the rank of this process and the number of all."""
        self._fabric_parallel.set_world_ranks()

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Inside, backward leaves the gradients of this process alone."""
        with self.skip_gradient_sync(True):
            yield

    @property
    def _fabric_parallel(self) -> FabricParallelStrategy:
        # Every fabric strategy that a subclass of this class binds is one.
        return cast(FabricParallelStrategy, self.fabric_strategy)
