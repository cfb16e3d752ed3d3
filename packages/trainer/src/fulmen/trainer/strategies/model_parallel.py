"""Bound: the module's `configure_model` splits it over a mesh of processes."""

from datetime import timedelta
from typing import Any, Literal, cast

from torch.distributed.device_mesh import DeviceMesh
from torch.nn import Module

from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy as FabricModelParallelStrategy
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.signature import is_overridden
from fulmen.trainer.strategies.sharded import ShardedStrategy


class ModelParallelStrategy(ShardedStrategy):
    """Tensor parallel and data parallel, as the module says.

    Processes form a mesh of two axes, which the module finds as `self.device_mesh` in `configure_model`. There it
    splits its layers, with `parallelize_module` over `self.device_mesh["tensor_parallel"]` and with `fully_shard` over
    `self.device_mesh["data_parallel"]`. Processes in one row of "tensor_parallel" see the same batches.

    Args:
        data_parallel_size: Size of the first axis; "auto" is the number of machines, or what is left by the other.
        tensor_parallel_size: Size of the second axis; "auto" is the number of processes on a machine, or what is left.
        save_distributed_checkpoint: Save a folder to which every process writes its shards, and not one file.
        process_group_backend: "gloo", "nccl", ...; None is the one that fits the device.
        timeout: How long a collective may take.
    """

    strategy_name = "modelparallel"

    _module_splits_itself = False  # one of fabric's brings a function that splits the module

    def __init__(
        self,
        data_parallel_size: Literal["auto"] | int = "auto",
        tensor_parallel_size: Literal["auto"] | int = "auto",
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = timedelta(seconds=1800),  # a constant
    ) -> None:
        self._module_splits_itself = True
        self._adopt(
            FabricModelParallelStrategy(
                configure_model,
                data_parallel_size=data_parallel_size,
                tensor_parallel_size=tensor_parallel_size,
                save_distributed_checkpoint=save_distributed_checkpoint,
                process_group_backend=process_group_backend,
                timeout=timeout,
            )
        )

    @property
    def device_mesh(self) -> DeviceMesh:
        """The processes, with the axes "data_parallel" and "tensor_parallel"; known when they have been started."""
        return cast(FabricModelParallelStrategy, self.fabric_strategy).device_mesh

    def connect(self, model: LightningModule) -> None:
        """Bind the module.

        Raises:
            ConfigurationError: If it does not say how it is split.
        """
        if self._module_splits_itself and not is_overridden("configure_model", model, LightningModule):
            raise ConfigurationError(
                f"Trainer(strategy=ModelParallelStrategy(...)) cannot run {type(model).__name__}, which has no"
                " configure_model(). There a module splits its layers over self.device_mesh."
                " Define configure_model(self), and call parallelize_module or fully_shard in it."
            )
        super().connect(model)

    @property
    def distinct_ranks(self) -> list[int] | None:
        """One of each group of processes that see the same batches, where there are such groups."""
        ranks: list[int] = self.device_mesh.mesh[:, 0].tolist()  # data parallel, tensor parallel
        return ranks if len(ranks) < self.world_size else None


def configure_model(module: Module, device_mesh: DeviceMesh) -> Any:
    """The module as it is: the run has called its `configure_model` before."""
    return module
