"""Is a checkpoint what was written? And which is the newest of which that is so?"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field

from fulmen.fabric.checkpoint_io.blocks import VerifyingFile
from fulmen.fabric.checkpoint_io.manifest import UNREADABLE_ARCHIVE, PassedOver, is_archive, newest_that_verifies
from fulmen.fabric.checkpoint_io.sharded_names import METADATA, is_deepspeed, is_sharded
from fulmen.fabric.checkpoint_io.torch import compression_in, damaged, opened
from fulmen.fabric.errors import CheckpointError
from fulmen.fabric.filesystem import exists, get_filesystem, is_local, join, local_path, sync_dir
from fulmen.fabric.types import PathLike


def checkpoint_damage(path: PathLike) -> str | None:
    """What is wrong with the checkpoint `path`, one file or a sharded folder; None if every byte is what was written.

    Reads it once and holds nothing of it. Files of other programs have no SHA-256; of those the sums of the zip archive
    are compared.
    """
    try:
        if is_sharded(path):
            from fulmen.fabric.checkpoint_io.sharded_folder import ShardedFolder

            ShardedFolder(path).verify()
        elif is_deepspeed(path):
            from fulmen.fabric.checkpoint_io.deepspeed_folder import DeepSpeedFolder

            DeepSpeedFolder(path).verify()
        else:
            raise_if_damaged(path)
    except (CheckpointError, OSError) as error:
        return str(error)
    return None


def raise_if_damaged(path: PathLike) -> None:
    """Compare the file `path` with its SHA-256.

    Raises:
        CheckpointDamagedError: If a byte is not what was written.
        CheckpointNotFoundError, CheckpointError: As `TorchCheckpointIO.load_checkpoint`.
    """
    with opened(path) as (file, num_bytes, digests):
        if digests is not None:
            damage = VerifyingFile(file, digests, num_bytes, is_local=is_local(path)).damage()
        else:
            damage = _archive_damage(file)
        if damage is not None:
            raise damaged(path, num_bytes, damage)


def _archive_damage(file: object) -> str | None:
    if (damage := compression_in(file)) is not None:
        return damage
    if not is_archive(file.read(4)):  # type: ignore[attr-defined]
        return None  # of before torch 1.6: nothing to compare with
    try:
        with zipfile.ZipFile(file) as archive:  # type: ignore[call-overload]
            name = archive.testzip()
    except UNREADABLE_ARCHIVE as error:
        return f"its archive cannot be read ({error})"
    return None if name is None else f"its part {name!r} is not what was written"


@dataclass(frozen=True)
class Newest:
    """The newest checkpoint that is whole.

    Args:
        path: None if there is none.
        passed_over: Newer ones that are damaged or gone, and why they were not taken.
    """

    path: str | None
    passed_over: list[PassedOver[str]] = field(default_factory=list)


def newest_checkpoint(candidates: Iterable[PathLike]) -> Newest:
    """The newest of some checkpoints, files and folders, local and remote, of which every byte is what was written.

    Args:
        candidates: Their paths. The newest is that which was written last; of equally old ones, the last by name.
    """
    paths = [os.fspath(path) for path in candidates]
    newest_first = sorted(paths, key=lambda path: (written_at(path), path), reverse=True)
    return Newest(*newest_that_verifies(newest_first, checkpoint_damage))


def set_aside(path: PathLike) -> str:
    """Give a damaged checkpoint another name, so that it is neither taken for good nor lost; the name."""
    plain = os.fspath(path).rstrip("/")
    number = 0
    while exists(aside := f"{plain}.damaged" + (f"-{number}" if number else "")):
        number += 1
    if is_local(path):
        os.rename(local_path(plain), local_path(aside))
        sync_dir(os.path.dirname(os.path.abspath(local_path(aside))))
    else:
        get_filesystem(path).mv(plain, aside, recursive=is_sharded(path))
    return aside


def written_at(path: str) -> float:
    """When a checkpoint, file or folder, was written, in seconds; 0 if that cannot be known."""
    file = join(path, METADATA) if is_sharded(path) else path
    try:
        if is_local(file):
            return os.path.getmtime(local_path(file))
        return float(get_filesystem(file).modified(file).timestamp())
    except (OSError, NotImplementedError):
        return 0.0
