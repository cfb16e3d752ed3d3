"""How numbers are held and computed."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.precision.base import Precision as Precision
    from fulmen.fabric.precision.double import DoublePrecision as DoublePrecision
    from fulmen.fabric.precision.half import HalfPrecision as HalfPrecision
    from fulmen.fabric.precision.mixed import MixedPrecision as MixedPrecision

__all__ = ["DoublePrecision", "HalfPrecision", "MixedPrecision", "Precision"]
__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "DoublePrecision": "fulmen.fabric.precision.double",
        "HalfPrecision": "fulmen.fabric.precision.half",
        "MixedPrecision": "fulmen.fabric.precision.mixed",
        "Precision": "fulmen.fabric.precision.base",
    },
)
