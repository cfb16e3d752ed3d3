"""The names that `Trainer(strategy=...)` knows, and the bound strategy for each of fabric's."""

import importlib
from typing import Any

from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy as FabricStrategy
from fulmen.fabric.strategies.catalog import DEEPSPEED_NAMES
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy as FabricSingleDeviceStrategy
from fulmen.trainer.errors import ArgumentTypeError
from fulmen.trainer.strategies.base import Strategy

STRATEGY_REGISTRY: Registry[type[Any]] = Registry("strategy")
"""Names to strategy classes, fabric's or the trainer's; users may register their own."""

StrategyRegistry = STRATEGY_REGISTRY

# Fabric's strategies that have a bound one of the same name here. It is in the file that is called as theirs, or as the
# folder that theirs is in.
_BOUND = {
    "base.Strategy",
    "ddp.DDPStrategy",
    "deepspeed.strategy.DeepSpeedStrategy",
    "fsdp.FSDPStrategy",
    "model_parallel.ModelParallelStrategy",
    "parallel.ParallelStrategy",
    "single_device.SingleDeviceStrategy",
    "single_xla.SingleDeviceXLAStrategy",
    "xla.strategy.XLAStrategy",
    "xla_fsdp.XLAFSDPStrategy",
}
_DDP_NAMES = tuple(
    f"{start}{unused}"
    for start in ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook")
    for unused in ("", "_find_unused_parameters_false", "_find_unused_parameters_true")
)


def _add_ddp(registry: Registry[type[Any]]) -> None:
    from fulmen.fabric.strategies.ddp import DDPStrategy as FabricDDPStrategy
    from fulmen.trainer.strategies.ddp import register_ddp

    register_ddp(registry, FabricDDPStrategy)


def _add_deepspeed(registry: Registry[type[Any]]) -> None:
    from fulmen.fabric.strategies.deepspeed.strategy import DeepSpeedStrategy as FabricDeepSpeedStrategy
    from fulmen.trainer.strategies.deepspeed import register_deepspeed

    register_deepspeed(registry, FabricDeepSpeedStrategy)


def _add_fsdp(registry: Registry[type[Any]]) -> None:
    from fulmen.fabric.strategies.fsdp import FSDPStrategy as FabricFSDPStrategy
    from fulmen.trainer.strategies.fsdp import register_fsdp

    register_fsdp(registry, FabricFSDPStrategy)


def _add_xla(registry: Registry[type[Any]]) -> None:
    from fulmen.fabric.strategies.single_xla import SingleDeviceXLAStrategy
    from fulmen.fabric.strategies.xla.strategy import XLAStrategy as FabricXLAStrategy
    from fulmen.fabric.strategies.xla_fsdp import XLAFSDPStrategy
    from fulmen.trainer.strategies.xla import XLAStrategy

    SingleDeviceXLAStrategy.register_strategies(registry)
    FabricXLAStrategy.register_strategies(registry)
    registry.register("xla_debug", XLAStrategy, "As xla; torch_xla reports what it does.", debug=True)
    registry.register("xla_fsdp", XLAFSDPStrategy, "Parameters are divided over XLA devices.", spmd=True)


# Nothing is imported for a strategy that nobody asks for.
STRATEGY_REGISTRY.expect(_DDP_NAMES, _add_ddp)
STRATEGY_REGISTRY.expect(DEEPSPEED_NAMES, _add_deepspeed)
STRATEGY_REGISTRY.expect(("fsdp", "fsdp_cpu_offload"), _add_fsdp)
STRATEGY_REGISTRY.expect(("single_xla", "single_tpu", "xla", "xla_debug", "xla_fsdp"), _add_xla)
STRATEGY_REGISTRY.register("single_device", FabricSingleDeviceStrategy, "one process, one device")


def bind(strategy: FabricStrategy | Strategy) -> Strategy:
    """`strategy` for the trainer: a bound one as it is, one of fabric's inside a new bound one.

    Raises:
        ArgumentTypeError: It is neither.
    """
    if isinstance(strategy, Strategy):
        return strategy
    for kind in type(strategy).__mro__:
        place = f"{kind.__module__}.{kind.__qualname__}".removeprefix("fulmen.fabric.strategies.")
        if place in _BOUND:
            module, *_, name = place.split(".")
            bound: type[Strategy] = getattr(importlib.import_module(f"fulmen.trainer.strategies.{module}"), name)
            return bound.from_fabric(strategy)
    raise ArgumentTypeError(
        f"strategy={strategy!r} is no strategy ({type(strategy).__name__})."
        " A run needs to know how its processes work together."
        f" Pass one of the names {', '.join(map(repr, STRATEGY_REGISTRY.names()))}, or a Strategy."
    )


def build(name: str) -> Strategy:
    """The bound strategy that `name` stands for.

    Raises:
        ConfigurationError: The name is not registered; lists those that are.
    """
    entry = STRATEGY_REGISTRY[name]
    return bind(entry.value(**entry.preset))
