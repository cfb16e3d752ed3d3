"""What the arguments of `FSDPStrategy` mean to torch's `fully_shard`; what they cannot mean is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import Module, Parameter
from torch.nn.modules.batchnorm import _BatchNorm

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError

ShardingName: TypeAlias = Literal["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "_HYBRID_SHARD_ZERO2"]

# Whether parameters are let go between forward and backward. None: except those of the root, which backward needs
# first.
_RESHARDS: dict[ShardingName, bool | None] = {
    "FULL_SHARD": None,
    "SHARD_GRAD_OP": False,
    "HYBRID_SHARD": None,
    "_HYBRID_SHARD_ZERO2": False,
    "NO_SHARD": False,
}
_HYBRID = ("HYBRID_SHARD", "_HYBRID_SHARD_ZERO2")
AXES = ("replicate", "shard")

# What FSDP1 could be told and `fully_shard` always does.
_ALWAYS = {"use_orig_params": True, "limit_all_gathers": True, "backward_prefetch": "BACKWARD_PRE"}
_ELSEWHERE = {
    "mesh": "device_mesh=...",
    "mp_policy": "mixed_precision=...",
    "offload_policy": "cpu_offload=...",
    "device_id": "devices=... to Fabric or Trainer",
    "precision_plugin": "precision=...",
}


@dataclass(frozen=True)
class Options:
    """The further arguments of `FSDPStrategy`, checked."""

    reshard_after_forward: bool | int | None = None
    shard_placement_fn: Callable[[Parameter], Any] | None = None
    ignored_modules: tuple[Module, ...] = ()
    ignored_parameters: tuple[Parameter, ...] = ()
    forward_prefetch: bool = False
    sync_module_states: bool = False
    param_init_fn: Callable[[Module], Any] | None = None
    process_group: Any | None = None

    def ignored(self) -> set[Parameter]:
        """The parameters that are not split."""
        return {*self.ignored_parameters, *(one for module in self.ignored_modules for one in module.parameters())}


def read_options(given: dict[str, Any]) -> Options:
    """The further arguments of `FSDPStrategy`.

    Raises:
        ArgumentTypeError: If one is unknown, or has another name here.
        ConfigurationError: If one has a value that `fully_shard` has nothing for.
    """
    rest = dict(given)
    for name, value in _ALWAYS.items():
        if name in rest:
            asked = rest.pop(name)
            if getattr(asked, "name", asked) != value:
                raise ConfigurationError(
                    f"FSDPStrategy({name}={asked!r}) cannot be had. Parameters are split by torch's fully_shard, which"
                    f" always works as with {name}={value}. Leave it out."
                )
    for name in _ELSEWHERE.keys() & rest.keys():
        raise ArgumentTypeError(
            f"FSDPStrategy({name}={rest[name]!r}) is given in another way here. The strategy makes it from its own"
            f" arguments. Pass {_ELSEWHERE[name]} in its place."
        )
    modules = _objects("ignored_modules", rest.pop("ignored_modules", None), Module)
    states = _objects("ignored_states", rest.pop("ignored_states", None), Module | Parameter)
    parameters = _objects("ignored_params", rest.pop("ignored_params", None), Parameter)
    known = {name: rest.pop(name) for name in Options.__dataclass_fields__.keys() & rest.keys()}
    if "ignored_parameters" in known:
        rest["ignored_parameters"] = known.pop("ignored_parameters")
    if rest:
        raise ArgumentTypeError(
            f"FSDPStrategy({', '.join(f'{name}={value!r}' for name, value in rest.items())}) is"
            " unknown. It is no argument of torch's fully_shard, nor one of FullyShardedDataParallel that means"
            f" something to it. Further arguments are: {', '.join(_known_names())}."
        )
    _check_kinds(known)
    return Options(
        **known,
        ignored_modules=(*modules, *(one for one in states if isinstance(one, Module))),
        ignored_parameters=(*parameters, *(one for one in states if isinstance(one, Parameter))),
    )


def _check_kinds(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name in ("forward_prefetch", "sync_module_states"):
            fits, wanted = isinstance(value, bool), "True or False"
        elif name in ("param_init_fn", "shard_placement_fn"):
            fits, wanted = value is None or callable(value), "a function"
        elif name == "process_group":
            fits, wanted = value is None or isinstance(value, ProcessGroup), "what torch.distributed.new_group returns"
        else:
            is_size = isinstance(value, int) and (isinstance(value, bool) or value > 1)
            fits, wanted = value is None or is_size, "True, False, or over how many processes, 2 or more"
        if not fits:
            raise ArgumentTypeError(
                f"FSDPStrategy({name}={value!r}) got a {type(value).__name__} that torch's fully_shard does not take."
                f" It would fail at it after the processes were started. Pass {wanted}."
            )


def _known_names() -> list[str]:
    fields = set(Options.__dataclass_fields__) - {"ignored_parameters"}
    return sorted({*fields, "ignored_states", "ignored_params", *_ALWAYS})


def _objects(name: str, value: Any, kind: Any) -> tuple[Any, ...]:
    found = () if value is None else tuple(value) if isinstance(value, Iterable) else (value,)
    for one in found:
        if not isinstance(one, kind):
            kinds = " or ".join(part.__name__ for part in get_args(kind) or (kind,))
            raise ArgumentTypeError(
                f"FSDPStrategy({name}=...) holds {one!r}, a {type(one).__name__}. It names what is not to be split."
                f" Pass a list of {kinds} objects."
            )
    return found


def sharding_name(value: object) -> ShardingName:
    """The name of a sharding strategy, given as such or as torch's enumeration.

    Raises:
        ConfigurationError: If there is none of this name.
    """
    name = value.upper() if isinstance(value, str) else getattr(value, "name", None)
    if name not in _RESHARDS:
        raise ConfigurationError(
            f"FSDPStrategy(sharding_strategy={value!r}) is unknown. It says what is split, and over which processes."
            f" Pass one of {', '.join(repr(known) for known in _RESHARDS if not known.startswith('_'))}."
        )
    return name


def reshards(name: ShardingName, options: Options) -> bool | int | None:
    """What `fully_shard` calls `reshard_after_forward`."""
    asked = options.reshard_after_forward
    return _RESHARDS[name] if asked is None else asked


def check_together(name: ShardingName, device_mesh: Any, options: Options) -> None:
    """Refuse arguments that contradict each other.

    Raises:
        ConfigurationError: If so.
        ArgumentTypeError: If the mesh is no mesh.
    """
    if options.reshard_after_forward is not None and _RESHARDS[name] is False:
        raise ConfigurationError(
            f"FSDPStrategy(sharding_strategy={name!r}, reshard_after_forward={options.reshard_after_forward!r}) says"
            " twice what happens to parameters after forward: this sharding strategy keeps them."
            " Leave one of them out."
        )
    if options.process_group is not None and (name == "NO_SHARD" or name in _HYBRID):
        raise ConfigurationError(
            f"FSDPStrategy(sharding_strategy={name!r}, process_group=...) names one group of processes. Replicas and"
            " shards need a group for each axis. Pass device_mesh=(number of replicas, processes in each)."
        )
    if device_mesh is None:
        return
    if options.process_group is not None:
        raise ConfigurationError(
            "FSDPStrategy(process_group=..., device_mesh=...) says twice which processes share parameters."
            " A mesh has its own process groups. Pass only one of them."
        )
    if not isinstance(device_mesh, DeviceMesh):
        _check_sizes(device_mesh)
    num_axes = device_mesh.ndim if isinstance(device_mesh, DeviceMesh) else 2
    if num_axes != (2 if name in _HYBRID else 1):
        raise ConfigurationError(
            f"FSDPStrategy(sharding_strategy={name!r}, device_mesh=...) got a mesh of {num_axes} axes. Hybrid sharding"
            " replicates over the first axis and splits over the second; the others have one axis."
            " Pass sharding_strategy='HYBRID_SHARD' with two axes, or leave the mesh out."
        )


def _check_sizes(device_mesh: Any) -> None:
    is_pair = isinstance(device_mesh, tuple | list) and len(device_mesh) == 2
    if not is_pair or any(not isinstance(size, int) or isinstance(size, bool) for size in device_mesh):
        raise ArgumentTypeError(
            f"FSDPStrategy(device_mesh={device_mesh!r}) is no mesh. It orders the processes into groups that split"
            " parameters, and says how many such groups there are."
            " Pass (number of groups, processes in each), or a DeviceMesh."
        )
    if min(device_mesh) < 1:
        raise ConfigurationError(
            f"FSDPStrategy(device_mesh={device_mesh!r}) has no room for a process. The sizes are the number of groups"
            " and of processes in each. Pass two numbers of 1 or more, whose product is the number of processes."
        )


def make_mesh(
    name: ShardingName, asked: Any, options: Options, device_type: str, num_nodes: int, num_processes: int
) -> DeviceMesh:
    """The mesh that `fully_shard` gets. All processes must call it.

    Args:
        name: Of the sharding strategy.
        asked: What the user passed: sizes of two axes, a mesh, or None.
        options: May hold a process group.
        device_type: Such as "cuda".
        num_nodes, num_processes: How many machines, and processes on each.

    Raises:
        ConfigurationError: If the sizes do not fit the number of processes.
    """
    world_size = num_nodes * num_processes
    if name == "NO_SHARD" and isinstance(asked, DeviceMesh):
        return DeviceMesh(device_type, asked.mesh.reshape(-1, 1), mesh_dim_names=AXES)
    if isinstance(asked, DeviceMesh):
        return asked
    if options.process_group is not None:
        return DeviceMesh.from_group(options.process_group, device_type, mesh_dim_names=AXES[1:])
    if name == "NO_SHARD":
        return init_device_mesh(device_type, (world_size, 1), mesh_dim_names=AXES)
    if name not in _HYBRID:
        return init_device_mesh(device_type, (world_size,), mesh_dim_names=AXES[1:])
    return init_device_mesh(device_type, hybrid_sizes(asked, num_nodes, num_processes), mesh_dim_names=AXES)


def check_mesh(name: ShardingName, asked: Any, num_nodes: int, num_processes: int) -> None:
    """Refuse sizes of a mesh that do not fit the number of processes; arguments as for `make_mesh`."""
    if name in _HYBRID and not isinstance(asked, DeviceMesh):
        hybrid_sizes(asked, num_nodes, num_processes)


def hybrid_sizes(asked: tuple[int, int] | None, num_nodes: int, num_processes: int) -> tuple[int, int]:
    """How many replicas, and how many processes in each.

    Raises:
        ConfigurationError: If they do not fit the number of processes.
    """
    world_size = num_nodes * num_processes
    sizes = (asked[0], asked[1]) if asked is not None else (num_nodes, num_processes)
    if sizes[0] * sizes[1] != world_size:
        raise ConfigurationError(
            f"FSDPStrategy(device_mesh={sizes}) has room for {sizes[0] * sizes[1]} processes, and {world_size} run."
            " Every process has one place in the mesh."
            f" Pass sizes whose product is {world_size}, or other devices or num_nodes."
        )
    return sizes


@dataclass(frozen=True)
class Casts:
    """In which types FSDP gathers, reduces and holds; None is the type that is there."""

    param_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None
    buffer_dtype: torch.dtype | None = None
    output_dtype: torch.dtype | None = None
    inputs_of_root: bool = True
    inputs_of_units: bool = False

    def policy(self, part: Module, *, is_root: bool) -> Any:
        """What `fully_shard` gets as `mp_policy` for one unit."""
        from torch.distributed.fsdp import MixedPrecisionPolicy

        if self.keeps_apart(part):
            return MixedPrecisionPolicy(cast_forward_inputs=False)
        return MixedPrecisionPolicy(
            param_dtype=self.param_dtype,
            reduce_dtype=self.reduce_dtype,
            output_dtype=self.output_dtype if is_root else None,
            cast_forward_inputs=self.inputs_of_root if is_root else self.inputs_of_units,
        )

    def keeps_apart(self, part: Module) -> bool:
        """Does it keep its own types? Batch norm has running means that 16 bits are too short for."""
        return self.param_dtype is not None and isinstance(part, _BatchNorm)


def read_casts(given: Any) -> Casts:
    """The casts that `mixed_precision` asks for.

    Raises:
        ArgumentTypeError: If it is none of torch's two descriptions of them.
        ConfigurationError: If it asks for gradients in low precision.
    """
    if given is None:
        return Casts()
    from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy

    if isinstance(given, MixedPrecisionPolicy):
        cast = given.cast_forward_inputs
        return Casts(given.param_dtype, given.reduce_dtype, None, given.output_dtype, cast, cast)
    if not isinstance(given, MixedPrecision):
        raise ArgumentTypeError(
            f"FSDPStrategy(mixed_precision={given!r}) is a {type(given).__name__}. It names the types in which"
            " parameters are gathered and gradients reduced. Pass torch.distributed.fsdp.MixedPrecision(...), or leave"
            " it out and pass precision='bf16-mixed' to Fabric or Trainer."
        )
    if given.keep_low_precision_grads:
        raise ConfigurationError(
            "FSDPStrategy(mixed_precision=MixedPrecision(keep_low_precision_grads=True)) cannot be had. Parameters are"
            " split by torch's fully_shard, whose gradients have the type of the parameters. Leave it out."
        )
    # Of parameters in low precision, gradients are reduced in it too, unless told otherwise: so it was in FSDP1.
    return Casts(
        param_dtype=given.param_dtype,
        reduce_dtype=given.reduce_dtype or given.param_dtype,
        buffer_dtype=given.buffer_dtype,
        inputs_of_root=given.cast_root_forward_inputs,
        inputs_of_units=given.cast_forward_inputs,
    )


def offloads(given: Any) -> bool:
    """Do parameters wait on the CPU, by `cpu_offload`?

    Raises:
        ArgumentTypeError: If it is neither a bool nor one of torch's descriptions.
    """
    if given is None or isinstance(given, bool):
        return bool(given)
    from torch.distributed.fsdp import CPUOffload, CPUOffloadPolicy, OffloadPolicy

    if isinstance(given, CPUOffload):
        return bool(given.offload_params)
    if isinstance(given, OffloadPolicy):
        return isinstance(given, CPUOffloadPolicy)
    raise ArgumentTypeError(
        f"FSDPStrategy(cpu_offload={given!r}) is a {type(given).__name__}. It says whether parameters and gradients"
        " wait on the CPU until they are needed. Pass True or False."
    )
