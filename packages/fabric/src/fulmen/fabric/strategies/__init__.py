"""How a model runs on devices."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.strategies.base import Strategy as Strategy
    from fulmen.fabric.strategies.catalog import STRATEGY_REGISTRY as STRATEGY_REGISTRY
    from fulmen.fabric.strategies.ddp import DDPStrategy as DDPStrategy
    from fulmen.fabric.strategies.dp import DataParallelStrategy as DataParallelStrategy
    from fulmen.fabric.strategies.fsdp import FSDPStrategy as FSDPStrategy
    from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy as ModelParallelStrategy
    from fulmen.fabric.strategies.parallel import ParallelStrategy as ParallelStrategy
    from fulmen.fabric.strategies.single_device import SingleDeviceStrategy as SingleDeviceStrategy

__all__ = [
    "DDPStrategy",
    "DataParallelStrategy",
    "FSDPStrategy",
    "ModelParallelStrategy",
    "ParallelStrategy",
    "STRATEGY_REGISTRY",
    "SingleDeviceStrategy",
    "Strategy",
]
__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "DDPStrategy": "fulmen.fabric.strategies.ddp",
        "DataParallelStrategy": "fulmen.fabric.strategies.dp",
        "FSDPStrategy": "fulmen.fabric.strategies.fsdp",
        "ModelParallelStrategy": "fulmen.fabric.strategies.model_parallel",
        "ParallelStrategy": "fulmen.fabric.strategies.parallel",
        "STRATEGY_REGISTRY": "fulmen.fabric.strategies.catalog",
        "SingleDeviceStrategy": "fulmen.fabric.strategies.single_device",
        "Strategy": "fulmen.fabric.strategies.base",
    },
)
