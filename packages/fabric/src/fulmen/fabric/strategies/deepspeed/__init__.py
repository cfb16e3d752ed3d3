"""Engines of DeepSpeed run and step modules."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.strategies.deepspeed.strategy import DeepSpeedStrategy as DeepSpeedStrategy

__all__ = ["DeepSpeedStrategy"]
__getattr__, __dir__ = lazy_face(__name__, {"DeepSpeedStrategy": "fulmen.fabric.strategies.deepspeed.strategy"})
