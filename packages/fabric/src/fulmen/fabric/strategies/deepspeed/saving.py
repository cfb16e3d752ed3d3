"""Write the state of an engine of DeepSpeed to its folder: whole or not at all, and nothing in it runs when read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from fulmen.fabric.checkpoint_io.commit import FolderAside, storage_failures
from fulmen.fabric.checkpoint_io.deepspeed_files import KNOWN_CLASSES, read_file, write_file
from fulmen.fabric.checkpoint_io.deepspeed_folder import OWN_KEYS, RENAMED, gradients_file
from fulmen.fabric.checkpoint_io.ranks import Ranks
from fulmen.fabric.checkpoint_io.safe import CANNOT_PICKLE, cannot_be_saved
from fulmen.fabric.checkpoint_io.sharded_names import TAG
from fulmen.fabric.errors import CheckpointError
from fulmen.fabric.filesystem import is_local, sync_dir
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.strategies.deepspeed.gradients import has_gradients, take_gradients
from fulmen.fabric.types import PathLike


class SafeFiles:
    """Takes the place of an engine's own writer and reader of files: only tensors and plain data come in and out.

    A failure while writing is kept until all processes have written: raised at once, it would leave the others waiting.
    """

    name = "SafeFiles"

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.trusted = False  # may the files that are read now run code?

    def create(self, info: Any) -> None:
        """A checkpoint begins."""
        self.failure = None

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder."""
        os.makedirs(path, exist_ok=exist_ok)

    def save(self, state_dict: Mapping[str, Any], path: str) -> None:
        """Write one file."""
        try:
            with storage_failures(path):
                write_file(path, dict(state_dict))
        except CANNOT_PICKLE as error:
            self.failure = self.failure or cannot_be_saved(path, state_dict, str(error))
        except Exception as error:
            self.failure = self.failure or error

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file."""
        return read_file(path, let_in=_known_classes(), trusted=self.trusted)

    def commit(self, info: Any) -> bool:
        """All files were asked for."""
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        """Does this process write what all have?"""
        return dp_rank == 0

    def is_decoupled(self) -> bool:
        """Does it write in the background? No."""
        return False

    def set_commit_info(self, info: Any) -> None:
        """Nothing is to be remembered."""

    def get_commit_info(self) -> None:
        """Nothing is remembered."""

    def cleanup(self) -> None:
        """Nothing is held."""

    def raise_failure(self) -> None:
        """Raise what went wrong since `create`."""
        if self.failure is not None:
            raise self.failure


def _known_classes() -> list[Any]:
    parts = [name.rpartition(".") for name in KNOWN_CLASSES]
    return [getattr(import_module(module), name) for module, _, name in parts]


def save_engine(engine: Any, path: PathLike, state: Mapping[str, Any], *, exclude_frozen: bool) -> None:
    """Write module and optimizer of an engine, and `state`, to the folder `path`. Every process must call it.

    Raises:
        CheckpointError: On every process, if one of them fails; what was at `path` before is unchanged.
    """
    ranks, files = Ranks(), engine.checkpoint_engine
    check_local(path)
    renamed = {key: value for key, value in state.items() if key in OWN_KEYS}
    client = {key: value for key, value in state.items() if key not in OWN_KEYS}
    aside = ranks.on_zero(lambda: FolderAside.begin(path))
    try:
        engine.save_checkpoint(
            aside.place,
            tag=TAG,
            client_state={**client, RENAMED: renamed} if renamed else client,
            exclude_frozen_parameters=exclude_frozen,
        )
        if has_gradients(engine):
            _save_gradients(engine, os.path.join(aside.place, TAG, gradients_file(ranks.rank)))
        ranks.each(files.raise_failure)
        ranks.on_zero(lambda: _finish(aside))
    except BaseException:
        if ranks.is_zero:
            aside.abandon()
        raise


def _save_gradients(engine: Any, path: str) -> None:
    """What is added up inside an accumulation window; each process has its own part of it."""
    taken = take_gradients(engine)
    if taken is not None:
        engine.checkpoint_engine.save(taken, path)
        return
    rank_zero_warn(
        "The checkpoint is written inside an accumulation window, and this release of DeepSpeed keeps gradients where"
        " they cannot be read. A resume goes on without those of the window's first batches."
        " Save where a window ends to go on exactly."
    )


def check_local(path: PathLike) -> None:
    """Refuse a path on another machine.

    Raises:
        CheckpointError: Quoting it.
    """
    if not is_local(path):
        raise CheckpointError(
            f"The checkpoint {os.fspath(path)!r} cannot be written there: DeepSpeed reads and writes local files only."
            " Pass a local path that all processes reach, and copy the folder afterwards."
        )


def _finish(aside: FolderAside) -> None:
    with storage_failures(aside.path):
        for name in os.listdir(aside.place):
            place = os.path.join(aside.place, name)
            if os.path.isdir(place):
                sync_dir(place)
            else:
                with open(place, "rb") as file:
                    os.fsync(file.fileno())
    aside.commit(set())
