"""Where the time goes."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.trainer.profilers.advanced import AdvancedProfiler as AdvancedProfiler
    from fulmen.trainer.profilers.base import PassThroughProfiler as PassThroughProfiler
    from fulmen.trainer.profilers.base import Profiler as Profiler
    from fulmen.trainer.profilers.module_ranges import RegisterRecordFunction as RegisterRecordFunction
    from fulmen.trainer.profilers.pytorch import PyTorchProfiler as PyTorchProfiler
    from fulmen.trainer.profilers.simple import SimpleProfiler as SimpleProfiler
    from fulmen.trainer.profilers.step_schedule import ScheduleWrapper as ScheduleWrapper
    from fulmen.trainer.profilers.xla import XLAProfiler as XLAProfiler

__all__ = [
    "AdvancedProfiler",
    "PassThroughProfiler",
    "Profiler",
    "PyTorchProfiler",
    "RegisterRecordFunction",
    "ScheduleWrapper",
    "SimpleProfiler",
    "XLAProfiler",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "AdvancedProfiler": "fulmen.trainer.profilers.advanced",
        "PassThroughProfiler": "fulmen.trainer.profilers.base",
        "Profiler": "fulmen.trainer.profilers.base",
        "PyTorchProfiler": "fulmen.trainer.profilers.pytorch",
        "RegisterRecordFunction": "fulmen.trainer.profilers.module_ranges",
        "ScheduleWrapper": "fulmen.trainer.profilers.step_schedule",
        "SimpleProfiler": "fulmen.trainer.profilers.simple",
        "XLAProfiler": "fulmen.trainer.profilers.xla",
    },
)
