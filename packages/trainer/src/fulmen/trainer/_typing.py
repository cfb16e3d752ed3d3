"""The one knot: names of higher classes, for annotations only.

Users type their hooks `trainer: Trainer`. At run time the names are `Any`, so nothing is imported upward.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer as Trainer
else:
    Trainer = Any
