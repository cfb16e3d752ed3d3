"""How checkpoints that are folders are told from one file, and from each other: by the names in them."""

from __future__ import annotations

import os

from fulmen.fabric.checkpoint_io.exchange import restore_replaced
from fulmen.fabric.filesystem import exists, is_dir, is_local, join, list_dir, local_path
from fulmen.fabric.types import PathLike

METADATA = ".metadata"
PLAIN = "meta.pt"
# In the layout of DeepSpeed: which inner folder is the newest, how Lightning calls it, and what is in it.
LATEST = "latest"
TAG = "checkpoint"
MODEL_STATES = "_model_states.pt"


def is_sharded(path: PathLike) -> bool:
    """Is there a sharded checkpoint at `path`?"""
    if is_local(path):
        restore_replaced(os.path.abspath(local_path(path)))
    return is_dir(path) and exists(join(path, METADATA))


def is_deepspeed(path: PathLike) -> bool:
    """Is there a checkpoint in DeepSpeed's layout at `path`?"""
    if not is_local(path):
        return False
    folder = os.path.abspath(local_path(path))
    restore_replaced(folder)
    if os.path.isfile(os.path.join(folder, LATEST)):
        return True
    return any(name.endswith(MODEL_STATES) for place in (folder, os.path.join(folder, TAG)) for name in list_dir(place))
