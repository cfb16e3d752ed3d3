"""What writers that no longer run have left half-written: find it, clear it away."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from fulmen.fabric.checkpoint_io.exchange import restore_replaced
from fulmen.fabric.checkpoint_io.temporaries import SUFFIXES, Temporary
from fulmen.fabric.filesystem import UPLOAD_NAME, is_local, list_dir, local_path
from fulmen.fabric.types import PathLike


def leftovers(folder: PathLike) -> list[Path]:
    """The files and folders in `folder` that writers which no longer run have left half-written.

    For a remote folder, those that were to be uploaded, in the folder for temporary files. What a process of another
    machine writes counts as left when nothing was written to it for an hour.
    """
    return [found.path for found in _abandoned(folder)]


def clean_leftovers(folder: PathLike, older_than_s: float = 0.0) -> list[Path]:
    """Remove the `leftovers` of `folder`, and return them. To be called when a run starts.

    A folder that a crash has caught between two names gets its own name again first. What a living process writes is
    never touched.

    Args:
        folder: Where checkpoints are written.
        older_than_s: Leave what was written to within so many seconds.
    """
    abandoned = _abandoned(folder)
    replaced = [found for found in abandoned if found.is_replaced]
    for found in replaced:
        restore_replaced(os.fspath(found.path.absolute().with_name(found.target)))
    removed = []
    for found in _abandoned(folder) if replaced else abandoned:
        with suppress(FileNotFoundError):
            if found.idle_s() < older_than_s:
                continue
            if found.path.is_dir() and not found.path.is_symlink():
                shutil.rmtree(found.path, ignore_errors=True)
            else:
                found.path.unlink()
            removed.append(found.path)
    return removed


def _abandoned(folder: PathLike) -> list[Temporary]:
    place = Path(local_path(folder)) if is_local(folder) else Path(tempfile.gettempdir())
    found = [Temporary.parse(place / name) for name in list_dir(place) if name.endswith(SUFFIXES)]
    abandoned = []
    for temporary in found:
        if temporary is None or (not is_local(folder) and temporary.target != UPLOAD_NAME):
            continue
        with suppress(FileNotFoundError):
            if temporary.is_abandoned():
                abandoned.append(temporary)
    return abandoned
