"""Where metrics and hyperparameters go."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.trainer.loggers.base import DummyLogger as DummyLogger
    from fulmen.trainer.loggers.base import Logger as Logger
    from fulmen.trainer.loggers.csv import CSVLogger as CSVLogger

__all__ = ["CSVLogger", "DummyLogger", "Logger"]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "CSVLogger": "fulmen.trainer.loggers.csv",
        "DummyLogger": "fulmen.trainer.loggers.base",
        "Logger": "fulmen.trainer.loggers.base",
    },
)
