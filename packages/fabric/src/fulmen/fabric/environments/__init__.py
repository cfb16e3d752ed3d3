"""Who am I among the processes of a run, and who leads it."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.environments.base import ClusterEnvironment as ClusterEnvironment
    from fulmen.fabric.environments.default import LightningEnvironment as LightningEnvironment
    from fulmen.fabric.environments.default import find_free_network_port as find_free_network_port
    from fulmen.fabric.environments.kubeflow import KubeflowEnvironment as KubeflowEnvironment
    from fulmen.fabric.environments.lsf import LSFEnvironment as LSFEnvironment
    from fulmen.fabric.environments.mpi import MPIEnvironment as MPIEnvironment
    from fulmen.fabric.environments.slurm import SLURMEnvironment as SLURMEnvironment
    from fulmen.fabric.environments.torchelastic import TorchElasticEnvironment as TorchElasticEnvironment
    from fulmen.fabric.environments.xla import XLAEnvironment as XLAEnvironment

_WHERE = {
    "ClusterEnvironment": "fulmen.fabric.environments.base",
    "KubeflowEnvironment": "fulmen.fabric.environments.kubeflow",
    "LSFEnvironment": "fulmen.fabric.environments.lsf",
    "LightningEnvironment": "fulmen.fabric.environments.default",
    "MPIEnvironment": "fulmen.fabric.environments.mpi",
    "SLURMEnvironment": "fulmen.fabric.environments.slurm",
    "TorchElasticEnvironment": "fulmen.fabric.environments.torchelastic",
    "XLAEnvironment": "fulmen.fabric.environments.xla",
    "find_free_network_port": "fulmen.fabric.environments.default",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
