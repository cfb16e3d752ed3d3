"""The user splits the module over a mesh of processes: tensors in one direction, data in the other.

Built on DTensor; `fully_shard` and `parallelize_module` of torch say how.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from fulmen.fabric.arguments import check_flag
from fulmen.fabric.collectives.process_group import default_pg_timeout
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.strategies.materialize import reset_values, warn_without_values, without_memory
from fulmen.fabric.strategies.mesh import MeshStrategy
from fulmen.fabric.strategies.sharded_tensors import is_dtensor

Size = int | Literal["auto"]
AXES = ("data_parallel", "tensor_parallel")


class ModelParallelStrategy(MeshStrategy):
    """Tensor parallel and data parallel, as the user says.

    Processes form a mesh of two axes. Those in one row of "tensor_parallel" work on the same batches, each on a part of
    the tensors; those in one row of "data_parallel" hold the same part and see other batches.

    Args:
        parallelize_fn: Gets the module and the mesh, splits the module, and returns it. For example
            `parallelize_module(module, mesh["tensor_parallel"], {...})` of torch, and then
            `fully_shard(module, mesh=mesh["data_parallel"])`. The module may be on the meta device.
        data_parallel_size: Size of the first axis; "auto" is the number of machines, or what is left by the other.
        tensor_parallel_size: Size of the second axis; "auto" is the number of processes on a machine, or what is left.
        save_distributed_checkpoint: Save a folder to which every process writes its shards, and not one file.
        process_group_backend: "gloo", "nccl", ...; by default the one for the device.
        timeout: How long a collective waits for the other processes.
    """

    _how_to_save_one_file = "ModelParallelStrategy(..., save_distributed_checkpoint=False)"

    def __init__(
        self,
        parallelize_fn: Callable[[Any, DeviceMesh], Any],
        data_parallel_size: int | Literal["auto"] = "auto",
        tensor_parallel_size: int | Literal["auto"] = "auto",
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        if inspect.isclass(parallelize_fn) or not callable(parallelize_fn):
            raise ArgumentTypeError(
                f"ModelParallelStrategy(parallelize_fn={parallelize_fn!r}) is no function. It says how the module is"
                " split. Pass a function of (module, device_mesh) that returns the module."
            )
        for name, size in (("data_parallel_size", data_parallel_size), ("tensor_parallel_size", tensor_parallel_size)):
            if size != "auto" and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
                raise ConfigurationError(
                    f"ModelParallelStrategy({name}={size!r}) is no number of processes. An axis of the mesh has at"
                    " least one. Pass a positive int, or 'auto'."
                )
        _check_parameters(parallelize_fn)
        check_flag(self, "save_distributed_checkpoint", save_distributed_checkpoint)
        super().__init__(
            process_group_backend=process_group_backend, timeout=timeout, saves_shards=save_distributed_checkpoint
        )
        self._parallelize_fn = parallelize_fn
        self._data_parallel_size: Size = data_parallel_size
        self._tensor_parallel_size: Size = tensor_parallel_size

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
    def distributed_sampler_kwargs(self) -> dict[str, Any] | None:
        """Processes that work on the same batches together see the same data."""
        data = self.device_mesh[AXES[0]]
        return {"num_replicas": data.size(), "rank": data.get_local_rank()}

    def setup_environment(self) -> None:
        """Take the device, join the other processes, and take a place in the mesh.

        Raises:
            ConfigurationError: If the sizes of the axes do not fit the number of processes.
        """
        sizes = axis_sizes(self._data_parallel_size, self._tensor_parallel_size, self.num_nodes, self.num_processes)
        super().setup_environment()
        if self._mesh is None:
            self._mesh = init_device_mesh(self.root_device.type, sizes, mesh_dim_names=AXES)

    def split_module(self, module: Module) -> Module:
        """What `parallelize_fn` makes of the module, with memory where it has none.

        Raises:
            ArgumentTypeError: If that is no module.
            ConfigurationError: If it left an axis of the mesh without use.
        """
        name = type(module).__name__
        found = self._parallelize_fn(module, self.device_mesh)
        if not isinstance(found, Module):
            raise ArgumentTypeError(
                f"ModelParallelStrategy(parallelize_fn={_shown(self._parallelize_fn)}) returned for {name} a"
                f" {type(found).__name__}. What it returns is trained. Let it return the module."
            )
        self._check_split(found, name)
        self._give_memory(found)
        for tensor in [*found.parameters(), *found.buffers()]:
            if not is_dtensor(tensor):
                tensor.data = tensor.data.to(self.root_device)
        return found

    def _check_split(self, module: Module, name: str) -> None:
        if any(isinstance(part, DistributedDataParallel) for part in module.modules()):
            return  # the user shares gradients in a way that shows in no parameter
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        meshes = {parameter.device_mesh for parameter in trained if is_dtensor(parameter)}
        used = {rank for mesh in meshes for rank in mesh.mesh.flatten().tolist()}
        for axis, harm, advice in (
            (
                AXES[0],
                "their gradients would not be averaged, and the replicas would drift apart",
                "Let it call fully_shard(module, mesh=device_mesh['data_parallel'])",
            ),
            (
                AXES[1],
                "they would all compute the same",
                "Let it call parallelize_module(module, device_mesh['tensor_parallel'], plan)",
            ),
        ):
            peers = set(self.device_mesh[axis].mesh.flatten().tolist()) - {self.global_rank}
            if trained and peers and not peers & used:
                raise ConfigurationError(
                    f"ModelParallelStrategy(parallelize_fn={_shown(self._parallelize_fn)}) split no parameter of {name}"
                    f" over the axis {axis!r}, on which {len(peers) + 1} processes are: {harm}."
                    f" {advice}, or pass {axis}_size=1."
                )

    def _give_memory(self, module: Module) -> None:
        parts = without_memory(module)
        with self.same_random_numbers(wanted=bool(parts)):
            without_values: set[str] = set()
            for part in parts:
                part.to_empty(device=self.root_device, recurse=False)
            for part in parts:
                reset_values(part, without_values)
        warn_without_values(without_values)


def axis_sizes(data: Size, tensor: Size, num_nodes: int, num_processes: int) -> tuple[int, int]:
    """The sizes of the two axes of the mesh.

    Args:
        data, tensor: As the user asked.
        num_nodes, num_processes: How many machines, and processes on each.

    Raises:
        ConfigurationError: If the product of the sizes is not the number of processes.

    >>> axis_sizes("auto", 2, num_nodes=1, num_processes=8)
    (4, 2)
    """
    world_size = num_nodes * num_processes
    if data == "auto" and tensor == "auto":
        return num_nodes, num_processes
    given = data if tensor == "auto" else tensor
    assert isinstance(given, int)
    sizes = (
        world_size // given if data == "auto" else data,
        world_size // given if tensor == "auto" else tensor,
    )
    if sizes[0] * sizes[1] != world_size:
        raise ConfigurationError(
            f"ModelParallelStrategy(data_parallel_size={data!r}, tensor_parallel_size={tensor!r}) does not fit"
            f" {world_size} processes. Every process has one place in the mesh."
            f" Pass sizes whose product is {world_size}, or other devices or num_nodes."
        )
    return sizes


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


def _shown(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
