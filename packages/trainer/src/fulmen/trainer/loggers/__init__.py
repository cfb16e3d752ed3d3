"""Where metrics and hyperparameters go."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.trainer.loggers.base import DummyLogger as DummyLogger
    from fulmen.trainer.loggers.base import Logger as Logger
    from fulmen.trainer.loggers.base import merge_dicts as merge_dicts
    from fulmen.trainer.loggers.comet import CometLogger as CometLogger
    from fulmen.trainer.loggers.csv import CSVLogger as CSVLogger
    from fulmen.trainer.loggers.csv import ExperimentWriter as ExperimentWriter
    from fulmen.trainer.loggers.litlogger import LitLogger as LitLogger
    from fulmen.trainer.loggers.mlflow import MLFlowLogger as MLFlowLogger
    from fulmen.trainer.loggers.neptune import NeptuneLogger as NeptuneLogger
    from fulmen.trainer.loggers.tensorboard import TensorBoardLogger as TensorBoardLogger
    from fulmen.trainer.loggers.undelivered import deliver as deliver
    from fulmen.trainer.loggers.wandb import WandbLogger as WandbLogger

__all__ = [
    "CSVLogger",
    "CometLogger",
    "DummyLogger",
    "ExperimentWriter",
    "LitLogger",
    "Logger",
    "MLFlowLogger",
    "NeptuneLogger",
    "TensorBoardLogger",
    "WandbLogger",
    "deliver",
    "merge_dicts",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "CSVLogger": "fulmen.trainer.loggers.csv",
        "CometLogger": "fulmen.trainer.loggers.comet",
        "DummyLogger": "fulmen.trainer.loggers.base",
        "ExperimentWriter": "fulmen.trainer.loggers.csv",
        "LitLogger": "fulmen.trainer.loggers.litlogger",
        "Logger": "fulmen.trainer.loggers.base",
        "MLFlowLogger": "fulmen.trainer.loggers.mlflow",
        "NeptuneLogger": "fulmen.trainer.loggers.neptune",
        "TensorBoardLogger": "fulmen.trainer.loggers.tensorboard",
        "WandbLogger": "fulmen.trainer.loggers.wandb",
        "deliver": "fulmen.trainer.loggers.undelivered",
        "merge_dicts": "fulmen.trainer.loggers.base",
    },
)
