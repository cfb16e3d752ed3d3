"""Which checkpoint `ckpt_path="best"`, `"last"`, `"hpc"`, a path or nothing at all means."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from fulmen.fabric.errors import CheckpointNotFoundError, ConfigurationError
from fulmen.fabric.filesystem import exists, get_filesystem, list_dir
from fulmen.fabric.types import PathLike

# What a signal has stopped. Each such stop replaces the one before: only the newest is of use.
STOPPED_NAME = "stopped.ckpt"
_HPC_NAME = re.compile(r"hpc_ckpt_(\d+)\.ckpt")


@runtime_checkable
class RanksCheckpoints(Protocol):
    """A callback that knows its best checkpoint, and where its last ones may be."""

    best_model_path: str

    def folder(self, trainer: Any) -> str:
        """Where its checkpoints are."""

    def find_last_checkpoints(self, trainer: Any) -> Iterable[str]:
        """Paths that may hold the last checkpoint; not all of them need to exist."""


@runtime_checkable
class SavesOnException(Protocol):
    """A callback that leaves one checkpoint, at one place, when a run fails."""

    def path_after_exception(self) -> str:
        """Where."""


@dataclass(frozen=True, slots=True)
class Offers:
    """What there is to choose from.

    Args:
        best: The best path of each ranking callback, in their order; "" where it has none yet.
        last: Paths that exist, with the time at which each was written (in seconds).
        left_by_exception: Of the paths in `last`, those that a failed run left.
        hpc: What a requeued job left, if anything.
    """

    best: Sequence[str] = ()
    last: Mapping[str, float] = field(default_factory=dict)
    left_by_exception: frozenset[str] = frozenset()
    hpc: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The path to load, or None to load nothing; and what the user should hear about it."""

    path: str | None
    warning: str | None = None


def choose(
    asked: str | None,
    offers: Offers,
    *,
    call: str = "Trainer.fit",
    fits: bool = True,
    model_given: bool = True,
    fast_dev_run: bool = False,
    requeued: bool = False,
) -> Choice:
    """What `ckpt_path` means (pure).

    | asked       | chosen                                                                                        |
    | ----------- | --------------------------------------------------------------------------------------------- |
    | None, fit   | what a requeued job left; else the newest checkpoint if a failed run left one; else nothing   |
    | None, else  | nothing if a model was given; else as "best"                                                  |
    | "best"      | the best checkpoint of the first callback that ranks them                                     |
    | "last"      | the newest of the last checkpoints; nothing, with a warning, if there is none                 |
    | "hpc"       | what a requeued job left                                                                      |
    | other text  | that path                                                                                     |

    Args:
        asked: The user's `ckpt_path`.
        offers: What there is.
        call: The user's call, for messages: "Trainer.test".
        fits: Is it a call of `fit`?
        model_given: Did the user hand over a model in this call?
        fast_dev_run: Was or is this a trial run that saves nothing?
        requeued: May what a requeued job left be taken without being asked for?

    Raises:
        ConfigurationError: If "best" or "hpc" is asked for and there is none.
    """
    if asked is None:
        if fits:
            return _unasked_in_fit(offers, requeued)
        if model_given:
            return Choice(None)
        choice = _best(offers, f"{call}() without a model loads the best checkpoint", fast_dev_run)
        told = f"{call}() was called without a model, so the best checkpoint of the last fit is loaded: {choice.path}."
        warning = f"{told} Pass ckpt_path='best' to say so, or a model to use its weights as they are."
        return Choice(choice.path, warning)
    if asked == "best":
        choice = _best(offers, f"{call}(ckpt_path='best') asks for the best checkpoint", fast_dev_run)
        if len(offers.best) > 1:
            return Choice(
                choice.path,
                f"{call}(ckpt_path='best') found {len(offers.best)} checkpoint callbacks. The best checkpoint of the"
                f" first one is loaded: {choice.path}. Pass a path to load another one.",
            )
        return choice
    if asked == "last":
        path = newest(offers.last)
        if path is not None:
            return Choice(path)
        return Choice(
            None,
            f"{call}(ckpt_path='last') found no last checkpoint. Nothing is loaded, and the run starts afresh."
            " Pass ModelCheckpoint(save_last=True) to have one next time.",
        )
    if asked == "hpc":
        if offers.hpc is not None:
            return Choice(offers.hpc)
        raise ConfigurationError(
            f"{call}(ckpt_path='hpc') asks for the checkpoint of a requeued job. There is no 'hpc_ckpt_*.ckpt' in"
            " default_root_dir. Pass the folder of the interrupted job as Trainer(default_root_dir=...), or a path."
        )
    return Choice(asked)


def _unasked_in_fit(offers: Offers, requeued: bool) -> Choice:
    if requeued and offers.hpc is not None:
        return Choice(offers.hpc)
    if offers.left_by_exception:
        path = newest(offers.last)
        return Choice(
            path,
            f"Trainer.fit() goes on from {path}, although no ckpt_path was passed. OnExceptionCheckpoint found what a"
            " failed run left. Remove that file to start afresh.",
        )
    return Choice(None)


def _best(offers: Offers, what: str, fast_dev_run: bool) -> Choice:
    if fast_dev_run:
        raise ConfigurationError(
            f"{what}. With fast_dev_run no checkpoint is saved, so there is none."
            " Pass a path as ckpt_path, or a model, or run without fast_dev_run."
        )
    if not offers.best:
        raise ConfigurationError(
            f"{what}. This Trainer has no ModelCheckpoint callback that would know it."
            " Pass a path as ckpt_path, or construct the Trainer with enable_checkpointing=True."
        )
    if not offers.best[0]:
        raise ConfigurationError(
            f"{what}. The ModelCheckpoint callback has not saved any checkpoint yet."
            " Call fit() first, or pass a path as ckpt_path."
        )
    return Choice(offers.best[0])


def newest(written: Mapping[str, float]) -> str | None:
    """The path that was written last; of equally old ones, the last by name."""
    return max(written, key=lambda path: (written[path], path), default=None)


def newest_hpc(names: Iterable[str]) -> str | None:
    """Of file names, the checkpoint of a requeued job with the highest number: `hpc_ckpt_12.ckpt`."""
    numbered = [(int(match[1]), name) for name in names if (match := _HPC_NAME.fullmatch(os.path.basename(name)))]
    return max(numbered)[1] if numbered else None


def next_hpc_name(names: Iterable[str]) -> str:
    """The file name for the next checkpoint of a job that is about to be requeued."""
    latest = newest_hpc(names)
    match = _HPC_NAME.fullmatch(os.path.basename(latest)) if latest else None
    return f"hpc_ckpt_{int(match[1]) + 1 if match else 1}.ckpt"


def gather_offers(callbacks: Iterable[object], *, root_dir: PathLike, trainer: object) -> Offers:
    """Look at the callbacks and the file system: what is there to choose from?

    Args:
        callbacks: Of the trainer, in order.
        root_dir: Where requeued jobs leave their checkpoints: the `default_root_dir`.
        trainer: Handed on to the callbacks; opaque here.
    """
    best: list[str] = []
    candidates: set[str] = set()
    left: set[str] = set()
    for callback in callbacks:
        if isinstance(callback, RanksCheckpoints):
            best.append(callback.best_model_path)
            candidates.update(path for path in callback.find_last_checkpoints(trainer) if path)
            candidates.add(os.path.join(callback.folder(trainer), STOPPED_NAME))
        elif isinstance(callback, SavesOnException):
            left.add(callback.path_after_exception())
    times = {path: _written_at(path) for path in candidates | left if exists(path)}
    root = os.fspath(root_dir)
    hpc = newest_hpc(list_dir(root))
    return Offers(
        best=tuple(best),
        last=times,
        left_by_exception=frozenset(left & times.keys()),
        hpc=os.path.join(root, hpc) if hpc else None,
    )


def stopped_path(callbacks: Iterable[object], *, trainer: object) -> str | None:
    """Where to keep a fit that a signal has stopped: beside the other checkpoints; None if none are kept."""
    for callback in callbacks:
        if isinstance(callback, RanksCheckpoints):
            return os.path.join(callback.folder(trainer), STOPPED_NAME)
    return None


def check_exists(path: str, *, call: str = "Trainer.fit") -> None:
    """Refuse a path at which there is nothing, before any work begins.

    Raises:
        CheckpointNotFoundError: Naming the checkpoints that lie in the same folder.
    """
    if path.startswith(("http://", "https://")) or exists(path):
        return
    folder = os.path.dirname(path) or "."
    there = [name for name in list_dir(folder) if name.endswith((".ckpt", ".pt"))]
    shown = ", ".join(there[:10]) + (", ..." if len(there) > 10 else "")
    raise CheckpointNotFoundError(
        f"{call}(ckpt_path={path!r}) names a checkpoint that does not exist."
        f" In the folder {folder!r} {f'there are: {shown}' if there else 'there is no checkpoint'}."
        " Pass the path of a checkpoint file, or 'best', 'last' or 'hpc'."
    )


def _written_at(path: str) -> float:
    if "://" not in path:
        return os.path.getmtime(path)
    return float(get_filesystem(path).modified(path).timestamp())
