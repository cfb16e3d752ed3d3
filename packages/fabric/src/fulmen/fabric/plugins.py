"""Face: precision, environment, collective and checkpoint names in one place."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.checkpoint_io.background import AsyncCheckpointIO as AsyncCheckpointIO
    from fulmen.fabric.checkpoint_io.base import CheckpointIO as CheckpointIO
    from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO as TorchCheckpointIO
    from fulmen.fabric.checkpoint_io.xla import XLACheckpointIO as XLACheckpointIO
    from fulmen.fabric.collectives.base import Collective as Collective
    from fulmen.fabric.collectives.process_group import default_pg_timeout as default_pg_timeout
    from fulmen.fabric.collectives.single_device import SingleDeviceCollective as SingleDeviceCollective
    from fulmen.fabric.collectives.torch import TorchCollective as TorchCollective
    from fulmen.fabric.environments.base import ClusterEnvironment as ClusterEnvironment
    from fulmen.fabric.environments.default import LightningEnvironment as LightningEnvironment
    from fulmen.fabric.environments.default import find_free_network_port as find_free_network_port
    from fulmen.fabric.environments.kubeflow import KubeflowEnvironment as KubeflowEnvironment
    from fulmen.fabric.environments.lsf import LSFEnvironment as LSFEnvironment
    from fulmen.fabric.environments.mpi import MPIEnvironment as MPIEnvironment
    from fulmen.fabric.environments.slurm import SLURMEnvironment as SLURMEnvironment
    from fulmen.fabric.environments.torchelastic import TorchElasticEnvironment as TorchElasticEnvironment
    from fulmen.fabric.environments.xla import XLAEnvironment as XLAEnvironment
    from fulmen.fabric.precision.base import Precision as Precision
    from fulmen.fabric.precision.bitsandbytes import BitsandbytesPrecision as BitsandbytesPrecision
    from fulmen.fabric.precision.deepspeed import DeepSpeedPrecision as DeepSpeedPrecision
    from fulmen.fabric.precision.double import DoublePrecision as DoublePrecision
    from fulmen.fabric.precision.fsdp import FSDPPrecision as FSDPPrecision
    from fulmen.fabric.precision.half import HalfPrecision as HalfPrecision
    from fulmen.fabric.precision.mixed import MixedPrecision as MixedPrecision
    from fulmen.fabric.precision.torchao import TorchAOPrecision as TorchAOPrecision
    from fulmen.fabric.precision.transformer_engine import TransformerEnginePrecision as TransformerEnginePrecision
    from fulmen.fabric.precision.xla import XLAPrecision as XLAPrecision

_WHERE = {
    # precision
    "Precision": "fulmen.fabric.precision.base",
    "DoublePrecision": "fulmen.fabric.precision.double",
    "DeepSpeedPrecision": "fulmen.fabric.precision.deepspeed",
    "FSDPPrecision": "fulmen.fabric.precision.fsdp",
    "HalfPrecision": "fulmen.fabric.precision.half",
    "MixedPrecision": "fulmen.fabric.precision.mixed",
    "BitsandbytesPrecision": "fulmen.fabric.precision.bitsandbytes",
    "TorchAOPrecision": "fulmen.fabric.precision.torchao",
    "TransformerEnginePrecision": "fulmen.fabric.precision.transformer_engine",
    "XLAPrecision": "fulmen.fabric.precision.xla",
    # environments
    "ClusterEnvironment": "fulmen.fabric.environments.base",
    "LightningEnvironment": "fulmen.fabric.environments.default",
    "TorchElasticEnvironment": "fulmen.fabric.environments.torchelastic",
    "SLURMEnvironment": "fulmen.fabric.environments.slurm",
    "LSFEnvironment": "fulmen.fabric.environments.lsf",
    "MPIEnvironment": "fulmen.fabric.environments.mpi",
    "KubeflowEnvironment": "fulmen.fabric.environments.kubeflow",
    "XLAEnvironment": "fulmen.fabric.environments.xla",
    "find_free_network_port": "fulmen.fabric.environments.default",
    # collectives
    "Collective": "fulmen.fabric.collectives.base",
    "SingleDeviceCollective": "fulmen.fabric.collectives.single_device",
    "TorchCollective": "fulmen.fabric.collectives.torch",
    "default_pg_timeout": "fulmen.fabric.collectives.process_group",
    # checkpoint IO
    "CheckpointIO": "fulmen.fabric.checkpoint_io.base",
    "TorchCheckpointIO": "fulmen.fabric.checkpoint_io.torch",
    "AsyncCheckpointIO": "fulmen.fabric.checkpoint_io.background",
    "XLACheckpointIO": "fulmen.fabric.checkpoint_io.xla",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
