"""The names that `Trainer(strategy=...)` knows, and the bound strategy for each of fabric's."""

from typing import Any

from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy as FabricStrategy
from fulmen.fabric.strategies.ddp import DDPStrategy as FabricDDPStrategy
from fulmen.fabric.strategies.fsdp import FSDPStrategy as FabricFSDPStrategy
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy as FabricModelParallelStrategy
from fulmen.fabric.strategies.parallel import ParallelStrategy as FabricParallelStrategy
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy as FabricSingleDeviceStrategy
from fulmen.trainer.errors import ArgumentTypeError
from fulmen.trainer.strategies.base import Strategy
from fulmen.trainer.strategies.ddp import DDPStrategy, register_ddp
from fulmen.trainer.strategies.fsdp import FSDPStrategy, register_fsdp
from fulmen.trainer.strategies.model_parallel import ModelParallelStrategy
from fulmen.trainer.strategies.parallel import ParallelStrategy
from fulmen.trainer.strategies.single_device import SingleDeviceStrategy

STRATEGY_REGISTRY: Registry[type[Any]] = Registry("strategy")
"""Names to strategy classes, fabric's or the trainer's; users may register their own."""

register_ddp(STRATEGY_REGISTRY, FabricDDPStrategy)
register_fsdp(STRATEGY_REGISTRY, FabricFSDPStrategy)
STRATEGY_REGISTRY.register("single_device", FabricSingleDeviceStrategy, "one process, one device")

StrategyRegistry = STRATEGY_REGISTRY

# A fabric strategy is bound by the first entry that it is an instance of.
_BOUND: list[tuple[Any, type[Strategy]]] = [
    (FabricDDPStrategy, DDPStrategy),
    (FabricFSDPStrategy, FSDPStrategy),
    (FabricModelParallelStrategy, ModelParallelStrategy),
    (FabricParallelStrategy, ParallelStrategy),
    (FabricSingleDeviceStrategy, SingleDeviceStrategy),
    (FabricStrategy, Strategy),
]


def bind(strategy: FabricStrategy | Strategy) -> Strategy:
    """`strategy` for the trainer: a bound one as it is, one of fabric's inside a new bound one.

    Raises:
        ArgumentTypeError: It is neither.
    """
    if isinstance(strategy, Strategy):
        return strategy
    for known, bound in _BOUND:
        if isinstance(strategy, known):
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
