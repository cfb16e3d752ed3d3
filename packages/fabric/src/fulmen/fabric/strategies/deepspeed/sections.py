"""Where in a configuration of DeepSpeed everything stands; read and write there. Knows no tensor, no process.

A configuration is a nested dictionary, as https://www.deepspeed.ai/docs/config-json describes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.strategies.deepspeed.arguments import DeepSpeedArguments

Config: TypeAlias = dict[str, Any]
# Names of precisions, and the section of the configuration that stands for them. DeepSpeed keeps 32-bit master weights
# beside 16-bit ones, so that "true" and "mixed" are the same to it.
SECTIONS: dict[str, str | None] = {
    "32-true": None,
    "16-true": "fp16",
    "16-mixed": "fp16",
    "bf16-true": "bf16",
    "bf16-mixed": "bf16",
}
# What users may leave to the run.
OPEN = (None, "auto")
ABSENT: Any = object()

ZERO, PARAMETERS, OPTIMIZER = "zero_optimization", "offload_param", "offload_optimizer"
# Where each argument stands in a configuration. The three switches are the presence of a section.
# Numbers of threads that read the disk are what DeepSpeed 0.19 calls "intra_op_parallelism".
PLACES: dict[str, tuple[tuple[str, ...], ...]] = {
    "stage": ((ZERO, "stage"),),
    "contiguous_gradients": ((ZERO, "contiguous_gradients"),),
    "overlap_comm": ((ZERO, "overlap_comm"),),
    "allgather_partitions": ((ZERO, "allgather_partitions"),),
    "reduce_scatter": ((ZERO, "reduce_scatter"),),
    "allgather_bucket_size": ((ZERO, "allgather_bucket_size"),),
    "reduce_bucket_size": ((ZERO, "reduce_bucket_size"),),
    "sub_group_size": ((ZERO, "sub_group_size"),),
    "offload_params_device": ((ZERO, PARAMETERS, "device"),),
    "params_buffer_count": ((ZERO, PARAMETERS, "buffer_count"),),
    "params_buffer_size": ((ZERO, PARAMETERS, "buffer_size"),),
    "max_in_cpu": ((ZERO, PARAMETERS, "max_in_cpu"),),
    "offload_optimizer_device": ((ZERO, OPTIMIZER, "device"),),
    "optimizer_buffer_count": ((ZERO, OPTIMIZER, "buffer_count"),),
    "nvme_path": ((ZERO, PARAMETERS, "nvme_path"), (ZERO, OPTIMIZER, "nvme_path")),
    "pin_memory": ((ZERO, PARAMETERS, "pin_memory"), (ZERO, OPTIMIZER, "pin_memory")),
    "block_size": (("aio", "block_size"),),
    "queue_depth": (("aio", "queue_depth"),),
    "single_submit": (("aio", "single_submit"),),
    "overlap_events": (("aio", "overlap_events"),),
    "thread_count": (("aio", "intra_op_parallelism"),),
    "partition_activations": (("activation_checkpointing", "partition_activations"),),
    "cpu_checkpointing": (("activation_checkpointing", "cpu_checkpointing"),),
    "contiguous_memory_optimization": (("activation_checkpointing", "contiguous_memory_optimization"),),
    "synchronize_checkpoint_boundary": (("activation_checkpointing", "synchronize_checkpoint_boundary"),),
    "zero_allow_untested_optimizer": (("zero_allow_untested_optimizer",),),
}
SWITCHES = {
    "zero_optimization": (ZERO,),
    "offload_parameters": (ZERO, PARAMETERS),
    "offload_optimizer": (ZERO, OPTIMIZER),
}


def closed_switch(arguments: DeepSpeedArguments, place: tuple[str, ...]) -> str | None:
    """The switch that is off for the section of `place`; None if all are on."""
    for switch, section in SWITCHES.items():
        if place[: len(section)] == section and not getattr(arguments, switch) and place != section:
            return switch
    return None


def zero_stage(config: Mapping[str, Any]) -> Any:
    """The stage of ZeRO that a configuration asks for; 0 without one."""
    stage = get(config, (ZERO, "stage"))
    return 0 if stage is ABSENT else stage


def offloads(config: Mapping[str, Any], what: Literal["parameters", "optimizer"]) -> str | None:
    """Where parameters or the state of optimizers wait: "cpu", "nvme", or None where they do not."""
    place = (ZERO, PARAMETERS if what == "parameters" else OPTIMIZER)
    section = get(config, place)
    if not isinstance(section, Mapping):
        return None
    device = str(section.get("device", "none"))
    return None if device == "none" else device


def precision_in(config: Mapping[str, Any]) -> str | None:
    """The precision that a configuration names: "16-mixed", "bf16-mixed", or None."""
    names = {"fp16": "16-mixed", "bf16": "bf16-mixed"}
    return next((name for section, name in names.items() if is_enabled(config, section)), None)


def is_enabled(config: Mapping[str, Any], section: str) -> bool:
    """Does the configuration switch a section such as "fp16" on?"""
    return get(config, (section, "enabled")) is True


def get(config: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    """What stands at a place; `ABSENT` if nothing does."""
    found: Any = config
    for key in place:
        if not isinstance(found, Mapping) or key not in found:
            return ABSENT
        found = found[key]
    return found


def put(config: Config, place: tuple[str, ...], value: Any) -> None:
    """Write a value to a place; sections on the way are made."""
    *sections, key = place
    for section in sections:
        config = config.setdefault(section, {})
    config[key] = value


def contradiction(said: str, key: str, value: Any) -> ConfigurationError:
    """The error for what a user said twice, in two ways.

    Args:
        said: How the user said it outside of the configuration, without the last bracket.
        key: In the configuration.
        value: Which stands there.
    """
    shown = repr(value) if not isinstance(value, Mapping) else "{...}"
    return ConfigurationError(
        f"{said}) contradicts the configuration of DeepSpeed, in which {key} is {shown}. Both say the same thing, and"
        f" none of the two is the obvious one. Change one of them, or remove {key} from the configuration."
    )
