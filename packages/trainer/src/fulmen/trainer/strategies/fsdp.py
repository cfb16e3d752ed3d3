"""Bound: parameters, gradients and the state of optimizers are split over processes."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import Module

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.fsdp import FSDPStrategy as FabricFSDPStrategy
from fulmen.fabric.strategies.fsdp_arguments import ShardingName
from fulmen.fabric.strategies.fsdp_units import Policy
from fulmen.trainer.strategies.sharded import ShardedStrategy

if TYPE_CHECKING:
    from torch.distributed.fsdp import CPUOffload, CPUOffloadPolicy, MixedPrecision, MixedPrecisionPolicy
    from torch.distributed.fsdp import ShardingStrategy as TorchShardingStrategy
else:
    # Their module takes seconds to import.
    CPUOffload = CPUOffloadPolicy = MixedPrecision = MixedPrecisionPolicy = TorchShardingStrategy = Any


class FSDPStrategy(ShardedStrategy):
    """Fully sharded data parallel: every process trains on its part of the data, and keeps its part of the parameters.

    Args:
        accelerator, checkpoint_io, precision_plugin: See `Strategy`.
        parallel_devices, cluster_environment: See `ParallelStrategy`.
        state_dict_type: Save one file that the first process writes, or a folder to which every process writes.
        process_group_backend, timeout, cpu_offload, mixed_precision, auto_wrap_policy, activation_checkpointing,
            activation_checkpointing_policy, sharding_strategy, device_mesh, kwargs: As for
            `fulmen.fabric.strategies.FSDPStrategy`.
    """

    strategy_name = "fsdp"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = timedelta(seconds=1800),  # a constant
        cpu_offload: bool | CPUOffload | CPUOffloadPolicy | None = None,
        mixed_precision: MixedPrecision | MixedPrecisionPolicy | None = None,
        auto_wrap_policy: Policy | None = None,
        activation_checkpointing: type[Module] | list[type[Module]] | None = None,
        activation_checkpointing_policy: Policy | None = None,
        sharding_strategy: ShardingName | TorchShardingStrategy = "FULL_SHARD",
        state_dict_type: Literal["full", "sharded"] = "full",
        device_mesh: tuple[int, int] | DeviceMesh | None = None,
        **kwargs: Any,
    ) -> None:
        fabric = FabricFSDPStrategy(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            precision=precision_plugin,
            process_group_backend=process_group_backend,
            timeout=timeout,
            cpu_offload=cpu_offload,
            mixed_precision=mixed_precision,
            auto_wrap_policy=auto_wrap_policy,
            activation_checkpointing=activation_checkpointing,
            activation_checkpointing_policy=activation_checkpointing_policy,
            sharding_strategy=sharding_strategy,
            state_dict_type=state_dict_type,
            device_mesh=device_mesh,
            **kwargs,
        )
        if checkpoint_io is not None:
            fabric.checkpoint_io = checkpoint_io
        self._adopt(fabric)

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[Any]) -> None:
        """Register "fsdp" and "fsdp_cpu_offload"."""
        register_fsdp(strategy_registry, cls)

    @classmethod
    def get_registered_strategies(cls) -> list[str]:
        """The names of this strategy."""
        return ["fsdp", "fsdp_cpu_offload"]

    @property
    def mixed_precision_config(self) -> MixedPrecision | MixedPrecisionPolicy | None:
        """The types in which parameters are gathered and gradients reduced."""
        return self._fabric_fsdp.mixed_precision_config

    @property
    def device_mesh(self) -> DeviceMesh:
        """The processes, ordered into replicas and shards; known when they have been started."""
        return self._fabric_fsdp.device_mesh

    @property
    def _fabric_fsdp(self) -> FabricFSDPStrategy:
        return cast(FabricFSDPStrategy, self.fabric_strategy)


def register_fsdp(registry: Registry[Any], kind: type[Any]) -> None:
    """Register `kind` under the names of FSDP; checkpoints are one file unless somebody says otherwise."""
    registry.register("fsdp", kind, "Parameters are split over processes.", state_dict_type="full")
    registry.register(
        "fsdp_cpu_offload",
        kind,
        "As fsdp; parameters wait on the CPU.",
        state_dict_type="full",
        cpu_offload=True,
    )
