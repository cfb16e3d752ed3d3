"""Which checkpoint `ckpt_path="best"`, `"last"`, `"hpc"`, a path or nothing at all means."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from fulmen.fabric.checkpoint_io.verify import written_at
from fulmen.fabric.errors import CheckpointError, CheckpointNotFoundError, ConfigurationError
from fulmen.fabric.filesystem import exists, is_local, join, list_dir
from fulmen.fabric.loggers.versions import check_inside
from fulmen.fabric.types import PathLike
from fulmen.trainer.checkpoint.kept import best_in, checkpoints_in, is_last_name, newest_folders
from fulmen.trainer.loggers.base import Logger
from fulmen.trainer.metrics.outlets import asked

# What a signal has stopped. Each such stop replaces the one before: only the newest is of use.
STOPPED_NAME = "stopped.ckpt"
_FOLDER = "checkpoints"
_WORDS = ("best", "last", "hpc", "auto")
_HPC_NAME = re.compile(r"hpc_ckpt_(\d+)\.ckpt")


@runtime_checkable
class RanksCheckpoints(Protocol):
    """A callback that knows its best checkpoint, and where its last ones may be."""

    best_model_path: str
    dirpath: str | None
    state_key: str
    FILE_EXTENSION: str

    def folder(self, trainer: Any) -> str:
        """Where its checkpoints are."""

    def checkpoints_by_score(self) -> list[str]:
        """What it has kept in this process, the best first."""

    def is_last_name(self, name: str) -> bool:
        """Is it the name of a file that `save_last` leaves?"""


@runtime_checkable
class SavesOnException(Protocol):
    """A callback that leaves one checkpoint, at one place, when a run fails."""

    def path_after_exception(self) -> str:
        """Where."""


@dataclass(frozen=True, slots=True)
class Offers:
    """What there is to choose from.

    Args:
        best: The best path of each ranking callback, in their order; "" where it has none.
        next_best: What the first of them takes for the next best ones, the better first.
        last: Paths that exist and are there to go on from, with the time at which each was written (in seconds).
        others: All other checkpoints of this run, or of the newest earlier one if this one has none yet.
        earlier: Checkpoints of still earlier runs.
        left_by_exception: Of the paths in `last`, those that a failed run left.
        hpc: What a requeued job left, in the order in which it is wanted, with times as in `last`.
    """

    best: Sequence[str] = ()
    next_best: Sequence[str] = ()
    last: Mapping[str, float] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)
    earlier: Mapping[str, float] = field(default_factory=dict)
    left_by_exception: frozenset[str] = frozenset()
    hpc: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """What to load, and what the user should hear about it.

    Args:
        path: What is wanted; None to load nothing.
        warning: For the user.
        asked: The word that stood for it ("best", ...); None if it was a path. Only then another one may be taken.
        otherwise: What is taken if `path` is damaged, in this order.
        may_begin: If nothing can be loaded, does the run begin afresh?
    """

    path: str | None
    warning: str | None = None
    asked: str | None = None
    otherwise: tuple[str, ...] = ()
    may_begin: bool = False

    @property
    def candidates(self) -> tuple[str, ...]:
        """All that may be loaded, in the order in which they are wanted."""
        return () if self.path is None else (self.path, *self.otherwise)


NOTHING = Choice(None)


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
    | any, fit    | what this job left when it was requeued, if it was; else:                                     |
    | None, fit   | the newest checkpoint if a failed run left one; else nothing                                  |
    | None, else  | nothing if a model was given; else as "best"                                                  |
    | "best"      | the best checkpoint of the first callback that ranks them                                     |
    | "last"      | the newest of the last checkpoints; nothing, with a warning, if there is none                 |
    | "hpc"       | what a requeued job left                                                                      |
    | "auto", fit | the newest of all; nothing if there is none                                                   |
    | "auto", else| the newest of all                                                                             |
    | other text  | that path                                                                                     |

    What a word stands for may be damaged: then the next one is loaded, see `Choice.candidates`.

    Args:
        asked: The user's `ckpt_path`.
        offers: What there is.
        call: The user's call, for messages: "Trainer.test".
        fits: Is it a call of `fit`?
        model_given: Did the user hand over a model in this call?
        fast_dev_run: Was or is this a trial run that saves nothing?
        requeued: Is this a job that was requeued, and `offers.hpc` what it left itself?

    Raises:
        ConfigurationError: If "best" or "hpc" is asked for and there is none, or "auto" outside of a fit.
    """
    if fits and requeued and offers.hpc:
        # The program is the same as in its first run, and so is what it asks for.
        rest = [asked] if asked is not None and asked not in _WORDS else newest_first(offers.last)
        return _one_of([*offers.hpc, *rest], "hpc", may_begin=True)
    if asked is None:
        if fits:
            return _unasked_in_fit(offers)
        if model_given:
            return Choice(None)
        choice = _best(offers, f"{call}() without a model loads the best checkpoint", fast_dev_run)
        told = f"{call}() was called without a model, so the best checkpoint of the last fit is loaded: {choice.path}."
        return replace(
            choice,
            warning=f"{told} Pass ckpt_path='best' to say so, or a model to use its weights as they are.",
        )
    if asked == "best":
        choice = _best(offers, f"{call}(ckpt_path='best') asks for the best checkpoint", fast_dev_run)
        if len(offers.best) > 1:
            return replace(
                choice,
                warning=f"{call}(ckpt_path='best') found {len(offers.best)} checkpoint callbacks. The best checkpoint"
                f" of the first one is loaded: {choice.path}. Pass a path to load another one.",
            )
        return choice
    if asked == "last":
        return _last(offers, call)
    if asked == "auto":
        return _auto(offers, call, fits, fast_dev_run)
    if asked == "hpc":
        if offers.hpc:
            return _one_of(offers.hpc, "hpc")
        raise ConfigurationError(
            f"{call}(ckpt_path='hpc') asks for the checkpoint of a requeued job. There is no 'hpc_ckpt_*.ckpt' in"
            " default_root_dir. Pass the folder of the interrupted job as Trainer(default_root_dir=...), or a path."
        )
    return Choice(asked)


def _one_of(paths: Iterable[str], asked: str, *, may_begin: bool = False) -> Choice:
    first, *others = dict.fromkeys(paths)
    return Choice(first, asked=asked, otherwise=tuple(others), may_begin=may_begin)


def _unasked_in_fit(offers: Offers) -> Choice:
    if offers.left_by_exception:
        choice = _one_of(newest_first(offers.last), "last", may_begin=True)
        return replace(
            choice,
            warning=f"Trainer.fit() goes on from {choice.path}, although no ckpt_path was passed. OnExceptionCheckpoint"
            " found what a failed run left. Remove that file to start afresh.",
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
            f"{what}. The ModelCheckpoint callback has not saved any checkpoint yet, and where earlier runs kept theirs"
            " none says which of them is the best. Call fit() first, or pass a path as ckpt_path."
        )
    return _one_of([offers.best[0], *offers.next_best], "best")


def _last(offers: Offers, call: str) -> Choice:
    paths = [*newest_first(offers.last), *newest_first(offers.others)]
    if paths:
        return _one_of(paths, "last")
    return Choice(
        None,
        f"{call}(ckpt_path='last') found no last checkpoint. Nothing is loaded, and the run starts afresh."
        " Pass ModelCheckpoint(save_last=True) to have one next time.",
    )


def _auto(offers: Offers, call: str, fits: bool, fast_dev_run: bool) -> Choice:
    if fits and fast_dev_run:
        return Choice(None)  # a trial begins at the beginning
    paths = [*newest_first({**offers.hpc, **offers.last, **offers.others}), *newest_first(offers.earlier)]
    if paths:
        return _one_of(paths, "auto", may_begin=fits)
    if fits:
        return Choice(None)
    raise ConfigurationError(
        f"{call}(ckpt_path='auto') asks for the newest checkpoint. Neither this run nor an earlier one in its folders"
        " has kept any, and weights that nothing has trained say nothing. Call fit() first, or pass a path."
    )


def newest_first(written: Mapping[str, float]) -> list[str]:
    """The paths by the time at which they were written; of equally old ones, the last by name comes first."""
    return sorted(written, key=lambda path: (written[path], path), reverse=True)


def hpc_first(names: Iterable[str]) -> list[str]:
    """Of file names, the checkpoints of a requeued job, that with the highest number first: `hpc_ckpt_12.ckpt`."""
    numbered = [(int(match[1]), name) for name in names if (match := _HPC_NAME.fullmatch(os.path.basename(name)))]
    return [name for _, name in sorted(numbered, reverse=True)]


def newest_hpc(names: Iterable[str]) -> str | None:
    """Of file names, the checkpoint of a requeued job with the highest number."""
    return next(iter(hpc_first(names)), None)


def next_hpc_name(names: Iterable[str]) -> str:
    """The file name for the next checkpoint of a job that is about to be requeued."""
    latest = newest_hpc(names)
    match = _HPC_NAME.fullmatch(os.path.basename(latest)) if latest else None
    return f"hpc_ckpt_{int(match[1]) + 1 if match else 1}.ckpt"


def gather_offers(
    callbacks: Iterable[object],
    *,
    root_dir: PathLike,
    loggers: Sequence[Logger] = (),
    wants_best: bool = True,
    wants_hpc: bool = True,
) -> Offers:
    """Look at the callbacks and the file system: what is there to choose from? No logger takes a version for it.

    Args:
        callbacks: Of the trainer, in order.
        root_dir: Where requeued jobs leave their checkpoints: the `default_root_dir`.
        loggers: Of the trainer: the first one says where runs are kept.
        wants_best: Look into the files of earlier runs for their best checkpoint, if this process has none yet?
        wants_hpc: Look through `root_dir` for what requeued jobs left?
    """
    root = os.fspath(root_dir)
    best: list[str] = []
    next_best: list[str] = []
    last: dict[str, float] = {}
    others: dict[str, float] = {}
    earlier: dict[str, float] = {}
    left: set[str] = set()
    for callback in callbacks:
        if isinstance(callback, RanksCheckpoints):
            extension = callback.FILE_EXTENSION
            folders = newest_folders(run_folders(callback, loggers, root), extension)
            ranked = _ranked(callback, folders[0] if folders and wants_best else None)
            if not best:
                next_best = ranked[1:]
            best.append(ranked[0] if ranked else "")
            for path in checkpoints_in(folders[0], extension) if folders else ():
                name = os.path.basename(path)
                group = last if callback.is_last_name(name) or is_last_name(name) else others
                group[path] = written_at(path)
            for folder in folders[1:]:
                earlier.update({path: written_at(path) for path in checkpoints_in(folder, extension)})
        elif isinstance(callback, SavesOnException):
            left.add(callback.path_after_exception())
    left = {path for path in left if exists(path)}
    last.update({path: written_at(path) for path in left})
    hpc = [join(root, name) for name in hpc_first(list_dir(root))] if wants_hpc else []
    return Offers(
        best=tuple(best),
        next_best=tuple(next_best),
        last=last,
        others=others,
        earlier=earlier,
        left_by_exception=frozenset(left),
        hpc={path: written_at(path) for path in hpc},
    )


def folders_of(callbacks: Iterable[object], *, root_dir: PathLike, loggers: Sequence[Logger] = ()) -> list[str]:
    """All folders in which the callbacks of this run, and those of earlier ones, keep checkpoints."""
    folders: list[str] = []
    for callback in callbacks:
        if isinstance(callback, RanksCheckpoints):
            folders += run_folders(callback, loggers, os.fspath(root_dir))
        elif isinstance(callback, SavesOnException):
            folders.append(os.path.dirname(callback.path_after_exception()))
    return list(dict.fromkeys(folders))


def run_folders(callback: RanksCheckpoints, loggers: Sequence[Logger], root_dir: str) -> list[str]:
    """Where the checkpoints of this run and of those before it may be: one folder, or one for each version.

    What the user named - the folder, or the version of the logger - is that one folder. Else the runs before this one
    are those whose versions the logger counts.
    """
    folder = callback.dirpath
    if not loggers:
        return [folder if folder is not None else join(root_dir, "checkpoints")]
    logger = loggers[0]
    versions_dir = asked(logger, "versions_dir")
    if versions_dir is None:
        if folder is not None:
            return [folder]
        return [checkpoint_dir(logger, root_dir)]
    if folder is not None and os.path.dirname(os.path.dirname(_absolute(folder))) != _absolute(versions_dir):
        return [folder]  # of the user's choice
    if folder is not None and checkpoints_in(folder):
        return [folder]  # this process has begun one already
    return [join(versions_dir, version, _FOLDER) for version in list_dir(versions_dir)]


def checkpoint_dir(logger: Logger, root_dir: str) -> str:
    """Where a run with this logger keeps its checkpoints."""
    save_dir, name, version = (asked(logger, part, asked) for part in ("save_dir", "name", "version"))
    if asked in (save_dir, name, version):  # it has failed, and that was reported: as without a logger
        return os.path.join(root_dir, _FOLDER)
    version = version if isinstance(version, str) else f"version_{version}"
    for part in (str(name), version):
        check_inside(f"{type(logger).__name__} with the name {str(name)!r} and the version {version!r}", part)
    return os.path.join(save_dir if save_dir is not None else root_dir, str(name), version, _FOLDER)


def _ranked(callback: RanksCheckpoints, folder: str | None) -> list[str]:
    if callback.best_model_path or folder is None:
        return callback.checkpoints_by_score()
    try:
        found = best_in(folder, callback.state_key)
    except CheckpointError:  # there are some, and none can be read: none is the best
        return []
    return [] if found is None else [found.path, *found.others]


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
        " Pass the path of a checkpoint file, or 'auto', 'best', 'last' or 'hpc'."
    )


def _absolute(path: str) -> str:
    return os.path.realpath(path) if is_local(path) else path
