"""What processes say to each other."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.collectives.process_group import default_pg_timeout as default_pg_timeout
    from fulmen.fabric.collectives.process_group import init_distributed as init_distributed
    from fulmen.fabric.collectives.tensors import gather_uneven as gather_uneven
    from fulmen.fabric.collectives.tensors import reduce_tensor as reduce_tensor

__all__ = ["default_pg_timeout", "gather_uneven", "init_distributed", "reduce_tensor"]
__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "default_pg_timeout": "fulmen.fabric.collectives.process_group",
        "gather_uneven": "fulmen.fabric.collectives.tensors",
        "init_distributed": "fulmen.fabric.collectives.process_group",
        "reduce_tensor": "fulmen.fabric.collectives.tensors",
    },
)
