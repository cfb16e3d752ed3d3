"""Fulmen Fabric: your own training loop on any hardware."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.fabric import Fabric as Fabric
    from fulmen.fabric.rank_zero import disable_possible_user_warnings as disable_possible_user_warnings
    from fulmen.fabric.seeding import seed_everything as seed_everything
    from fulmen.fabric.wrappers import is_wrapped as is_wrapped

__version__ = "0.1.0"

__all__ = ["Fabric", "is_wrapped", "seed_everything"]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "Fabric": "fulmen.fabric.fabric",
        "disable_possible_user_warnings": "fulmen.fabric.rank_zero",
        "is_wrapped": "fulmen.fabric.wrappers",
        "seed_everything": "fulmen.fabric.seeding",
    },
)
