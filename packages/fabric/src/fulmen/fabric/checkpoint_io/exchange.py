"""Put a folder in the place of another, so that at every moment one of the two is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fulmen.fabric.checkpoint_io.linux_calls import exchange_names
from fulmen.fabric.checkpoint_io.temporaries import Temporary
from fulmen.fabric.filesystem import NotDurableError, list_dir, sync_dir


def replace_folder(new: str, path: str) -> None:
    """Move the folder `new` to `path`, beside which it lies; what was there is removed afterwards.

    Linux exchanges two names in one step. Where the file system cannot, the old folder gets the name `<new>.old` first;
    after a crash between the two steps, `restore_replaced` gives it its name again.

    Raises:
        OSError: If the storage fails. Both folders have their old names then, as far as it lets them.
        NotDurableError: If they are exchanged, and could not be exchanged back: `new` is what was at `path`.
    """
    parent = Path(path).parent
    if not os.path.lexists(path):
        os.rename(new, path)
        with _undone_by(lambda: os.rename(path, new)):
            sync_dir(parent)
        return
    old = new
    if os.path.isdir(path) and not os.path.islink(path) and exchange_names(new, path):
        try:
            sync_dir(parent)
        except OSError as error:
            if exchange_names(new, path):
                raise
            raise NotDurableError(error.errno, error.strerror, path) from error
    else:
        old = f"{new}.old"
        os.rename(path, old)
        with _undone_by(lambda: os.rename(old, path)):
            sync_dir(parent)
            os.rename(new, path)
            with _undone_by(lambda: os.rename(path, new)):
                sync_dir(parent)
    if os.path.isdir(old) and not os.path.islink(old):
        shutil.rmtree(old, ignore_errors=True)
    else:
        with suppress(OSError):
            os.remove(old)


@contextmanager
def _undone_by(undo: Callable[[], object]) -> Iterator[None]:
    try:
        yield
    except OSError:
        with suppress(OSError):
            undo()
        raise


def restore_replaced(path: str) -> bool:
    """If a crash came between the two steps of `replace_folder`, give the old folder its name again; was it so?"""
    target = Path(path)
    if os.path.lexists(target):
        return False
    for name in list_dir(target.parent):
        found = Temporary.parse(target.parent / name)
        if found is None or not found.is_replaced or found.target != target.name:
            continue
        with suppress(OSError):
            # Its writer may be between the two steps at this moment.
            if found.is_abandoned():
                os.rename(found.path, target)
                sync_dir(target.parent)
                return True
    return False
