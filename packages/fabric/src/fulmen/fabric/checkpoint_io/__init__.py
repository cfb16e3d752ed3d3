"""Checkpoints on a disk or elsewhere."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.checkpoint_io.base import CheckpointIO as CheckpointIO
    from fulmen.fabric.checkpoint_io.commit import remove_leftovers as remove_leftovers
    from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO as TorchCheckpointIO

__all__ = ["CheckpointIO", "TorchCheckpointIO", "remove_leftovers"]
__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "CheckpointIO": "fulmen.fabric.checkpoint_io.base",
        "TorchCheckpointIO": "fulmen.fabric.checkpoint_io.torch",
        "remove_leftovers": "fulmen.fabric.checkpoint_io.commit",
    },
)
