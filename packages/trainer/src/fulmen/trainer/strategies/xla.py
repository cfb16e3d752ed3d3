"""Bound: a replica of the module per XLA device, or one that XLA spreads over all devices of this machine."""

from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.arguments import check_flag
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.xla.strategy import XLAParallelStrategy as FabricXLAParallelStrategy
from fulmen.fabric.strategies.xla.strategy import XLAStrategy as FabricXLAStrategy
from fulmen.trainer.strategies.ddp import DDPStrategy
from fulmen.trainer.strategies.on_xla import OnXLA

T = TypeVar("T")


class XLAStrategy(OnXLA, DDPStrategy):
    """Data parallel on XLA devices.

    Args:
        accelerator: See `Strategy`.
        parallel_devices: The devices of this machine.
        checkpoint_io: A `XLACheckpointIO`, or one that wraps it.
        precision_plugin: A `XLAPrecision`.
        debug: Let torch_xla report where graphs end and why they are compiled.
        sync_module_states: Let all replicas begin with the parameters and buffers of the first.
        spmd: One process for all devices of one machine. Batches are as large as all devices together shall take.

    Raises:
        MissingPackageError: If torch_xla is not installed.
    """

    strategy_name = "xla"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        debug: bool = False,
        sync_module_states: bool = True,
        *,
        spmd: bool = False,
    ) -> None:
        check_flag(self, "debug", debug)
        self.debug = debug
        self._adopt(
            FabricXLAStrategy(
                accelerator, parallel_devices, checkpoint_io, precision_plugin, sync_module_states, spmd=spmd
            )
        )

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[Any]) -> None:
        """Register "xla" and "xla_debug"."""
        strategy_registry.register("xla", cls, "A replica per XLA device.")
        strategy_registry.register("xla_debug", cls, "As xla; torch_xla reports what it does.", debug=True)

    @property
    def is_started_by_others(self) -> bool:
        """False: our launcher starts the processes, and ends them together."""
        return False

    def reduce(self, output: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """`output` reduced over all processes."""
        return self.fabric_strategy.all_reduce(output, group=group, reduce_op=reduce_op)

    def reduce_tensors(self, tensors: list[Tensor], op: str = "mean") -> list[Tensor]:
        """All `tensors` reduced over all processes; together they are one graph."""
        return [self.reduce(tensor, reduce_op=op) for tensor in tensors]

    def gather_objects(self, obj: T) -> list[T]:
        """`obj` of every process, by rank, in every process. Objects are pickled: not for the hot path."""
        return self._fabric_xla.gather_objects(obj)

    def shared_store(self) -> Any:
        """A key-value store of all processes of one machine; None when alone, and on a pod."""
        return self._fabric_xla.shared_store()

    @property
    def _fabric_xla(self) -> FabricXLAParallelStrategy:
        return cast(FabricXLAParallelStrategy, self.fabric_strategy)
