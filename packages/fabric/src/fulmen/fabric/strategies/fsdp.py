"""Parameters, gradients and the state of optimizers are split over processes; each part is gathered when it runs.

Built on `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import Module

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.class_names import class_name
from fulmen.fabric.collectives.process_group import default_pg_timeout
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.launchers.base import Launcher
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.fsdp import NAMES, FSDPPrecision
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.fsdp_arguments import (
    Casts,
    ShardingName,
    check_mesh,
    check_together,
    make_mesh,
    offloads,
    read_casts,
    read_options,
    reshards,
    sharding_name,
)
from fulmen.fabric.strategies.fsdp_units import Policy, check_policy, choose, recompute
from fulmen.fabric.strategies.known_here import ModulesKnownHere
from fulmen.fabric.strategies.materialize import Materializer, without_memory
from fulmen.fabric.strategies.mesh import MeshStrategy
from fulmen.fabric.strategies.sharded_tensors import is_dtensor, local_part

if TYPE_CHECKING:
    from torch.distributed.fsdp import CPUOffload, CPUOffloadPolicy, MixedPrecision, MixedPrecisionPolicy
    from torch.distributed.fsdp import ShardingStrategy as TorchShardingStrategy
else:
    # Their module takes seconds to import.
    CPUOffload = CPUOffloadPolicy = MixedPrecision = MixedPrecisionPolicy = TorchShardingStrategy = Any


class FSDPStrategy(MeshStrategy):
    """Fully sharded data parallel: every process trains on its part of the data, and keeps its part of the parameters.

    | `sharding_strategy` | split | replicated |
    | --- | --- | --- |
    | "FULL_SHARD" | parameters, gradients, optimizer state | nothing |
    | "SHARD_GRAD_OP" | the same; parameters stay gathered from forward to backward | nothing |
    | "HYBRID_SHARD" | the same as the first, within a machine, or by `device_mesh` | over machines |
    | "NO_SHARD" | nothing | over all processes |

    Args:
        accelerator: The kind of hardware.
        parallel_devices: The devices of this node, one per process.
        cluster_environment: Says which process this is, and where the processes meet.
        precision: A `FSDPPrecision`.
        process_group_backend: "gloo", "nccl", ...; by default the one for the device.
        timeout: How long a collective waits for the other processes.
        cpu_offload: Parameters, gradients and optimizer state wait on the CPU until they are needed.
        mixed_precision: The types in which parameters are gathered and gradients reduced; by default from `precision`.
        auto_wrap_policy: Which parts of the module are units, gathered and let go one after the other: classes of
            modules, or a function of (module, recurse, nonwrapped_numel). By default the whole module is one.
        activation_checkpointing: The same as `activation_checkpointing_policy`, one class or a list.
        activation_checkpointing_policy: Which parts forget their activations, and compute them again in backward;
            given as `auto_wrap_policy` is.
        sharding_strategy: See above; torch's enumeration, too.
        state_dict_type: Save a folder to which every process writes its shards, or one file that rank 0 writes.
        device_mesh: For hybrid sharding: (number of replicas, processes in each), or a mesh of these two axes.
        kwargs: Of `fully_shard`: `reshard_after_forward`, `shard_placement_fn`, `ignored_params`. Of
            `FullyShardedDataParallel`: `ignored_modules`, `ignored_states`, `forward_prefetch`, `sync_module_states`,
            `param_init_fn`, `process_group`.
    """

    _how_to_save_one_file = "FSDPStrategy(state_dict_type='full')"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        precision: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
        cpu_offload: bool | CPUOffload | CPUOffloadPolicy | None = None,
        mixed_precision: MixedPrecision | MixedPrecisionPolicy | None = None,
        auto_wrap_policy: Policy | None = None,
        activation_checkpointing: type[Module] | list[type[Module]] | None = None,
        activation_checkpointing_policy: Policy | None = None,
        sharding_strategy: ShardingName | TorchShardingStrategy = "FULL_SHARD",
        state_dict_type: Literal["full", "sharded"] = "sharded",
        device_mesh: tuple[int, int] | DeviceMesh | None = None,
        **kwargs: Any,
    ) -> None:
        if state_dict_type not in ("full", "sharded"):
            raise ConfigurationError(
                f"FSDPStrategy(state_dict_type={state_dict_type!r}) is unknown. It says how checkpoints are saved."
                " Pass 'sharded' for a folder to which every process writes, or 'full' for one file."
            )
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            precision=_checked(precision),
            process_group_backend=process_group_backend,
            timeout=timeout,
            saves_shards=state_dict_type == "sharded",
        )
        self._sharding = sharding_name(sharding_strategy)
        self._options = read_options(kwargs)
        check_together(self._sharding, device_mesh, self._options)
        self._asked_mesh = device_mesh
        self._offloads = offloads(cpu_offload)
        self.mixed_precision = mixed_precision
        self._own_casts = read_casts(mixed_precision)
        check_policy("auto_wrap_policy", auto_wrap_policy)
        self._unit_policy = auto_wrap_policy
        self._recompute_policy = _recompute_policy(activation_checkpointing, activation_checkpointing_policy)
        self._split_here = ModulesKnownHere()

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[type[Strategy]]) -> None:
        """Register "fsdp" and "fsdp_cpu_offload"."""
        strategy_registry.register("fsdp", cls, description="Parameters are split over processes.")
        strategy_registry.register(
            "fsdp_cpu_offload", cls, description="As fsdp; parameters wait on the CPU.", cpu_offload=True
        )

    @property
    def precision(self) -> FSDPPrecision:
        """How numbers are held and computed."""
        return _PLAIN if self._precision is None else self._precision  # type: ignore[return-value]  # checked when set

    @precision.setter
    def precision(self, precision: Precision | None) -> None:
        self._precision = _checked(precision)

    def adapt_precision(self, precision: Precision, device_type: str) -> Precision:
        """A `FSDPPrecision` of the same name."""
        return FSDPPrecision(precision.precision, device=device_type)  # type: ignore[arg-type]  # checked there

    @property
    def sharding_strategy(self) -> TorchShardingStrategy:
        """What is split, and over which processes."""
        from torch.distributed.fsdp import ShardingStrategy as TorchShardingStrategy

        return TorchShardingStrategy[self._sharding]

    @property
    def cpu_offload(self) -> CPUOffload:
        """Do parameters wait on the CPU?"""
        from torch.distributed.fsdp import CPUOffload

        return CPUOffload(offload_params=self._offloads)

    @property
    def mixed_precision_config(self) -> MixedPrecision | MixedPrecisionPolicy | None:
        """The types in which parameters are gathered and gradients reduced: those given, or the precision's."""
        return self.mixed_precision or self.precision.mixed_precision_config

    def configure_launcher(self) -> Launcher:
        """Runs the program again in every process.

        Raises:
            ConfigurationError: If the sizes of the mesh do not fit the number of processes: before one is started.
        """
        check_mesh(self._sharding, self._asked_mesh, self.num_nodes, self.num_processes)
        return super().configure_launcher()

    def setup_environment(self) -> None:
        """Take the device, join the other processes, and take a place in the mesh."""
        super().setup_environment()
        if self._mesh is None:
            self._mesh = make_mesh(
                self._sharding,
                self._asked_mesh,
                self._options,
                self.root_device.type,
                self.num_nodes,
                self.num_processes,
            )

    # ---- make modules

    @contextmanager
    def module_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Modules made inside have the right type, and are on the CPU until they are split.

        Args:
            empty_init: Make them on the meta device: without memory, until they are split.
        """
        with super().module_init_context(empty_init), self.module_sharded_context():
            yield

    def module_sharded_context(self) -> AbstractContextManager[Any]:
        """Inside, `torch.distributed.fsdp.wrap.wrap(module)` splits a module at once, as a unit."""
        from torch.distributed.fsdp.wrap import enable_wrap

        return enable_wrap(wrapper_cls=self._split_now)

    def _split_now(self, module: Module) -> Module:
        if not _is_unit(module):
            self._split(module, [module], root=None)
        return module

    def split_module(self, module: Module) -> Module:
        """Split each unit that the policy names, and then what is left of the module.

        Raises:
            ConfigurationError: If the user has split it all, and asks for units beside.
        """
        policies = self._unit_policy is not None or self._recompute_policy is not None
        if _is_unit(module):
            if policies and module not in self._split_here:
                raise ConfigurationError(
                    "FSDPStrategy(auto_wrap_policy=..., activation_checkpointing_policy=...) got a module to which"
                    f" fully_shard was applied already, {class_name(module)}. The policies could change nothing."
                    " Leave them out, or leave the splitting to the strategy."
                )
            return module
        recompute(self._chosen(module, self._recompute_policy, "activation_checkpointing_policy"))
        units = [part for part in module.modules() if self._casts().keeps_apart(part)]
        units += self._chosen(module, self._unit_policy, "auto_wrap_policy")
        self._split(module, [*(unit for unit in units if unit is not module and not _is_unit(unit)), module], module)
        self._split_here.add(module)
        return module

    def _chosen(self, module: Module, policy: Policy | None, name: str) -> list[Module]:
        parts = choose(module, policy)
        if policy is not None and not parts:
            rank_zero_warn(
                f"FSDPStrategy({name}=...) names no part of {class_name(module)}, and so changes nothing."
                " Pass the classes of modules that it is made of."
            )
        return parts

    def _casts(self) -> Casts:
        return self._own_casts if self.mixed_precision is not None else read_casts(self.mixed_precision_config)

    def _split(self, module: Module, units: list[Module], root: Module | None) -> None:
        """Split units of a module, inner ones first; what is on the meta device gets memory when its turn has come."""
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        casts, ignored = self._casts(), self._options.ignored() & set(module.parameters())
        offload = CPUOffloadPolicy(pin_memory=self.root_device.type != "cpu") if self._offloads else OffloadPolicy()
        materializer = Materializer(self.root_device, self._options.param_init_fn)
        for parameter in ignored:
            parameter.data = parameter.data.to(self.root_device)
        with self.same_random_numbers(wanted=bool(without_memory(module))):
            for unit in units:
                materializer.fill(without_memory(unit))
                if self._options.sync_module_states:
                    self._take_values_of_rank_zero(unit)
                fully_shard(
                    unit,
                    mesh=self.device_mesh,
                    reshard_after_forward=reshards(self._sharding, self._options),
                    shard_placement_fn=self._options.shard_placement_fn,
                    mp_policy=casts.policy(unit, is_root=unit is root),
                    offload_policy=offload,
                    ignored_params=ignored or None,
                )
        materializer.warn()
        self._make_replicas_equal(module)
        if casts.buffer_dtype is not None:
            for part in module.modules():
                if not casts.keeps_apart(part):
                    _cast_buffers(part, casts.buffer_dtype)
        if self._options.forward_prefetch:
            parts: list[Any] = [part for part in module.modules() if _is_unit(part)]
            for part, following in itertools.pairwise(parts):
                part.set_modules_to_forward_prefetch([following])

    def _take_values_of_rank_zero(self, unit: Module) -> None:
        for tensor in itertools.chain(unit.parameters(), unit.buffers()):
            if not is_dtensor(tensor):
                tensor.data = tensor.data.to(self.root_device)
                dist.broadcast(tensor.data, src=0)

    def _make_replicas_equal(self, module: Module) -> None:
        """Give each replica the values of the first: gradients keep them equal from then on."""
        mesh = self.device_mesh
        if mesh.ndim < 2 or mesh.size(0) == 1:
            return
        for parameter in module.parameters():
            part = local_part(parameter.detach())
            if is_dtensor(parameter) and part.numel():
                here = part.to(self.root_device).contiguous()
                dist.broadcast(here, group=mesh.get_group(0), group_src=0)
                part.copy_(here)


_PLAIN = FSDPPrecision("32-true")


def _is_unit(module: Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def _cast_buffers(part: Module, dtype: torch.dtype) -> None:
    for buffer in part.buffers(recurse=False):
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)


def _shown(precision: object) -> str:
    return f"{type(precision).__name__}(...)" if isinstance(precision, Precision) else repr(precision)


def _checked(precision: Precision | None) -> Precision | None:
    if precision is not None and not isinstance(precision, FSDPPrecision):
        name = getattr(precision, "precision", None)
        name = name if name in NAMES else "bf16-mixed"
        raise ArgumentTypeError(
            f"FSDPStrategy(precision={_shown(precision)}) does not say in which types to gather and reduce. Parameters"
            f" that are split need a precision that does. Pass FSDPPrecision({name!r}), or precision={name!r} to Fabric"
            " or Trainer."
        )
    return precision


def _recompute_policy(classes: type[Module] | list[type[Module]] | None, policy: Policy | None) -> Policy | None:
    if classes is not None and policy is not None:
        raise ConfigurationError(
            "FSDPStrategy(activation_checkpointing=..., activation_checkpointing_policy=...) says twice which parts"
            " compute their activations again. Both name the same thing. Pass activation_checkpointing_policy only."
        )
    if classes is None:
        check_policy("activation_checkpointing_policy", policy)
        return policy
    kinds = [classes] if isinstance(classes, type) else classes
    check_policy("activation_checkpointing", kinds)
    return set(kinds)
