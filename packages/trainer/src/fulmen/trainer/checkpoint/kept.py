"""What an earlier run kept: its best and its last checkpoint, read from the files that it left.

A new process has a ModelCheckpoint that has seen nothing yet; but every full checkpoint holds the ranking of its time.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.errors import CheckpointError
from fulmen.fabric.filesystem import exists, get_filesystem, is_local, join, list_dir, local_path

_EXTENSION = ".ckpt"
_LAST = re.compile(r"(last(-v\d+)?|stopped)\.ckpt")
_RANKER = "ModelCheckpoint"  # how the state keys of ranking callbacks begin


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint that a run kept as its best.

    Attributes:
        path: The file.
        monitor: The metric that it was ranked by, if any.
        score: Its value.
        epoch: In which it was saved, from 0; None if the file does not say.
        global_step: Optimizer steps until then.
    """

    path: str
    monitor: str | None = None
    score: float | None = None
    epoch: int | None = None
    global_step: int | None = None


def checkpoints_in(folder: str) -> list[str]:
    """The checkpoint files in `folder`, the newest first."""
    paths = [join(folder, name) for name in list_dir(folder) if name.endswith(_EXTENSION)]
    return sorted(paths, key=lambda path: (written_at(path), path), reverse=True)


def newest_folder(folders: Sequence[str]) -> str | None:
    """Of several folders, that with the checkpoint which was written last; None if there is no checkpoint at all."""
    newest = [(written_at(found[0]), folder) for folder in folders if (found := checkpoints_in(folder))]
    return max(newest)[1] if newest else None


def last_in(folder: str) -> str | None:
    """The newest of the files that `save_last` leaves; if there are none, the newest checkpoint."""
    found = checkpoints_in(folder)
    lasts = [path for path in found if _LAST.fullmatch(_name(path))]
    return next(iter([*lasts, *found]), None)


def best_in(folder: str, state_key: str | None = None) -> Kept | None:
    """What the run that wrote to `folder` last ranks as its best; None if no checkpoint there has a ranking.

    Args:
        folder: Where its checkpoints lie; if it was moved since, the paths in the ranking are looked up in it.
        state_key: Of the callback whose ranking counts; by default, and if it left none, the first one.

    Raises:
        CheckpointError: If there are checkpoints, and none can be read.
    """
    damaged: CheckpointError | None = None
    for path in checkpoints_in(folder):
        try:
            checkpoint = _read(path)
        except CheckpointError as error:  # the run may have been cut off while it copied; older ones may do
            damaged = error
            continue
        state = _ranking(checkpoint.get("callbacks") or {}, state_key)
        best = _found(state.get("best_model_path") or "", folder) if state else None
        if state is not None and best is not None:
            whole = checkpoint if _name(best) == _name(path) else _read(best)
            return Kept(
                best,
                state.get("monitor"),
                _number(state.get("best_model_score")),
                whole.get("epoch"),
                whole.get("global_step"),
            )
    if damaged is not None:
        raise damaged
    return None


def written_at(path: str) -> float:
    """When the file was written, in seconds."""
    if is_local(path):
        return os.path.getmtime(local_path(path))
    return float(get_filesystem(path).modified(path).timestamp())


def _ranking(states: Mapping[str, Any], state_key: str | None) -> Mapping[str, Any] | None:
    if state_key is not None and state_key in states:
        return states[state_key]  # type: ignore[no-any-return]
    return next((state for key, state in states.items() if str(key).startswith(_RANKER)), None)


def _found(path: str, folder: str) -> str | None:
    for candidate in (join(folder, _name(path)), path):
        if path and exists(candidate):
            return candidate
    return None


def _read(path: str) -> dict[str, Any]:
    """The checkpoint; its tensors stay in the file where the system can map it."""
    if is_local(path):
        try:
            mapped: dict[str, Any] = torch.load(local_path(path), map_location="cpu", weights_only=True, mmap=True)
            return mapped
        except Exception:  # an old format, or damage: the other way says which
            pass
    return TorchCheckpointIO().load_checkpoint(path)


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] if not is_local(path) else os.path.basename(path)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
