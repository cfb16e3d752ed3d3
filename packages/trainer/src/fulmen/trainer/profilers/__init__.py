"""Where the time goes."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.trainer.profilers.base import PassThroughProfiler as PassThroughProfiler
    from fulmen.trainer.profilers.base import Profiler as Profiler
    from fulmen.trainer.profilers.simple import SimpleProfiler as SimpleProfiler

__all__ = ["PassThroughProfiler", "Profiler", "SimpleProfiler"]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "PassThroughProfiler": "fulmen.trainer.profilers.base",
        "Profiler": "fulmen.trainer.profilers.base",
        "SimpleProfiler": "fulmen.trainer.profilers.simple",
    },
)
