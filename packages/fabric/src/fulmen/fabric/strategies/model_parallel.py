"""A module is split over a mesh of processes, as a plan or a function of the user's says.

Built on DTensor, and on `fully_shard` and `parallelize_module` of torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Literal

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from fulmen.fabric.arguments import check_count, check_flag
from fulmen.fabric.class_names import class_name
from fulmen.fabric.collectives.process_group import default_pg_timeout
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.launchers.base import Launcher
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.strategies.context_parallel import part_of_sequence
from fulmen.fabric.strategies.known_here import ModulesKnownHere, NotesOnModulesHere
from fulmen.fabric.strategies.materialize import reset_values, warn_without_values, without_memory
from fulmen.fabric.strategies.mesh_axes import CONTEXT, DATA, PIPELINE, REPLICATE, TENSOR, MeshSizes, Size, mesh_sizes
from fulmen.fabric.strategies.pipeline.cuts import Pipeline
from fulmen.fabric.strategies.pipeline.split import split_into_stages, take_memory, tensors_here
from fulmen.fabric.strategies.pipeline.strategy import PipelinedStrategy
from fulmen.fabric.strategies.plan import Plan
from fulmen.fabric.strategies.sharded_tensors import is_dtensor
from fulmen.fabric.strategies.split_by_plan import check_plan, split_by_plan


class ModelParallelStrategy(PipelinedStrategy):
    """Tensor parallel, sharded and replicated data parallel over one mesh, for any module.

    What is split is said by a plan, or done by a function of the user's. Processes form a mesh, ordered along axes:

    | axis | its processes |
    | --- | --- |
    | "pipeline_parallel" | have other stages of the module, and see the same batches |
    | "replicate" | hold the same parameters, and see other batches |
    | "data_parallel" | hold other parts of each parameter, and see other batches |
    | "tensor_parallel" | hold and compute with other parts of some tensors, and see the same batches |

    Args:
        parallelize_fn: Gets the module and the mesh, splits the module, and returns it. For example
            `parallelize_module(module, mesh["tensor_parallel"], {...})` of torch, and then
            `fully_shard(module, mesh=mesh["data_parallel"])`. The module may be on the meta device.
        data_parallel_size: Processes over which parameters are split; "auto" is the number of machines, or what is
            left by the others.
        tensor_parallel_size: Processes over which tensors are split; "auto" is the number of processes on a machine,
            or what is left; 1 for a plan that splits none.
        save_distributed_checkpoint: Save a folder to which every process writes its shards, and not one file.
        process_group_backend: "gloo", "nccl", ...; by default the one for the device.
        timeout: How long a collective waits for the other processes.
        plan: In the place of `parallelize_fn`: patterns of names of modules or parameters, and for each how it is
            split: "column", "row", "sequence", "replicate", "shard", or with the way in and out, "sequence > column".
            See `strategies.plan`.
        replicate_size: Replicas of what is split; "auto" is the number of machines. The mesh has this axis if there
            are more than one.
        context_parallel_size: So many neighbours along "data_parallel" see the same batches, each its part of the
            sequence, which `part_of_sequence` gives; attention that the plan calls "ring" or "ulysses" is over all of
            it.
        pipeline: Cuts the module into stages, such as `Pipeline(["blocks.2"], micro_batches=8)`. Steps are made with
            `forward_backward` and `evaluate`. Takes a plan too, or none.
        pipeline_parallel_size: Processes along "pipeline_parallel", each with some of the stages; "auto" is one for
            each stage, or for each two where the schedule is for several. The mesh has this axis with a pipeline.
    """

    _how_to_save_one_file = "ModelParallelStrategy(..., save_distributed_checkpoint=False)"

    def __init__(
        self,
        parallelize_fn: Callable[[Any, DeviceMesh], Any] | None = None,
        data_parallel_size: int | Literal["auto"] = "auto",
        tensor_parallel_size: int | Literal["auto"] = "auto",
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
        *,
        plan: Mapping[str, Any] | None = None,
        replicate_size: int | Literal["auto"] = 1,
        context_parallel_size: int = 1,
        pipeline: Pipeline | None = None,
        pipeline_parallel_size: int | Literal["auto"] = "auto",
    ) -> None:
        self._plan = None if plan is None else Plan(plan)
        self._pipeline = pipeline
        num_stages = _check_pipeline(pipeline, pipeline_parallel_size, parallelize_fn)
        if plan is None:
            if pipeline is None:
                _check_function(parallelize_fn)
        elif parallelize_fn is not None:
            raise ConfigurationError(
                f"ModelParallelStrategy(parallelize_fn={_shown(parallelize_fn)}, plan=...) says twice how the module is"
                " split. A plan does what such a function would do. Pass one of them."
            )
        self._asked_sizes: dict[str, Size] = {
            PIPELINE: num_stages,
            REPLICATE: replicate_size,
            DATA: data_parallel_size,
            TENSOR: tensor_parallel_size,
        }
        for axis, size in self._asked_sizes.items():
            _check_size(axis, size)
        check_count(self, "context_parallel_size", context_parallel_size, "It is how many processes share a sequence.")
        if context_parallel_size > 1 and (self._plan is None or not self._plan.splits_sequences):
            raise ConfigurationError(
                f"ModelParallelStrategy(context_parallel_size={context_parallel_size}) has no attention that is over"
                " several processes. Each would attend to its own part of the sequence only. Pass a plan that names the"
                " modules with attention, as in plan={'blocks.*.attention': 'ring'}."
            )
        self._context = context_parallel_size
        check_flag(self, "save_distributed_checkpoint", save_distributed_checkpoint)
        super().__init__(
            process_group_backend=process_group_backend, timeout=timeout, saves_shards=save_distributed_checkpoint
        )
        self._parallelize_fn = parallelize_fn
        self._sizes: MeshSizes | None = None
        self._context_mesh: DeviceMesh | None = None
        self._steps = NotesOnModulesHere()
        self._split_here = ModulesKnownHere()  # by the plan

    @property
    def pipeline(self) -> Pipeline | None:
        """How modules are cut into stages; None: they are whole."""
        return self._pipeline

    @property
    def plan(self) -> Plan | None:
        """What is split, and how; None where a function of the user's, or the module, does it."""
        return self._plan

    def mesh_sizes(self, num_nodes: int, num_processes: int) -> MeshSizes:
        """How many processes are along each axis, with `num_processes` on each of `num_nodes` machines.

        Raises:
            ConfigurationError: If the sizes that were asked for do not fit.
        """
        splits_tensors = self._pipeline is None if self._plan is None else self._plan.splits_tensors
        return mesh_sizes(
            self._asked_sizes, num_nodes, num_processes, splits_tensors=splits_tensors, context=self._context
        )

    def check_module(self, module: Module) -> None:
        """Refuse a module that the plan does not fit, before a process is started or anything is changed.

        Raises:
            ConfigurationError: If the plan does not fit the module, or the sizes not the number of processes.
        """
        sizes = self.mesh_sizes(self.num_nodes, self.num_processes)
        if self._plan is not None:
            check_plan(module, self._plan, sizes.of(TENSOR), sizes.context)

    @property
    def precision(self) -> Precision:
        """How numbers are held and computed."""
        return super().precision

    @precision.setter
    def precision(self, precision: Precision | None) -> None:
        if precision is not None and precision.precision == "16-mixed":
            raise ConfigurationError(
                "precision='16-mixed' cannot be used by ModelParallelStrategy. The loss is scaled, and whether a"
                " gradient has overflowed is not known over tensors of several meshes. Pass precision='bf16-mixed'."
            )
        self._precision = precision

    @property
    def sizes(self) -> MeshSizes:
        """How many processes are along each axis."""
        return self._sizes or self.mesh_sizes(self.num_nodes, self.num_processes)  # known once processes have met

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any] | None:
        """Processes that work on the same batches together see the same data."""
        return {"num_replicas": self.sizes.num_shares, "rank": self.sizes.share(self.global_rank)}

    def part_of_sequence(self, batch: Any, axis: int = 1) -> Any:
        """What this process sees of a batch: of each tensor that has this axis, its part of it; the rest as it is.

        With `context_parallel_size=1`, the batch. What depends on the place in the sequence (positions, labels that
        are shifted by one) has to be in the batch before.

        Raises:
            ConfigurationError: If a length is no multiple of the number of parts.
        """
        return part_of_sequence(batch, self.sizes.context_rank(self.global_rank), self.sizes.context, axis)

    def configure_launcher(self) -> Launcher:
        """Runs the program again in every process.

        Raises:
            ConfigurationError: If the sizes of the axes do not fit the number of processes: before one is started.
        """
        sizes = self.mesh_sizes(self.num_nodes, self.num_processes)
        if sizes.crosses_machines(TENSOR, self.num_processes):
            rank_zero_warn(
                f"ModelParallelStrategy(tensor_parallel_size={sizes.of(TENSOR)}) runs over several machines with"
                f" {self.num_processes} processes on each. Along this axis processes talk in every layer, and networks"
                f" are slow for that. Pass a size that divides {self.num_processes}."
            )
        pipeline, along = self._pipeline, sizes.of(PIPELINE)
        if pipeline is not None and pipeline.micro_batches < along:
            rank_zero_warn(
                f"Pipeline(micro_batches={pipeline.micro_batches}) are fewer than the {along} processes that work on"
                f" them: each waits for {pipeline.bubble(along):.0%} of a step. Pass micro_batches={4 * along}, or as"
                " many as the batch allows."
            )
        return super().configure_launcher()

    def setup_environment(self) -> None:
        """Take the device, join the other processes, and take a place in the mesh.

        Raises:
            ConfigurationError: If the sizes of the axes do not fit the number of processes.
        """
        self._sizes = self.mesh_sizes(self.num_nodes, self.num_processes)
        super().setup_environment()
        if self._mesh is None:
            sizes = self._sizes
            self._mesh = init_device_mesh(self.root_device.type, sizes.shape, mesh_dim_names=sizes.names)
            if sizes.context > 1:
                # The same processes in the same order, with the groups of neighbours as an axis of their own.
                shape = (sizes.of(PIPELINE) * sizes.num_shares, sizes.context, sizes.of(TENSOR))
                names = ("shares", CONTEXT, TENSOR)
                self._context_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)[names[1]]

    def no_backward_sync(self, module: Module, enabled: bool) -> AbstractContextManager[Any]:
        """Backward inside adds up gradients without exchanging them, if `enabled`; nothing where all see the same data.

        Raises:
            ArgumentTypeError: If nothing in the module exchanges gradients.
        """
        return super().no_backward_sync(module, enabled and self.sizes.num_data > 1)

    def split_module(self, module: Module) -> Module:
        """The module, split by the plan or by `parallelize_fn`, with memory where it has none.

        Raises:
            ArgumentTypeError: If the function returns no module.
            ConfigurationError: If the plan does not fit the module, or the function left an axis without use.
        """
        if self._pipeline is not None:
            if module not in self._steps:
                self._split_into_stages(module)
            return module
        if self._plan is not None:
            if module not in self._split_here:
                split_by_plan(module, self._plan, self.device_mesh, self.root_device, self._context_mesh)
                self._split_here.add(module)
            found = module
        else:
            found = self._split_by_function(module)
        self._give_memory(without_memory(found), [])
        for tensor in [*found.parameters(), *found.buffers()]:
            if not is_dtensor(tensor):
                tensor.data = tensor.data.to(self.root_device)
        return found

    def _split_into_stages(self, module: Module) -> None:
        assert self._pipeline is not None
        mesh, device = self.device_mesh, self.root_device
        steps = split_into_stages(module, self._pipeline, self._plan, mesh, device, self._context_mesh)
        self._give_memory(*take_memory(steps))
        for tensor in tensors_here(steps):
            if not is_dtensor(tensor):
                tensor.data = tensor.data.to(device)
        self._steps[module] = steps

    def _split_by_function(self, module: Module) -> Module:
        assert self._parallelize_fn is not None
        name = class_name(module)
        found = self._parallelize_fn(module, self.device_mesh)
        if not isinstance(found, Module):
            raise ArgumentTypeError(
                f"ModelParallelStrategy(parallelize_fn={_shown(self._parallelize_fn)}) returned for {name} a"
                f" {type(found).__name__}. What it returns is trained. Let it return the module."
            )
        self._check_split(found, name)
        return found

    def _check_split(self, module: Module, name: str) -> None:
        if any(isinstance(part, DistributedDataParallel) for part in module.modules()):
            return  # the user shares gradients in a way that shows in no parameter
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        meshes = {parameter.device_mesh for parameter in trained if is_dtensor(parameter)}
        used = {rank for mesh in meshes for rank in mesh.mesh.flatten().tolist()}
        for axis, harm, advice in (
            (
                DATA,
                "their gradients would not be averaged, and the replicas would drift apart",
                "Let it call fully_shard(module, mesh=device_mesh['data_parallel'])",
            ),
            (
                REPLICATE,
                "their gradients would not be averaged, and the replicas would drift apart",
                "Let it call fully_shard(module, mesh=device_mesh['replicate', 'data_parallel'])",
            ),
            (
                TENSOR,
                "they would all compute the same",
                "Let it call parallelize_module(module, device_mesh['tensor_parallel'], plan)",
            ),
        ):
            if axis not in (self.device_mesh.mesh_dim_names or ()):
                continue
            peers = set(self.device_mesh[axis].mesh.flatten().tolist()) - {self.global_rank}
            if trained and peers and not peers & used:
                raise ConfigurationError(
                    f"ModelParallelStrategy(parallelize_fn={_shown(self._parallelize_fn)}) split no parameter of {name}"
                    f" over the axis {axis!r}, on which {len(peers) + 1} processes are: {harm}."
                    f" {advice}, or pass {axis}_size=1."
                )

    def _give_memory(self, parts: list[Module], with_memory: list[Module]) -> None:
        """Give memory to parts, and values to these and others."""
        with self.same_random_numbers(wanted=bool(parts or with_memory)):
            without_values: set[str] = set()
            for part in parts:
                part.to_empty(device=self.root_device, recurse=False)
            for part in [*parts, *with_memory]:
                reset_values(part, without_values)
        warn_without_values(without_values)


def _check_function(parallelize_fn: object) -> None:
    if inspect.isclass(parallelize_fn) or not callable(parallelize_fn):
        raise ArgumentTypeError(
            f"ModelParallelStrategy(parallelize_fn={parallelize_fn!r}) is no function. It says how the module is"
            " split. Pass a function of (module, device_mesh) that returns the module, or"
            " plan={'pattern of names': 'style'}."
        )
    _check_parameters(parallelize_fn)


def _check_pipeline(pipeline: object, size: int | Literal["auto"], parallelize_fn: object) -> int:
    """How many processes are along the pipeline axis."""
    _check_size(PIPELINE, size)
    if pipeline is None:
        if size not in (1, "auto"):
            raise ConfigurationError(
                f"ModelParallelStrategy(pipeline_parallel_size={size}) has no pipeline. It says where the module is cut"
                " into stages, one or more for each process. Pass pipeline=Pipeline(['blocks.2'], micro_batches=8)."
            )
        return 1
    if not isinstance(pipeline, Pipeline):
        raise ArgumentTypeError(
            f"ModelParallelStrategy(pipeline={pipeline!r}) is a {type(pipeline).__name__}. It says where the module is"
            " cut into stages. Pass a Pipeline(['blocks.2'], micro_batches=8) of fulmen.fabric.strategies."
        )
    if parallelize_fn is not None:
        raise ConfigurationError(
            f"ModelParallelStrategy(parallelize_fn={_shown(parallelize_fn)}, pipeline=...) splits a module of which no"
            " process has all. A pipeline goes with a plan, or with none. Pass plan={'pattern of names': 'style'}."
        )
    return pipeline.size(size)


def _check_size(axis: str, size: Size) -> None:
    if size != "auto" and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise ConfigurationError(
            f"ModelParallelStrategy({axis}_size={size!r}) is no number of processes. An axis of the mesh has at"
            " least one. Pass a positive int, or 'auto'."
        )


def _check_parameters(parallelize_fn: Callable[..., Any]) -> None:
    try:
        inspect.signature(parallelize_fn).bind("module", "device_mesh")
    except TypeError as error:
        raise ArgumentTypeError(
            f"ModelParallelStrategy(parallelize_fn={_shown(parallelize_fn)}) cannot be called with two arguments:"
            f" {error}. It gets the module and the mesh in every process."
            " Write `def parallelize(module, device_mesh): ...`, and return the module."
        ) from error
    except ValueError:  # some functions written in C do not say
        pass


def _shown(function: object) -> str:
    return getattr(function, "__name__", repr(function))
