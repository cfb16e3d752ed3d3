"""XLA devices: replicas, graphs, and arrays that XLA spreads over devices."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.strategies.xla.strategy import XLAStrategy as XLAStrategy

__all__ = ["XLAStrategy"]
__getattr__, __dir__ = lazy_face(__name__, {"XLAStrategy": "fulmen.fabric.strategies.xla.strategy"})
