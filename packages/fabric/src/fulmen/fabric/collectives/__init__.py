"""What processes say to each other."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.collectives.base import Collective as Collective
    from fulmen.fabric.collectives.process_group import default_pg_timeout as default_pg_timeout
    from fulmen.fabric.collectives.process_group import init_distributed as init_distributed
    from fulmen.fabric.collectives.single_device import SingleDeviceCollective as SingleDeviceCollective
    from fulmen.fabric.collectives.tensors import gather_uneven as gather_uneven
    from fulmen.fabric.collectives.tensors import reduce_tensor as reduce_tensor
    from fulmen.fabric.collectives.torch import TorchCollective as TorchCollective

_WHERE = {
    "Collective": "fulmen.fabric.collectives.base",
    "SingleDeviceCollective": "fulmen.fabric.collectives.single_device",
    "TorchCollective": "fulmen.fabric.collectives.torch",
    "default_pg_timeout": "fulmen.fabric.collectives.process_group",
    "gather_uneven": "fulmen.fabric.collectives.tensors",
    "init_distributed": "fulmen.fabric.collectives.process_group",
    "reduce_tensor": "fulmen.fabric.collectives.tensors",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
