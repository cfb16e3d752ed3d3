"""Fulmen Trainer: the training loop, written for you."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.fabric import Fabric as Fabric
    from fulmen.fabric.seeding import seed_everything as seed_everything
    from fulmen.trainer.core.callback import Callback as Callback
    from fulmen.trainer.core.datamodule import LightningDataModule as LightningDataModule
    from fulmen.trainer.core.module import LightningModule as LightningModule
    from fulmen.trainer.trainer import Trainer as Trainer

__version__ = "0.1.0"
__all__ = ["Callback", "Fabric", "LightningDataModule", "LightningModule", "Trainer", "seed_everything"]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "Callback": "fulmen.trainer.core.callback",
        "Fabric": "fulmen.fabric.fabric",
        "LightningDataModule": "fulmen.trainer.core.datamodule",
        "LightningModule": "fulmen.trainer.core.module",
        "Trainer": "fulmen.trainer.trainer",
        "seed_everything": "fulmen.fabric.seeding",
    },
)
