"""The names of strategies ("ddp", "single_device", ...), and what each builds."""

from __future__ import annotations

from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.ddp import DDPStrategy
from fulmen.fabric.strategies.dp import DataParallelStrategy
from fulmen.fabric.strategies.fsdp import FSDPStrategy
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy

STRATEGY_REGISTRY: Registry[type[Strategy]] = Registry("strategy")

for _strategy in (DDPStrategy, DataParallelStrategy, FSDPStrategy, SingleDeviceStrategy):
    _strategy.register_strategies(STRATEGY_REGISTRY)
