"""The names of strategies ("ddp", "single_device", ...), and what each builds."""

from __future__ import annotations

import importlib
from functools import partial

from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy

STRATEGY_REGISTRY: Registry[type[Strategy]] = Registry("strategy")

DEEPSPEED_NAMES = (
    "deepspeed",
    "deepspeed_stage_1",
    "deepspeed_stage_1_offload",
    "deepspeed_stage_2",
    "deepspeed_stage_2_offload",
    "deepspeed_stage_3",
    "deepspeed_stage_3_offload",
    "deepspeed_stage_3_offload_nvme",
)
"""Those of `DeepSpeedStrategy`, which is not imported for them."""

# Each class, where it is, and the names that it registers: it is imported when one of them is asked for.
_NAMES: dict[str, tuple[str, ...]] = {
    "ddp:DDPStrategy": ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook", "ddp_find_unused_parameters_true"),
    "deepspeed.strategy:DeepSpeedStrategy": DEEPSPEED_NAMES,
    "dp:DataParallelStrategy": ("dp",),
    "fsdp:FSDPStrategy": ("fsdp", "fsdp_cpu_offload"),
    "single_device:SingleDeviceStrategy": ("single_device",),
    "single_xla:SingleDeviceXLAStrategy": ("single_xla", "single_tpu"),
    "xla.strategy:XLAStrategy": ("xla",),
    "xla_fsdp:XLAFSDPStrategy": ("xla_fsdp",),
}


def _register_names_of(place: str, registry: Registry[type[Strategy]]) -> None:
    module, _, name = place.partition(":")
    kind: type[Strategy] = getattr(importlib.import_module(f"fulmen.fabric.strategies.{module}"), name)
    kind.register_strategies(registry)


for _place, _names in _NAMES.items():
    STRATEGY_REGISTRY.expect(_names, partial(_register_names_of, _place))
