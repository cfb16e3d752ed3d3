"""Where metrics and hyperparameters go."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.trainer.loggers.base import DummyLogger as DummyLogger
    from fulmen.trainer.loggers.base import Logger as Logger
    from fulmen.trainer.loggers.csv import CSVLogger as CSVLogger
    from fulmen.trainer.loggers.tensorboard import TensorBoardLogger as TensorBoardLogger

__all__ = ["CSVLogger", "DummyLogger", "Logger", "TensorBoardLogger"]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "CSVLogger": "fulmen.trainer.loggers.csv",
        "DummyLogger": "fulmen.trainer.loggers.base",
        "Logger": "fulmen.trainer.loggers.base",
        "TensorBoardLogger": "fulmen.trainer.loggers.tensorboard",
    },
)
