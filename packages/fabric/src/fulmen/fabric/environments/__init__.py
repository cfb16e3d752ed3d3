"""Who am I among the processes of a run, and who leads it."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.environments.base import ClusterEnvironment as ClusterEnvironment
    from fulmen.fabric.environments.default import LightningEnvironment as LightningEnvironment
    from fulmen.fabric.environments.default import find_free_network_port as find_free_network_port
    from fulmen.fabric.environments.torchelastic import TorchElasticEnvironment as TorchElasticEnvironment

__all__ = ["ClusterEnvironment", "LightningEnvironment", "TorchElasticEnvironment", "find_free_network_port"]
__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "ClusterEnvironment": "fulmen.fabric.environments.base",
        "LightningEnvironment": "fulmen.fabric.environments.default",
        "TorchElasticEnvironment": "fulmen.fabric.environments.torchelastic",
        "find_free_network_port": "fulmen.fabric.environments.default",
    },
)
