"""Fulmen Tuner: a learning rate and a batch size, without leaving a trace."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.tuner.batch_size import BatchSizeTrials as BatchSizeTrials
    from fulmen.tuner.callbacks import BatchSizeFinder as BatchSizeFinder
    from fulmen.tuner.callbacks import LearningRateFinder as LearningRateFinder
    from fulmen.tuner.lr_sweep import LRFinder as LRFinder
    from fulmen.tuner.tuner import Tuner as Tuner

__version__ = "0.1.0"
__all__ = ["BatchSizeFinder", "BatchSizeTrials", "LRFinder", "LearningRateFinder", "Tuner"]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "BatchSizeFinder": "fulmen.tuner.callbacks",
        "BatchSizeTrials": "fulmen.tuner.batch_size",
        "LRFinder": "fulmen.tuner.lr_sweep",
        "LearningRateFinder": "fulmen.tuner.callbacks",
        "Tuner": "fulmen.tuner.tuner",
    },
)
