"""Calls of Linux that Python does not offer. Elsewhere they answer that they cannot, and nothing is lost."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import cache
from typing import Any

_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100  # linux/fcntl.h
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_MADV_POPULATE_WRITE = 23  # linux/mman.h, since 5.14


def exchange_names(first: str, second: str) -> bool:
    """Exchange two names on one file system in one step; False if that cannot be done here."""
    call = _call("renameat2")
    if call is None:
        return False
    done: int = call(
        _AT_FDCWD,
        ctypes.c_char_p(os.fsencode(first)),
        _AT_FDCWD,
        ctypes.c_char_p(os.fsencode(second)),
        _RENAME_EXCHANGE,
    )
    return done == 0


def begin_to_sync(descriptor: int, start: int, num_bytes: int) -> None:
    """Let the disk begin to take what was written to a file, so that an fsync later on finds it done."""
    call = _call("sync_file_range")
    if call is not None:
        call(descriptor, ctypes.c_int64(start), ctypes.c_int64(num_bytes), _SYNC_FILE_RANGE_WRITE)


def give_pages(view: memoryview) -> None:
    """Let memory that nobody has used yet get its pages in one call, and not at a fault for each; nothing is changed.

    Args:
        view: Writable. Only pages that lie in it whole are asked for.
    """
    call = _call("madvise")
    if call is None or len(view) < 2 * mmap.PAGESIZE:
        return
    start = ctypes.addressof(ctypes.c_char.from_buffer(view))
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (start + len(view)) // mmap.PAGESIZE * mmap.PAGESIZE
    call(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _MADV_POPULATE_WRITE)


@cache
def _call(name: str) -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
