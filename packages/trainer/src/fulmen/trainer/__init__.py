"""Fulmen Trainer: the training loop, written for you."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.fabric import Fabric as Fabric
    from fulmen.fabric.seeding import seed_everything as seed_everything
    from fulmen.trainer.core.callback import Callback as Callback
    from fulmen.trainer.core.datamodule import LightningDataModule as LightningDataModule
    from fulmen.trainer.core.module import LightningModule as LightningModule
    from fulmen.trainer.logo import LIGHTNING_LOGO as LIGHTNING_LOGO
    from fulmen.trainer.logo import cli_lightning_logo as cli_lightning_logo
    from fulmen.trainer.run.state import TrainerState as TrainerState
    from fulmen.trainer.stages import RunningStage as RunningStage
    from fulmen.trainer.stages import TrainerFn as TrainerFn
    from fulmen.trainer.stages import TrainerStatus as TrainerStatus
    from fulmen.trainer.trainer import Trainer as Trainer

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "Fabric",
    "LIGHTNING_LOGO",
    "LightningDataModule",
    "LightningModule",
    "RunningStage",
    "Trainer",
    "TrainerFn",
    "TrainerState",
    "TrainerStatus",
    "cli_lightning_logo",
    "seed_everything",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "Callback": "fulmen.trainer.core.callback",
        "Fabric": "fulmen.fabric.fabric",
        "LIGHTNING_LOGO": "fulmen.trainer.logo",
        "LightningDataModule": "fulmen.trainer.core.datamodule",
        "LightningModule": "fulmen.trainer.core.module",
        "RunningStage": "fulmen.trainer.stages",
        "Trainer": "fulmen.trainer.trainer",
        "TrainerFn": "fulmen.trainer.stages",
        "TrainerState": "fulmen.trainer.run.state",
        "TrainerStatus": "fulmen.trainer.stages",
        "cli_lightning_logo": "fulmen.trainer.logo",
        "seed_everything": "fulmen.fabric.seeding",
    },
)
