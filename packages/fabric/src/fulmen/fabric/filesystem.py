"""Local and remote paths: list, write atomically, remove.

Local paths go through `os`, and fsspec is loaded only for what has a protocol (`s3://…`) or when asked for by name.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.types import PathLike

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem

_LOCAL_PROTOCOLS = ("file://", "local://")
# Here an upload is visible while it grows; elsewhere, when it is complete.
_RENAMING_PROTOCOLS = ("sftp://", "ssh://", "ftp://", "smb://", "hdfs://", "webhdfs://")
# In the names of temporary files: a process number means nothing on another machine.
THIS_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
# What is on its way to a remote path, in the folder for temporary files.
UPLOAD_NAME = "fulmen-upload"
# What this process has written aside and could not remove, as where permission was taken away meanwhile.
_UNREMOVED: set[Path] = set()
_NO_FILE = "it is a pipe or a device, and no file"
# What a storage answers that is broken, full, or gone; all else is that of a system which syncs no folders.
_FAILURES = {
    getattr(errno, name)
    for name in ("EIO", "ENOSPC", "EDQUOT", "EROFS", "ENXIO", "ENODEV", "ESTALE", "EREMOTEIO")
    if hasattr(errno, name)
}


class NotDurableError(OSError):
    """What was written stands in its place, and the storage failed to say that it stays there after a power cut."""


def is_local(path: PathLike) -> bool:
    """Is `path` on a file system that the operating system itself reaches?"""
    text = os.fspath(path)
    return "://" not in text or text.startswith(_LOCAL_PROTOCOLS)


def local_path(path: PathLike) -> str:
    """A local `path` without its protocol, with `~` expanded."""
    text = os.fspath(path)
    for protocol in _LOCAL_PROTOCOLS:
        text = text.removeprefix(protocol)
    return os.path.expanduser(text)


def join(path: PathLike, *names: str) -> str:
    """`path` and names below it, local or remote."""
    if is_local(path):
        return os.path.join(os.fspath(path), *names)
    return "/".join([os.fspath(path).rstrip("/"), *names])


def get_filesystem(path: PathLike, **kwargs: Any) -> AbstractFileSystem:
    """The fsspec file system that `path` lies on; `kwargs` are its storage options."""
    from fsspec.core import url_to_fs

    filesystem, _ = url_to_fs(os.fspath(path), **kwargs)
    return filesystem


def exists(path: PathLike) -> bool:
    """Is there a file or folder at `path`?"""
    if is_local(path):
        return os.path.exists(local_path(path))
    return bool(get_filesystem(path).exists(os.fspath(path)))


def is_dir(path: PathLike) -> bool:
    """Is there a folder at `path`?"""
    if is_local(path):
        return os.path.isdir(local_path(path))
    return bool(get_filesystem(path).isdir(os.fspath(path)))


def open_file(path: PathLike) -> IO[bytes]:
    """Open the local file `path` for reading, without a buffer.

    Raises:
        OSError: Also for a pipe or a device: whoever opens one may wait for ever, and it has no end.
    """

    def at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # means nothing to a file

    file = open(local_path(path), "rb", buffering=0, opener=at_once)  # noqa: SIM115 (the caller closes it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, _NO_FILE, os.fspath(path))
    return file


def refuse_special(path: PathLike) -> None:
    """A file that is moved to `path` would take the place of what is there.

    Raises:
        OSError: If that is a pipe or a device, such as `/dev/null`, or leads to one, as `/dev/stdout` does.
    """
    try:
        mode = os.stat(local_path(path)).st_mode
    except OSError:
        return  # nothing is there; or nobody can look, and the write says why
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, _NO_FILE, os.fspath(path))


def list_dir(path: PathLike) -> list[str]:
    """The names in the folder `path`, sorted; none if there is no such folder."""
    if is_local(path):
        try:
            return sorted(os.listdir(local_path(path)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # there can be no such folder
                return []
            raise
    filesystem = get_filesystem(path)
    # Object stores answer from a cache that other processes do not refresh.
    filesystem.invalidate_cache()
    if not filesystem.isdir(os.fspath(path)):
        return []
    found = filesystem.ls(os.fspath(path), detail=False)
    # Some object stores list the folder's own marker with its contents.
    own_name = os.fspath(path).rstrip("/").rpartition("/")[2]
    names = {str(entry).rstrip("/").rpartition("/")[2] for entry in found if not str(entry).endswith("/")}
    folders = {str(entry).rstrip("/").rpartition("/")[2] for entry in found if str(entry).endswith("/")}
    return sorted(names | (folders - {own_name}))


def make_dirs(path: PathLike) -> None:
    """Make the folder `path` and those above it; nothing happens if it is there."""
    if is_local(path):
        os.makedirs(local_path(path), exist_ok=True)
    else:
        get_filesystem(path).makedirs(os.fspath(path), exist_ok=True)


@contextmanager
def saying_where(argument: str) -> Iterator[None]:
    """What cannot be written inside is said with the argument that named the place.

    Raises:
        ConfigurationError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        where = f" in {error.filename!r}" if error.filename else ""
        raise ConfigurationError(
            f"{argument} names a place that cannot be written. The system says: {error.strerror or error}{where}."
            " Pass a folder that can be made and written."
        ) from error


def check_writable(folder: PathLike, argument: str) -> None:
    """Make a folder, and see that files can be made in it; folders of object stores are found out when used.

    Args:
        folder: The place.
        argument: As the user named it: "SimpleProfiler(dirpath='p')".

    Raises:
        ConfigurationError: If that cannot be done.
    """
    if is_local(folder):
        with saying_where(argument):
            make_dirs(folder)
            with tempfile.TemporaryFile(dir=local_path(folder)):
                pass


def remove(path: PathLike) -> None:
    """Remove the file at `path`, or the folder with all it holds; nothing happens if there is none."""
    if not is_local(path):
        filesystem = get_filesystem(path)
        if filesystem.exists(os.fspath(path)):
            filesystem.rm(os.fspath(path), recursive=True)
        return
    plain = local_path(path)
    if os.path.isdir(plain) and not os.path.islink(plain):
        shutil.rmtree(plain)
    else:
        with suppress(FileNotFoundError):
            os.remove(plain)


@contextmanager
def atomic_open(path: PathLike, mode: str = "wb", **kwargs: Any) -> Iterator[IO[Any]]:
    """Open a file for writing that appears at `path` whole, on leaving, or not at all.

    The folder is made if it is missing. On an error, in the block or on leaving, what was at `path` is unchanged.

    Args:
        path: Where the file is to be. A symbolic link there is replaced, not followed.
        mode: "wb" or "w".
        kwargs: As for `open`: `encoding`, `newline`. Text is UTF-8 unless told otherwise.

    Raises:
        OSError: If the disk is full, or the folder is not writable.
        NotDurableError: If the storage failed after the new file had taken the place of another.
    """
    if "b" not in mode:
        kwargs.setdefault("encoding", "utf-8")
    if is_local(path):
        with _atomic_local(Path(local_path(path)), mode, kwargs) as file:
            yield file
        return
    # Uploads of an object store are atomic, and begin here only when everything is there.
    temporary = temporary_beside(Path(tempfile.gettempdir(), UPLOAD_NAME))
    try:
        with open(temporary, mode.replace("w", "x"), **kwargs) as file:
            yield file
        _upload(temporary, os.fspath(path))
    finally:
        with suppress(FileNotFoundError):
            os.remove(temporary)


def _upload(file: Path, path: str) -> None:
    filesystem = get_filesystem(path)
    folder, _, name = path.rpartition("/")
    try:
        if not folder.endswith(":/"):
            filesystem.makedirs(folder, exist_ok=True)
        if path.startswith(_RENAMING_PROTOCOLS):
            aside = join(folder, temporary_beside(Path(name)).name)
            filesystem.put_file(str(file), aside)
            filesystem.mv(aside, path)
        else:
            filesystem.put_file(str(file), path)
    except OSError:
        raise
    except Exception as error:
        # What clients of object stores raise is of no family.
        raise OSError(errno.EIO, f"the upload failed ({type(error).__name__}: {error})", path) from error


@contextmanager
def _atomic_local(path: Path, mode: str, kwargs: dict[str, Any]) -> Iterator[IO[Any]]:
    _remove_what_is_left()
    refuse_special(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    is_open = False
    try:
        with open(temporary, mode.replace("w", "x"), **kwargs) as file:
            is_open = True
            yield file
            file.flush()
            os.fsync(file.fileno())
        _move(temporary, path)
    except BaseException:
        if is_open or os.path.lexists(temporary):
            _UNREMOVED.add(temporary)
        _remove_what_is_left()
        raise


def _move(temporary: Path, path: Path) -> None:
    is_new = not os.path.lexists(path)
    os.replace(temporary, path)
    try:
        sync_dir(path.parent)
    except OSError as error:
        if is_new:
            with suppress(OSError):
                os.replace(path, temporary)
        if os.path.lexists(temporary):
            raise
        raise NotDurableError(error.errno, error.strerror, os.fspath(path)) from error


@atexit.register
def _remove_what_is_left() -> None:
    for file in list(_UNREMOVED):
        with suppress(OSError):
            with suppress(FileNotFoundError, NotADirectoryError):
                os.remove(file)
            _UNREMOVED.discard(file)


def unremoved(folder: PathLike) -> list[Path]:
    """What this process has written in `folder` for nothing and could not remove; the next write tries it again."""
    return sorted(file for file in list(_UNREMOVED) if file.parent == Path(local_path(folder)))


def temporary_beside(path: Path) -> Path:
    """A name in the same folder (so that a rename is atomic), hidden, and of no other process or thread."""
    # File names end at 255 bytes; what is added here takes less than 40.
    name = path.name.encode()[:200].decode(errors="ignore")
    return path.with_name(f".{name}.{os.getpid()}-{THIS_HOST}{secrets.token_hex(4)}.tmp")


def sync_dir(folder: PathLike) -> None:
    """Make a rename in `folder` survive a power cut, where the system can.

    Raises:
        OSError: If the storage fails.
    """
    # Windows opens no folders, and some network file systems sync none.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno is not None and error.errno in _FAILURES:
            raise OSError(error.errno, os.strerror(error.errno), os.fspath(folder)) from error


def sanitize_name(name: str) -> str:
    """`name` as the name of one file: separators, and what Windows forbids, become "_".

    >>> sanitize_name("val/loss: 0.5")
    'val_loss_ 0.5'
    """
    safe = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", name).rstrip(" .")
    return safe or "_"
