"""Bound: a plan, or the module's `configure_model`, splits it over a mesh of processes."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, cast

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import Module

from fulmen.fabric.class_names import class_name
from fulmen.fabric.strategies.base import Strategy as FabricStrategy
from fulmen.fabric.strategies.mesh_axes import PIPELINE
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy as FabricModelParallelStrategy
from fulmen.fabric.strategies.pipeline.cuts import Pipeline, cut_module
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.metrics.scalars import is_metric
from fulmen.trainer.signature import is_overridden
from fulmen.trainer.strategies import in_stages
from fulmen.trainer.strategies.half_summed import Gradients
from fulmen.trainer.strategies.sharded import ShardedStrategy


class ModelParallelStrategy(ShardedStrategy):
    """Tensor parallel, sharded and replicated data parallel over one mesh, as a plan or the module says.

    Processes form a mesh, ordered along "replicate" (if there are replicas), "data_parallel" and "tensor_parallel".
    Those along the last axis see the same batches. Without a plan, the module finds the mesh as `self.device_mesh` in
    `configure_model`, and splits its layers there, with `parallelize_module` over `self.device_mesh["tensor_parallel"]`
    and with `fully_shard` over `self.device_mesh["data_parallel"]`.

    Args:
        data_parallel_size: Processes over which parameters are split; "auto" is the number of machines, or what is
            left by the others.
        tensor_parallel_size: Processes over which tensors are split; "auto" is the number of processes on a machine,
            or what is left; 1 for a plan that splits none.
        save_distributed_checkpoint: Save a folder to which every process writes its shards, and not one file.
        process_group_backend: "gloo", "nccl", ...; None is the one that fits the device.
        timeout: How long a collective may take.
        plan: Patterns of names of modules or parameters, and for each how it is split: "column", "row", "sequence",
            "replicate", "shard". See `fulmen.fabric.strategies.plan`.
        replicate_size: Replicas of what is split; "auto" is the number of machines.
        context_parallel_size: So many neighbours along "data_parallel" see the same batches, each its part of the
            sequence. The module asks for it: `batch = self.trainer.strategy.part_of_sequence(batch)`. Attention that
            the plan calls "ring" or "ulysses" is over all of it.
        pipeline: Cuts the module into stages, such as `Pipeline(["model.blocks.2"], micro_batches=8)`; steps stay as
            they are, and get a micro-batch at a time. Takes a plan too, or none.
        pipeline_parallel_size: Processes along "pipeline_parallel", each with some of the stages; "auto" is one for
            each stage, or for each two where the schedule is for several.
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
        *,
        plan: Mapping[str, Any] | None = None,
        replicate_size: Literal["auto"] | int = 1,
        context_parallel_size: int = 1,
        pipeline: Pipeline | None = None,
        pipeline_parallel_size: Literal["auto"] | int = "auto",
    ) -> None:
        self._module_splits_itself = plan is None and pipeline is None
        self._adopt(
            FabricModelParallelStrategy(
                configure_model if self._module_splits_itself else None,
                data_parallel_size=data_parallel_size,
                tensor_parallel_size=tensor_parallel_size,
                save_distributed_checkpoint=save_distributed_checkpoint,
                process_group_backend=process_group_backend,
                timeout=timeout,
                plan=plan,
                replicate_size=replicate_size,
                context_parallel_size=context_parallel_size,
                pipeline=pipeline,
                pipeline_parallel_size=pipeline_parallel_size,
            )
        )

    def _adopt(self, fabric_strategy: FabricStrategy) -> None:
        super()._adopt(fabric_strategy)
        self.derives_in_step = self._fabric_model_parallel.pipeline is not None
        self._grouped_metrics: list[Any] = []

    @property
    def device_mesh(self) -> DeviceMesh:
        """The processes along their axes; known when they have been started."""
        return self._fabric_model_parallel.device_mesh

    def check_fit(self, module: LightningModule, flags: Any) -> None:
        """Refuse a module that cannot be split so.

        Raises:
            ConfigurationError: If nothing says how it is split, or the plan does not fit it.
        """
        super().check_fit(module, flags)
        self._check(module)
        if not is_overridden("configure_model", module, LightningModule):
            self._fabric_model_parallel.check_module(module)

    def connect(self, model: LightningModule) -> None:
        """Bind the module.

        Raises:
            ConfigurationError: If nothing says how it is split, or the plan names what it does not have.
        """
        self._check(model)
        super().connect(model)

    def _check(self, model: LightningModule) -> None:
        if self._module_splits_itself and not is_overridden("configure_model", model, LightningModule):
            raise ConfigurationError(
                f"Trainer(strategy=ModelParallelStrategy(...)) cannot run {class_name(model)}, which has no"
                " configure_model(). There a module splits its layers over self.device_mesh."
                " Define configure_model(self), and call parallelize_module or fully_shard in it, or pass plan={...}."
            )
        plan = self._fabric_model_parallel.plan
        if plan is not None and not is_overridden("configure_model", model, LightningModule):
            plan.match(model)  # what is wrong is said now; layers that configure_model makes are not there yet
        pipeline = self._fabric_model_parallel.pipeline
        if pipeline is not None:
            in_stages.check_module(model)
            if not is_overridden("configure_model", model, LightningModule):
                cut_module(model, pipeline)

    def setup_model(self, *, training: bool) -> None:
        """Split the module. Metric objects in it gather what they have seen from processes with other samples only."""
        super().setup_model(training=training)
        groups = self._fabric_model_parallel.sizes.groups_without_copies()
        metrics = [part for part in self._module().modules() if is_metric(part) and part.process_group is None]
        if len(groups) > 1 and metrics:
            group, _ = dist.new_subgroups_by_enumeration(groups)
            for metric in metrics:
                metric.process_group = group
            self._grouped_metrics = metrics

    def teardown(self) -> None:
        """Let go of the run."""
        super().teardown()
        for metric in self._grouped_metrics:
            metric.process_group = None
        self._grouped_metrics = []

    @property
    def _exchanges_gradients(self) -> bool:
        # A pipeline exchanges them once for each batch, so that a checkpoint may be written after each.
        return super()._exchanges_gradients and self._fabric_model_parallel.pipeline is None

    def gather_gradients(self, module: Module) -> list[Gradients]:
        """The gradients that wait for a step; of stages those of each, whole, in the memory of one process."""
        if self._fabric_model_parallel.pipeline is None:
            return super().gather_gradients(module)
        return self.gather_objects(in_stages.whole_gradients(module, self._fabric_model_parallel))

    def put_back_gradients(self, module: Module, saved: Sequence[Gradients]) -> bool:
        """Give the parameters their gradients again. Was it possible?"""
        if self._fabric_model_parallel.pipeline is None:
            return super().put_back_gradients(module, saved)
        return in_stages.put_whole_gradients(module, saved)

    def _make_step(self, name: str) -> Callable[..., Any]:
        step = super()._make_step(name)
        module = self._module()
        stages = self._fabric_model_parallel.steps_of(module)
        return step if stages is None else in_stages.InStages(module, stages, step, name, lambda: self.loss_divisor)

    @property
    def own_values(self) -> tuple[int, int]:
        """The place of this process along the axes of data, and how many places there are."""
        sizes = self._fabric_model_parallel.sizes
        return sizes.data_rank(self.global_rank), sizes.num_data

    @property
    def updates_metrics(self) -> bool:
        """Is the last stage here, where steps end?"""
        return self._fabric_model_parallel.sizes.coordinates(self.global_rank)[PIPELINE] == self._place_of_last

    def part_of_sequence(self, batch: Any, axis: int = 1) -> Any:
        """What this process sees of a batch: of each tensor that has this axis, its part of it; the rest as it is.

        What depends on the place in the sequence (positions, labels that are shifted by one) has to be in the batch
        before.
        """
        return self._fabric_model_parallel.part_of_sequence(batch, axis)

    @property
    def distinct_ranks(self) -> list[int] | None:
        """One of each group of processes that compute the same values, where there are such groups."""
        ranks = self._fabric_model_parallel.sizes.distinct_ranks(self._place_of_last)
        return ranks if len(ranks) < self.world_size else None

    @property
    def _place_of_last(self) -> int:
        """Where the last stage is along the pipeline axis."""
        pipeline = self._fabric_model_parallel.pipeline
        return 0 if pipeline is None else pipeline.place_of(-1, self._fabric_model_parallel.sizes.of(PIPELINE))

    @property
    def _fabric_model_parallel(self) -> FabricModelParallelStrategy:
        return cast(FabricModelParallelStrategy, self.fabric_strategy)


def configure_model(module: Module, device_mesh: DeviceMesh) -> Any:
    """The module as it is: the run has called its `configure_model` before."""
    return module
