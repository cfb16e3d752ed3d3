"""What users subclass: LightningModule, LightningDataModule, Callback; and how their hyperparameters are kept."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.trainer.core.datamodule import LightningDataModule as LightningDataModule
    from fulmen.trainer.core.hparams import HyperparametersMixin as HyperparametersMixin
    from fulmen.trainer.core.hparams_files import convert as convert
    from fulmen.trainer.core.hparams_files import load_hparams_from_tags_csv as load_hparams_from_tags_csv
    from fulmen.trainer.core.hparams_files import load_hparams_from_yaml as load_hparams_from_yaml
    from fulmen.trainer.core.hparams_files import save_hparams_to_tags_csv as save_hparams_to_tags_csv
    from fulmen.trainer.core.hparams_files import save_hparams_to_yaml as save_hparams_to_yaml
    from fulmen.trainer.core.hparams_files import update_hparams as update_hparams
    from fulmen.trainer.core.loading import CHECKPOINT_PAST_HPARAMS_KEYS as CHECKPOINT_PAST_HPARAMS_KEYS
    from fulmen.trainer.core.module import LightningModule as LightningModule

_WHERE = {
    # to subclass
    "LightningDataModule": "fulmen.trainer.core.datamodule",
    "LightningModule": "fulmen.trainer.core.module",
    "HyperparametersMixin": "fulmen.trainer.core.hparams",
    # hyperparameters in files
    "CHECKPOINT_PAST_HPARAMS_KEYS": "fulmen.trainer.core.loading",
    "convert": "fulmen.trainer.core.hparams_files",
    "load_hparams_from_tags_csv": "fulmen.trainer.core.hparams_files",
    "load_hparams_from_yaml": "fulmen.trainer.core.hparams_files",
    "save_hparams_to_tags_csv": "fulmen.trainer.core.hparams_files",
    "save_hparams_to_yaml": "fulmen.trainer.core.hparams_files",
    "update_hparams": "fulmen.trainer.core.hparams_files",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
