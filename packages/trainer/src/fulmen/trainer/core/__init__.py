"""What users subclass: LightningModule, LightningDataModule, Callback."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.trainer.core.datamodule import LightningDataModule as LightningDataModule
    from fulmen.trainer.core.module import LightningModule as LightningModule

__all__ = ["LightningDataModule", "LightningModule"]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "LightningDataModule": "fulmen.trainer.core.datamodule",
        "LightningModule": "fulmen.trainer.core.module",
    },
)
