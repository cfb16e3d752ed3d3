"""Modules in stages: where they are cut, what each process runs of them, and how steps and state go through them."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.strategies.pipeline.cuts import Pipeline as Pipeline

__all__ = ["Pipeline"]
__getattr__, __dir__ = lazy_face(__name__, {"Pipeline": "fulmen.fabric.strategies.pipeline.cuts"})
