"""Face: precision, environment, checkpoint and layer-sync names in one place."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.checkpoint_io.base import CheckpointIO as CheckpointIO
    from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO as TorchCheckpointIO
    from fulmen.fabric.environments.base import ClusterEnvironment as ClusterEnvironment
    from fulmen.fabric.environments.default import LightningEnvironment as LightningEnvironment
    from fulmen.fabric.environments.torchelastic import TorchElasticEnvironment as TorchElasticEnvironment
    from fulmen.fabric.precision.base import Precision as Precision
    from fulmen.fabric.precision.double import DoublePrecision as DoublePrecision
    from fulmen.fabric.precision.half import HalfPrecision as HalfPrecision
    from fulmen.fabric.precision.mixed import MixedPrecision as MixedPrecision
    from fulmen.trainer.strategies.layer_sync import LayerSync as LayerSync
    from fulmen.trainer.strategies.layer_sync import TorchSyncBatchNorm as TorchSyncBatchNorm

_WHERE = {
    # precision
    "Precision": "fulmen.fabric.precision.base",
    "DoublePrecision": "fulmen.fabric.precision.double",
    "HalfPrecision": "fulmen.fabric.precision.half",
    "MixedPrecision": "fulmen.fabric.precision.mixed",
    # environments
    "ClusterEnvironment": "fulmen.fabric.environments.base",
    "LightningEnvironment": "fulmen.fabric.environments.default",
    "TorchElasticEnvironment": "fulmen.fabric.environments.torchelastic",
    # checkpoint IO
    "CheckpointIO": "fulmen.fabric.checkpoint_io.base",
    "TorchCheckpointIO": "fulmen.fabric.checkpoint_io.torch",
    # layers
    "LayerSync": "fulmen.trainer.strategies.layer_sync",
    "TorchSyncBatchNorm": "fulmen.trainer.strategies.layer_sync",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
