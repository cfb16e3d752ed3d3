"""How a model runs on devices."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.strategies.base import Strategy as Strategy
    from fulmen.fabric.strategies.catalog import STRATEGY_REGISTRY as STRATEGY_REGISTRY
    from fulmen.fabric.strategies.context_parallel import ring_attention as ring_attention
    from fulmen.fabric.strategies.context_parallel import ulysses_attention as ulysses_attention
    from fulmen.fabric.strategies.ddp import DDPStrategy as DDPStrategy
    from fulmen.fabric.strategies.deepspeed.strategy import DeepSpeedStrategy as DeepSpeedStrategy
    from fulmen.fabric.strategies.dp import DataParallelStrategy as DataParallelStrategy
    from fulmen.fabric.strategies.fsdp import FSDPStrategy as FSDPStrategy
    from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy as ModelParallelStrategy
    from fulmen.fabric.strategies.parallel import ParallelStrategy as ParallelStrategy
    from fulmen.fabric.strategies.pipeline.cuts import Pipeline as Pipeline
    from fulmen.fabric.strategies.single_device import SingleDeviceStrategy as SingleDeviceStrategy
    from fulmen.fabric.strategies.single_xla import SingleDeviceXLAStrategy as SingleDeviceXLAStrategy
    from fulmen.fabric.strategies.xla.strategy import XLAStrategy as XLAStrategy
    from fulmen.fabric.strategies.xla_fsdp import XLAFSDPStrategy as XLAFSDPStrategy

__all__ = [
    "DDPStrategy",
    "DataParallelStrategy",
    "DeepSpeedStrategy",
    "FSDPStrategy",
    "ModelParallelStrategy",
    "ParallelStrategy",
    "Pipeline",
    "STRATEGY_REGISTRY",
    "SingleDeviceStrategy",
    "SingleDeviceXLAStrategy",
    "Strategy",
    "XLAFSDPStrategy",
    "XLAStrategy",
    "ring_attention",
    "ulysses_attention",
]
__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "DDPStrategy": "fulmen.fabric.strategies.ddp",
        "DataParallelStrategy": "fulmen.fabric.strategies.dp",
        "DeepSpeedStrategy": "fulmen.fabric.strategies.deepspeed.strategy",
        "FSDPStrategy": "fulmen.fabric.strategies.fsdp",
        "ModelParallelStrategy": "fulmen.fabric.strategies.model_parallel",
        "ParallelStrategy": "fulmen.fabric.strategies.parallel",
        "Pipeline": "fulmen.fabric.strategies.pipeline.cuts",
        "STRATEGY_REGISTRY": "fulmen.fabric.strategies.catalog",
        "SingleDeviceStrategy": "fulmen.fabric.strategies.single_device",
        "SingleDeviceXLAStrategy": "fulmen.fabric.strategies.single_xla",
        "Strategy": "fulmen.fabric.strategies.base",
        "XLAFSDPStrategy": "fulmen.fabric.strategies.xla_fsdp",
        "XLAStrategy": "fulmen.fabric.strategies.xla.strategy",
        "ring_attention": "fulmen.fabric.strategies.context_parallel",
        "ulysses_attention": "fulmen.fabric.strategies.context_parallel",
    },
)
