"""How the trainer runs a module on devices."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.trainer.strategies.base import Strategy as Strategy
    from fulmen.trainer.strategies.catalog import StrategyRegistry as StrategyRegistry
    from fulmen.trainer.strategies.ddp import DDPStrategy as DDPStrategy
    from fulmen.trainer.strategies.deepspeed import DeepSpeedStrategy as DeepSpeedStrategy
    from fulmen.trainer.strategies.deepspeed import remove_module_hooks as remove_module_hooks
    from fulmen.trainer.strategies.fsdp import FSDPStrategy as FSDPStrategy
    from fulmen.trainer.strategies.model_parallel import ModelParallelStrategy as ModelParallelStrategy
    from fulmen.trainer.strategies.parallel import ParallelStrategy as ParallelStrategy
    from fulmen.trainer.strategies.single_device import SingleDeviceStrategy as SingleDeviceStrategy
    from fulmen.trainer.strategies.single_xla import SingleDeviceXLAStrategy as SingleDeviceXLAStrategy
    from fulmen.trainer.strategies.xla import XLAStrategy as XLAStrategy
    from fulmen.trainer.strategies.xla_fsdp import XLAFSDPStrategy as XLAFSDPStrategy

__all__ = [
    "DDPStrategy",
    "DeepSpeedStrategy",
    "FSDPStrategy",
    "ModelParallelStrategy",
    "ParallelStrategy",
    "SingleDeviceStrategy",
    "SingleDeviceXLAStrategy",
    "Strategy",
    "StrategyRegistry",
    "XLAFSDPStrategy",
    "XLAStrategy",
    "remove_module_hooks",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "DDPStrategy": "fulmen.trainer.strategies.ddp",
        "DeepSpeedStrategy": "fulmen.trainer.strategies.deepspeed",
        "FSDPStrategy": "fulmen.trainer.strategies.fsdp",
        "ModelParallelStrategy": "fulmen.trainer.strategies.model_parallel",
        "ParallelStrategy": "fulmen.trainer.strategies.parallel",
        "SingleDeviceStrategy": "fulmen.trainer.strategies.single_device",
        "SingleDeviceXLAStrategy": "fulmen.trainer.strategies.single_xla",
        "Strategy": "fulmen.trainer.strategies.base",
        "StrategyRegistry": "fulmen.trainer.strategies.catalog",
        "XLAFSDPStrategy": "fulmen.trainer.strategies.xla_fsdp",
        "XLAStrategy": "fulmen.trainer.strategies.xla",
        "remove_module_hooks": "fulmen.trainer.strategies.deepspeed",
    },
)
