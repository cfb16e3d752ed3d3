"""Where metrics and hyperparameters go."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.loggers.base import Logger as Logger
    from fulmen.fabric.loggers.base import rank_zero_experiment as rank_zero_experiment
    from fulmen.fabric.loggers.csv import CSVLogger as CSVLogger
    from fulmen.fabric.loggers.tensorboard import TensorBoardLogger as TensorBoardLogger

_WHERE = {
    "CSVLogger": "fulmen.fabric.loggers.csv",
    "Logger": "fulmen.fabric.loggers.base",
    "TensorBoardLogger": "fulmen.fabric.loggers.tensorboard",
    "rank_zero_experiment": "fulmen.fabric.loggers.base",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
