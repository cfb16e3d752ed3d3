"""How the trainer runs a module on devices."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.trainer.strategies.base import Strategy as Strategy
    from fulmen.trainer.strategies.catalog import StrategyRegistry as StrategyRegistry
    from fulmen.trainer.strategies.ddp import DDPStrategy as DDPStrategy
    from fulmen.trainer.strategies.fsdp import FSDPStrategy as FSDPStrategy
    from fulmen.trainer.strategies.model_parallel import ModelParallelStrategy as ModelParallelStrategy
    from fulmen.trainer.strategies.parallel import ParallelStrategy as ParallelStrategy
    from fulmen.trainer.strategies.single_device import SingleDeviceStrategy as SingleDeviceStrategy

__all__ = [
    "DDPStrategy",
    "FSDPStrategy",
    "ModelParallelStrategy",
    "ParallelStrategy",
    "SingleDeviceStrategy",
    "Strategy",
    "StrategyRegistry",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "DDPStrategy": "fulmen.trainer.strategies.ddp",
        "FSDPStrategy": "fulmen.trainer.strategies.fsdp",
        "ModelParallelStrategy": "fulmen.trainer.strategies.model_parallel",
        "ParallelStrategy": "fulmen.trainer.strategies.parallel",
        "SingleDeviceStrategy": "fulmen.trainer.strategies.single_device",
        "Strategy": "fulmen.trainer.strategies.base",
        "StrategyRegistry": "fulmen.trainer.strategies.catalog",
    },
)
