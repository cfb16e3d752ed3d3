"""Where metrics and hyperparameters go."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.loggers.base import Logger as Logger
    from fulmen.fabric.loggers.csv import CSVLogger as CSVLogger

__all__ = ["CSVLogger", "Logger"]
__getattr__, __dir__ = lazy_face(
    __name__, {"CSVLogger": "fulmen.fabric.loggers.csv", "Logger": "fulmen.fabric.loggers.base"}
)
