"""What a bound strategy hands on to fabric's as it is: facts about the machine, and what all processes do together."""

from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor
from torch.optim import Optimizer

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.collectives.process_group import is_initialized, shared_store
from fulmen.fabric.collectives.tensors import reduce_tensors
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.strategies.base import Strategy as FabricStrategy
from fulmen.trainer.core.checkpoint_form import check_form

T = TypeVar("T")


class FabricBacked:
    """Has a fabric strategy, and answers for it."""

    fabric_strategy: FabricStrategy

    # What is known of the machine and the processes

    @property
    def accelerator(self) -> Accelerator | None:
        """The kind of hardware."""
        return self.fabric_strategy.accelerator

    @accelerator.setter
    def accelerator(self, accelerator: Accelerator) -> None:
        self.fabric_strategy.accelerator = accelerator

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """How checkpoints are written and read."""
        return self.fabric_strategy.checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, checkpoint_io: CheckpointIO) -> None:
        self.fabric_strategy.checkpoint_io = checkpoint_io

    @property
    def precision_plugin(self) -> Precision:
        """How numbers are held and computed."""
        return self.fabric_strategy.precision

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision) -> None:
        self.fabric_strategy.precision = precision_plugin

    @property
    def precision(self) -> str:
        """The name of the precision, such as "bf16-mixed"."""
        return str(self.precision_plugin.precision)

    @property
    def root_device(self) -> torch.device:
        """The device of this process."""
        return self.fabric_strategy.root_device

    @property
    def global_rank(self) -> int:
        """The rank of this process among all."""
        return self.fabric_strategy.global_rank

    @property
    def local_rank(self) -> int:
        """The rank of this process among those of its machine."""
        return self.fabric_strategy.local_rank

    @property
    def node_rank(self) -> int:
        """The rank of this machine."""
        return self.fabric_strategy.node_rank

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return self.fabric_strategy.world_size

    @property
    def is_global_zero(self) -> bool:
        """Is this the process that prints, logs and saves?"""
        return self.fabric_strategy.is_global_zero

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any] | None:
        """`num_replicas` and `rank` for a distributed sampler; None if every process reads all data."""
        return self.fabric_strategy.distributed_sampler_kwargs

    @property
    def data_share(self) -> tuple[int, int]:
        """Which share of the data this process sees, of how many: on a mesh, not its rank of all processes."""
        share = self.distributed_sampler_kwargs
        return (
            (self.global_rank, self.world_size) if share is None else (int(share["rank"]), int(share["num_replicas"]))
        )

    @property
    def own_values(self) -> tuple[int, int]:
        """Among the processes that compute different values, which is this one, and how many are there?"""
        return self.data_share

    @property
    def updates_metrics(self) -> bool:
        """Do metric objects see data in this process?"""
        return True

    def gather_different(self, obj: T) -> list[T]:
        """`obj` of the processes that compute different values, in every process. Pickled: not for the hot path."""
        found = self.gather_objects(obj)
        return found if self.distinct_ranks is None else [found[rank] for rank in self.distinct_ranks]

    @property
    def distinct_ranks(self) -> list[int] | None:
        """The processes whose values count, where some see the same data as others; None: all."""
        return None

    @property
    def launcher(self) -> Any:
        """What starts the other processes; None if nothing has to be started."""
        return self.fabric_strategy.launcher

    def configure_launcher(self) -> Any:
        """Make the launcher, once the devices are known."""
        return self.fabric_strategy.configure_launcher()

    # All processes together

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """`tensor` reduced over all processes."""
        return self.fabric_strategy.all_reduce(tensor, group=group, reduce_op=reduce_op)

    def reduce_tensors(self, tensors: list[Tensor], op: str = "mean") -> list[Tensor]:
        """All `tensors` reduced over all processes, in one collective for each type of number.

        Args:
            tensors: The same shapes and types in every process, in the same order.
            op: "mean", "sum", "min" or "max". The mean of integers is a float.
        """
        if self.world_size == 1:
            return tensors
        if type(self).reduce is FabricBacked.reduce:
            return reduce_tensors(tensors, op=op)
        return [self.reduce(tensor, reduce_op=op) for tensor in tensors]

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """`tensor` of every process, stacked in a new first axis."""
        return self.fabric_strategy.all_gather(tensor, group=group, sync_grads=sync_grads)

    def gather_objects(self, obj: T) -> list[T]:
        """`obj` of every process, by rank, in every process. Objects are pickled: not for the hot path."""
        if not is_initialized():
            return [obj]
        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, obj)
        return found

    def barrier(self, name: str | None = None) -> None:
        """Wait for all processes."""
        self.fabric_strategy.barrier(name)

    def broadcast(self, obj: T, src: int = 0) -> T:
        """`obj` of the process `src`, in every process."""
        return self.fabric_strategy.broadcast(obj, src)

    def shared_store(self) -> Any:
        """A key-value store of all processes, for what cannot wait for a collective; None when alone."""
        return shared_store()

    @property
    def is_started_by_others(self) -> bool:
        """Did torchrun or a cluster manager start the processes? Then no launcher of ours ends them together."""
        environment = getattr(self.fabric_strategy, "cluster_environment", None)
        return environment is not None and not isinstance(environment, LightningEnvironment)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Do all processes say yes? With `all=False`: does any?"""
        return self.fabric_strategy.reduce_boolean_decision(decision, all=all)

    # State

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state of one optimizer."""
        return self.fabric_strategy.get_optimizer_state(optimizer)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; only the first process writes."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, to the CPU.

        Args:
            checkpoint_path: Where it is.
            weights_only: False allows any pickled object, which can run code; None is True.
        """
        found: Any = self.checkpoint_io.load_checkpoint(
            checkpoint_path, map_location=torch.device("cpu"), weights_only=weights_only
        )
        check_form(found, repr(checkpoint_path))
        return dict(found)

    @property
    def reads_alone(self) -> bool:
        """Can one process read a checkpoint while the others wait? Not where reading takes all of them together."""
        return type(self).load_checkpoint is FabricBacked.load_checkpoint

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Delete a checkpoint; only the first process does."""
        if self.is_global_zero:
            self.checkpoint_io.remove_checkpoint(filepath)
