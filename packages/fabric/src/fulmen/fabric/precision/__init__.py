"""How numbers are held and computed."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.precision.base import Precision as Precision
    from fulmen.fabric.precision.bitsandbytes import BitsandbytesPrecision as BitsandbytesPrecision
    from fulmen.fabric.precision.deepspeed import DeepSpeedPrecision as DeepSpeedPrecision
    from fulmen.fabric.precision.double import DoublePrecision as DoublePrecision
    from fulmen.fabric.precision.fsdp import FSDPPrecision as FSDPPrecision
    from fulmen.fabric.precision.half import HalfPrecision as HalfPrecision
    from fulmen.fabric.precision.mixed import MixedPrecision as MixedPrecision
    from fulmen.fabric.precision.torchao import TorchAOPrecision as TorchAOPrecision
    from fulmen.fabric.precision.transformer_engine import TransformerEnginePrecision as TransformerEnginePrecision

_WHERE = {
    "BitsandbytesPrecision": "fulmen.fabric.precision.bitsandbytes",
    "DeepSpeedPrecision": "fulmen.fabric.precision.deepspeed",
    "DoublePrecision": "fulmen.fabric.precision.double",
    "FSDPPrecision": "fulmen.fabric.precision.fsdp",
    "HalfPrecision": "fulmen.fabric.precision.half",
    "MixedPrecision": "fulmen.fabric.precision.mixed",
    "Precision": "fulmen.fabric.precision.base",
    "TorchAOPrecision": "fulmen.fabric.precision.torchao",
    "TransformerEnginePrecision": "fulmen.fabric.precision.transformer_engine",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
