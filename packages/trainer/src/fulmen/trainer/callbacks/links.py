"""One checkpoint under a second name, without a second copy of it."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from fulmen.fabric.checkpoint_io.commit import storage_failures
from fulmen.fabric.checkpoint_io.exchange import replace_folder
from fulmen.fabric.filesystem import NotDurableError, sync_dir, temporary_beside


def link_or_copy(path: str, link: str, *, symbolic: bool = True) -> None:
    """Give the checkpoint `path`, a file or folder, the second name `link` beside it.

    What was at `link` before stays until the new one is in its place. A symbolic link is relative: it survives a move
    of the folder. Other links are hard ones, of each file of a folder: they lead somewhere whatever becomes of `path`.

    Args:
        path: On a local file system, as `link`.
        link: The other name.
        symbolic: Which kind is wanted. Where the file system has none of it, the other kind is taken, or a copy.

    Raises:
        CheckpointError: If the storage fails; what was at `link` is unchanged, or the new one is there, as it says.
    """
    with storage_failures(link):
        _link_or_copy(path, link, symbolic=symbolic)


def _link_or_copy(path: str, link: str, *, symbolic: bool) -> None:
    if not symbolic and not os.path.islink(link) and _has_file_of(path, link):
        return  # renaming one name of a file to another of its names does nothing
    aside = temporary_beside(Path(link))
    try:
        for make in (_symbolic, _hard) if symbolic else (_hard, _symbolic):
            with suppress(OSError):  # Windows without developer mode, FAT, some network file systems
                make(path, aside, link)
                break
            _remove(aside)
        else:
            _copy(path, aside)
        if os.path.isdir(aside) and not os.path.islink(aside):
            replace_folder(str(aside), link)
            return
        if os.path.isdir(link) and not os.path.islink(link):
            shutil.rmtree(link)  # a file cannot be renamed over a folder
        os.replace(aside, link)
        _sync_name(link)
    except NotDurableError:  # what is aside may be what was there before
        raise
    except BaseException:
        _remove(aside)
        raise


def keep_for_link(path: str, link: str) -> None:
    """If `link` is a symbolic link to the checkpoint `path`, which is about to be removed, move it there instead.

    Raises:
        CheckpointError: If the storage fails.
    """
    with storage_failures(link):
        _keep_for_link(path, link)


def _keep_for_link(path: str, link: str) -> None:
    if os.path.islink(link) and os.path.realpath(link) == os.path.realpath(path) and os.path.exists(path):
        if os.path.isdir(path):
            os.remove(link)  # a folder cannot be renamed over a link
        os.replace(path, link)
        _sync_name(link)


def _sync_name(link: str) -> None:
    """Bring the new name to the disk, which nobody can take back."""
    try:
        sync_dir(Path(link).parent)
    except OSError as error:
        raise NotDurableError(error.errno, error.strerror, link) from error


def _symbolic(path: str, aside: Path, link: str) -> None:
    os.symlink(os.path.relpath(path, os.path.dirname(link)), aside)


def _hard(path: str, aside: Path, link: str) -> None:
    real = os.path.realpath(path)
    if os.path.isdir(real):
        shutil.copytree(real, aside, copy_function=os.link)
        sync_dir(aside)
    else:
        os.link(real, aside)


def _copy(path: str, aside: Path) -> None:
    if not os.path.isdir(path):
        _copy_file(path, aside)
        return
    shutil.copytree(path, aside, copy_function=_copy_file)
    sync_dir(aside)


def _copy_file(path: str | Path, to: str | Path) -> None:
    shutil.copyfile(path, to)
    with open(to, "rb+") as file:
        os.fsync(file.fileno())


def _remove(aside: Path) -> None:
    if os.path.isdir(aside) and not os.path.islink(aside):
        shutil.rmtree(aside, ignore_errors=True)
    else:
        with suppress(OSError):
            os.remove(aside)


def _has_file_of(path: str, link: str) -> bool:
    return os.path.isfile(link) and os.path.isfile(path) and os.path.samefile(path, link)
