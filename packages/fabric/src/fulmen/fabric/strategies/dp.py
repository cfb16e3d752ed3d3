"""A replica of the model per GPU, all in one process; each batch is split over them.

`DDPStrategy` is faster and does more. This one is for programs that cannot run as several processes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import DataParallel, Module

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.forward_redirect import redirect_to_replicas
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy, TBroadcast
from fulmen.fabric.strategies.parallel import ParallelStrategy
from fulmen.fabric.trees import map_tensors
from fulmen.fabric.types import ReduceOp


class DataParallelStrategy(ParallelStrategy):
    """Data parallel in one process, by `torch.nn.DataParallel`.

    The module's output holds the results of all devices, joined on the first axis; `all_reduce` makes one of them.

    Args:
        accelerator: The kind of hardware.
        parallel_devices: The GPUs. A single device of any kind works, too.
        checkpoint_io: Writes and reads checkpoints.
        precision: How numbers are held and computed.
    """

    is_distributed: ClassVar[bool] = False

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            checkpoint_io=checkpoint_io,
            precision=precision,
        )

    @property
    def root_device(self) -> torch.device:
        """The first device, where the module and its gradients are.

        Raises:
            ConfigurationError: If there is none.
        """
        if not self.parallel_devices:
            raise ConfigurationError(
                "DataParallelStrategy() has no devices. Each batch is split over them."
                " Pass parallel_devices=[torch.device('cuda', 0), ...], or let Fabric(devices=...) choose them."
            )
        return self.parallel_devices[0]

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any] | None:
        """None: the one process sees all data."""
        return None

    def module_to_device(self, module: Module) -> None:
        """Move the module to the first device."""
        module.to(self.root_device)

    def setup_module(self, module: Module) -> Module:
        """The module in `DataParallel`.

        Raises:
            ConfigurationError: If there are several devices and they are no GPUs.
        """
        kind, devices = self.root_device.type, list(self.parallel_devices or ())
        if len(devices) > 1 and kind != "cuda":
            raise ConfigurationError(
                f"DataParallelStrategy(parallel_devices=[{', '.join(map(str, devices))}]) cannot split a batch over"
                f" devices of the kind {kind!r}. torch.nn.DataParallel is for CUDA GPUs."
                " Pass strategy='ddp', or one device."
            )
        return _DataParallel(module, device_ids=devices if kind == "cuda" else None)

    def batch_to_device(self, batch: Any, device: torch.device | None = None) -> Any:
        """The batch as it is: the module splits it, and moves each part."""
        return batch

    def all_reduce(self, collection: Any, group: Any | None = None, reduce_op: ReduceOp | None = "mean") -> Any:
        """Each tensor of the collection as one number: the reduction of its elements, which came from all devices.

        Args:
            collection: Tensors in any nesting.
            group: None; there is one process.
            reduce_op: "mean" (which keeps the type of the tensor), "sum", "min", "max" or "product".

        Raises:
            ConfigurationError: For another operation.
        """
        name = "sum" if reduce_op is None else str(reduce_op).rpartition(".")[2].lower()
        if name not in _REDUCTIONS:
            raise ConfigurationError(
                f"reduce_op={reduce_op!r} is unknown to strategy='dp'. It says how the values of all devices become"
                f" one. Pass one of {', '.join(map(repr, _REDUCTIONS))}."
            )
        return map_tensors(collection, _REDUCTIONS[name])

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: there is one process."""

    def broadcast(self, obj: TBroadcast, src: int = 0) -> TBroadcast:
        """The object itself."""
        return obj

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """The decision itself."""
        return decision

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[type[Strategy]]) -> None:
        """Register "dp"."""
        strategy_registry.register("dp", cls, description="A replica per GPU, all in one process.")


class _DataParallel(DataParallel[Module]):
    """Also splits the work of a method that is called through forward."""

    def replicate(self, module: Module, device_ids: Any) -> list[Module]:
        replicas = super().replicate(module, device_ids)
        redirect_to_replicas(module, replicas)
        return replicas


def _mean(tensor: Tensor) -> Tensor:
    return tensor.mean() if tensor.is_floating_point() else tensor.float().mean().to(tensor.dtype)


_REDUCTIONS: dict[str, Any] = {
    "mean": _mean,
    "avg": _mean,
    "sum": torch.sum,
    "min": torch.min,
    "max": torch.max,
    "product": torch.prod,
}
