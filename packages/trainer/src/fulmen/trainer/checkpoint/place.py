"""Where a run writes its checkpoints: is a path in that folder, and can anything be written there?"""

import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from fulmen.fabric.errors import CheckpointError
from fulmen.fabric.filesystem import is_local, local_path
from fulmen.fabric.types import PathLike


def absolute(path: PathLike) -> str:
    """A local `path` without links and "..", a remote one as it is."""
    text = os.fspath(path)
    return os.path.realpath(local_path(text)) if is_local(text) else text


def is_in_folder(path: PathLike, folder: PathLike | None) -> bool:
    """Does `path`, the last name in which may be a link, lie below `folder`? Remote paths are taken as they are."""
    if not is_local(path):
        return True
    if folder is None:
        return False
    above, name = os.path.split(local_path(path))
    return Path(absolute(folder)) in Path(absolute(above), name).parents and name not in ("", os.curdir, os.pardir)


def check_place(folder: PathLike, num_bytes: int, name: str = "") -> None:
    """Refuse, before any work begins, a folder to which a checkpoint can never be written.

    A few bytes are written where it is, or where it would be made, and removed again. A remote folder is not asked;
    its checkpoints are collected in the folder for temporary files first, which is.

    Args:
        folder: It need not exist yet.
        num_bytes: What one checkpoint has at least.
        name: What its name has at least, in any case.

    Raises:
        CheckpointError: Naming the folder, and the bytes that are needed and free.
    """
    asked = os.fspath(folder)
    here = Path(local_path(asked)).absolute() if is_local(asked) else Path(tempfile.gettempdir())
    # A local folder is made when it is needed; that for temporary files has to be there.
    existing = next(place for place in (here, *here.parents) if os.path.lexists(place) or not is_local(asked))
    beside = "" if is_local(asked) else f" They are collected in {str(here)!r} before the upload."
    if (unfit := _unfit(here / name if is_local(asked) else here, existing)) is not None:
        raise CheckpointError(
            f"No checkpoint can be written to {asked!r}: {unfit} Nothing was trained yet. Pass a shorter"
            " ModelCheckpoint(dirpath=...), ModelCheckpoint(filename=...) or Trainer(default_root_dir=...)."
        )
    probe = existing / f".fulmen-probe-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with open(probe, "xb") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(
            f"No checkpoint can be written to {asked!r}: {error.strerror or error}, after 0 bytes, in"
            f" {str(existing)!r}.{beside} Nothing was trained yet. Pass another folder as ModelCheckpoint(dirpath=...)"
            " or Trainer(default_root_dir=...), or Trainer(enable_checkpointing=False)."
        ) from error
    finally:
        with suppress(OSError):
            os.remove(probe)
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise CheckpointError(
            f"No checkpoint can be written to {asked!r}: it has at least {num_bytes} bytes, and {free} bytes are free"
            f" in {str(existing)!r}.{beside} Nothing was trained yet. Make room, or pass another folder as"
            " ModelCheckpoint(dirpath=...) or Trainer(default_root_dir=...)."
        )


def _unfit(path: Path, existing: Path) -> str | None:
    """What the file system would never take of `path`, below the folder that exists; None if it can take all."""
    if "\0" in str(path):
        return "The path holds a null byte, which ends a name."
    if not hasattr(os, "pathconf"):
        return None
    with suppress(OSError):  # a file system that does not say
        longest, most = os.pathconf(existing, "PC_NAME_MAX"), os.pathconf(existing, "PC_PATH_MAX")
        for part in path.parts:
            if len(os.fsencode(part)) > longest:
                return f"{part!r} has {len(os.fsencode(part))} bytes, and a name has {longest} at most there."
        if len(os.fsencode(path)) >= most:
            return f"The path has {len(os.fsencode(path))} bytes, and one has {most - 1} at most there."
    return None
