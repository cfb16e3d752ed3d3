"""Checkpoints on a disk or elsewhere."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.checkpoint_io.background import AsyncCheckpointIO as AsyncCheckpointIO
    from fulmen.fabric.checkpoint_io.base import CheckpointIO as CheckpointIO
    from fulmen.fabric.checkpoint_io.consolidate import consolidate as consolidate_checkpoint  # noqa: F401
    from fulmen.fabric.checkpoint_io.deepspeed_folder import (
        convert_zero_checkpoint_to_fp32_state_dict as convert_zero_checkpoint_to_fp32_state_dict,
    )
    from fulmen.fabric.checkpoint_io.lazy import lazy_load as lazy_load
    from fulmen.fabric.checkpoint_io.leftovers import clean_leftovers as clean_leftovers
    from fulmen.fabric.checkpoint_io.sharded import load_sharded as load_sharded
    from fulmen.fabric.checkpoint_io.sharded import read_metadata as read_metadata
    from fulmen.fabric.checkpoint_io.sharded import save_sharded as save_sharded
    from fulmen.fabric.checkpoint_io.sharded_names import is_sharded as is_sharded
    from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO as TorchCheckpointIO
    from fulmen.fabric.checkpoint_io.verify import checkpoint_damage as checkpoint_damage
    from fulmen.fabric.checkpoint_io.verify import newest_checkpoint as newest_checkpoint
    from fulmen.fabric.checkpoint_io.verify import set_aside as set_aside
    from fulmen.fabric.checkpoint_io.wrapper import WrappingCheckpointIO as WrappingCheckpointIO

_WHERE = {
    "CheckpointIO": "fulmen.fabric.checkpoint_io.base",
    "TorchCheckpointIO": "fulmen.fabric.checkpoint_io.torch",
    "AsyncCheckpointIO": "fulmen.fabric.checkpoint_io.background",
    "WrappingCheckpointIO": "fulmen.fabric.checkpoint_io.wrapper",
    # a folder of shards
    "save_sharded": "fulmen.fabric.checkpoint_io.sharded",
    "load_sharded": "fulmen.fabric.checkpoint_io.sharded",
    "is_sharded": "fulmen.fabric.checkpoint_io.sharded_names",
    "read_metadata": "fulmen.fabric.checkpoint_io.sharded",
    "consolidate_checkpoint": "fulmen.fabric.checkpoint_io.consolidate:consolidate",
    "convert_zero_checkpoint_to_fp32_state_dict": "fulmen.fabric.checkpoint_io.deepspeed_folder",
    # what is there
    "lazy_load": "fulmen.fabric.checkpoint_io.lazy",
    "checkpoint_damage": "fulmen.fabric.checkpoint_io.verify",
    "newest_checkpoint": "fulmen.fabric.checkpoint_io.verify",
    "set_aside": "fulmen.fabric.checkpoint_io.verify",
    "clean_leftovers": "fulmen.fabric.checkpoint_io.leftovers",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
