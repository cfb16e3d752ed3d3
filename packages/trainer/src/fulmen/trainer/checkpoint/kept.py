"""What earlier runs kept: their folders, their best and their last checkpoint, read from the files that they left.

A new process has a ModelCheckpoint that has seen nothing yet; but every full checkpoint holds the ranking of its time.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fulmen.fabric.checkpoint_io.lazy import lazy_load
from fulmen.fabric.checkpoint_io.sharded_names import is_deepspeed, is_sharded
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.checkpoint_io.verify import written_at
from fulmen.fabric.errors import CheckpointError, CheckpointKeyError
from fulmen.fabric.filesystem import exists, is_local, join, list_dir
from fulmen.trainer.checkpoint.ranking import best_first

_EXTENSION = ".ckpt"
# What `save_last` leaves by its own name, and what a signal has stopped.
_LAST = re.compile(r"(last(-v\d+)?|stopped)\.ckpt")
# What is asked of the checkpoint of a run.
_ASKED = ("epoch", "global_step", "callbacks")
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
        others: The next best ones that are there, the better first.
    """

    path: str
    monitor: str | None = None
    score: float | None = None
    epoch: int | None = None
    global_step: int | None = None
    others: tuple[str, ...] = ()


def checkpoints_in(folder: str, extension: str = _EXTENSION) -> list[str]:
    """The checkpoints in `folder`, files and folders, the newest first."""
    paths = [join(folder, name) for name in list_dir(folder) if name.endswith(extension)]
    return sorted(paths, key=lambda path: (written_at(path), path), reverse=True)


def newest_folders(folders: Sequence[str], extension: str = _EXTENSION) -> list[str]:
    """Those of the folders that hold checkpoints; first that in which one was written last."""
    found = {folder: checkpoints_in(folder, extension) for folder in folders}
    newest = [(written_at(paths[0]), folder) for folder, paths in found.items() if paths]
    return [folder for _, folder in sorted(newest, reverse=True)]


def newest_folder(folders: Sequence[str]) -> str | None:
    """Of several folders, that with the checkpoint which was written last; None if there is no checkpoint at all."""
    return next(iter(newest_folders(folders)), None)


def is_last_name(name: str) -> bool:
    """Is it the name of a file that is there to go on from: of `save_last` by default, or of a stopped run?"""
    return _LAST.fullmatch(name) is not None


def last_in(folder: str) -> str | None:
    """The newest of the files that `save_last` leaves; if there are none, the newest checkpoint."""
    found = checkpoints_in(folder)
    lasts = [path for path in found if is_last_name(_name(path))]
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
        except CheckpointError as error:  # not what was written; older ones may do
            damaged = error
            continue
        state = _ranking(checkpoint.get("callbacks") or {}, state_key)
        ranked = _ranked(state, folder) if state else []
        if state is not None and ranked:
            best = ranked[0]
            # A best file that cannot be read is still the best: who loads it says what is wrong with it.
            whole = checkpoint if _name(best) == _name(path) else _read_if_whole(best)
            return Kept(
                best,
                state.get("monitor"),
                _number(state.get("best_model_score")),
                whole.get("epoch"),
                whole.get("global_step"),
                tuple(ranked[1:]),
            )
    if damaged is not None:
        raise damaged
    return None


def refound(path: str, saved_dir: str | None, folders: Sequence[str | None]) -> str | None:
    """Where the checkpoint that was `path` is now: there, or in one of `folders`; None if it is nowhere.

    Args:
        path: Where it was written.
        saved_dir: The folder of the run that wrote it.
        folders: Where that folder may be now.
    """
    below = _below(path, saved_dir)
    candidates = [path, *(join(folder, below) for folder in folders if folder)] if path else []
    return next((candidate for candidate in candidates if exists(candidate)), None)


def moved_ranking(state: Mapping[str, Any], folder: str) -> dict[str, Any] | None:
    """The saved state of a ModelCheckpoint with the paths in `folder`, if its files are there; else None.

    Of the ranking, those count that are there.
    """
    saved_dir = state.get("dirpath")
    there = {
        path: here
        for path in {state.get("best_model_path") or "", *(state.get("best_k_models") or {})}
        if path and exists(here := join(folder, _below(path, saved_dir)))
    }
    if not there:
        return None
    moved = dict(state) | {"dirpath": folder}
    saved = state.get("best_k_models") or {}
    scores = {there[path]: score for path, score in saved.items() if path in there}
    in_order = best_first({path: float(score) for path, score in saved.items()}, state.get("best_model_path") or "")
    ranked = [there[path] for path in in_order if path in there]
    moved["best_k_models"] = scores
    moved["kth_best_model_path"] = ""
    if state.get("kth_best_model_path") and ranked:
        moved["kth_best_model_path"], moved["kth_value"] = ranked[-1], scores[ranked[-1]]
    for name in ("best_model_path", "last_model_path"):
        here = join(folder, _below(state.get(name) or "", saved_dir))
        moved[name] = here if state.get(name) and exists(here) else ""
    if not moved["best_model_path"] and ranked:
        moved["best_model_path"], moved["best_model_score"] = ranked[0], scores[ranked[0]]
    return moved


def _below(path: str, saved_dir: str | None) -> str:
    """The path as it is below the folder of its run: a metric in its name may have made a folder there."""
    if saved_dir and is_local(path) and is_local(saved_dir):
        relative = os.path.relpath(path, saved_dir) if path else ""
        if not relative.startswith(os.pardir):
            return relative
    return _name(path)


def _ranked(state: Mapping[str, Any], folder: str) -> list[str]:
    """The checkpoints of a ranking that are there, the best first."""
    best = state.get("best_model_path") or ""
    scores = {path: float(score) for path, score in (state.get("best_k_models") or {}).items()}
    paths = dict.fromkeys([best, *best_first(scores, best)])
    saved_dir = state.get("dirpath")
    # First here: after a move or a copy, it is this folder that was asked.
    found = (refound(join(folder, _below(path, saved_dir)), None, []) or refound(path, None, []) for path in paths)
    return list(dict.fromkeys(path for path in found if path is not None))


def _ranking(states: Mapping[str, Any], state_key: str | None) -> Mapping[str, Any] | None:
    if state_key is not None and state_key in states:
        return states[state_key]  # type: ignore[no-any-return]
    return next((state for key, state in states.items() if str(key).startswith(_RANKER)), None)


def _read(path: str) -> Mapping[str, Any]:
    """The checkpoint, as far as it is asked for: the tensors of a local file stay in it."""
    if is_sharded(path):
        from fulmen.fabric.checkpoint_io.sharded_folder import ShardedFolder

        folder, state = ShardedFolder(path), {}
        for key in _ASKED:
            asked: dict[str, Any] = {key: None}
            with suppress(CheckpointKeyError):  # weights only
                folder.load(asked)
                state.update(asked)
        return state
    if is_deepspeed(path):
        from fulmen.fabric.checkpoint_io.deepspeed_folder import DeepSpeedFolder

        return DeepSpeedFolder(path).client_state()
    if not is_local(path):
        return TorchCheckpointIO().load_checkpoint(path)
    try:
        return lazy_load(path, verify=False)
    except CheckpointError as error:
        if "before torch 1.6" not in str(error):
            raise
        return TorchCheckpointIO().load_checkpoint(path)


def _read_if_whole(path: str) -> Mapping[str, Any]:
    try:
        return _read(path)
    except CheckpointError:
        return {}


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] if not is_local(path) else os.path.basename(path)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
