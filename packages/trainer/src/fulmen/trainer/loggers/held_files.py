"""Files that wait to be uploaded, held so that nobody's removal takes them away."""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_FOLDER = "waiting-checkpoints"


def hold(path: str, folder: Path) -> str | None:
    """A second name, below `folder`, for a file or for all files of a folder: no byte is copied.

    Returns:
        Its path, whose last part is that of `path`; None where the file system has no second names, or is another one.
    """
    source, folder = Path(path), folder.absolute()
    place: Path | None = None
    try:
        (folder / _FOLDER).mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=folder / _FOLDER))
        target = place / source.name
        if source.is_dir():
            shutil.copytree(source, target, copy_function=os.link)
        else:
            os.link(source, target)
    except (OSError, shutil.Error):
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
            _remove_if_empty(place.parent)
        return None
    return str(target)


def let_go(held: str) -> None:
    """The second name goes, and its folder with the last one."""
    place = Path(held).parent
    shutil.rmtree(place, ignore_errors=True)
    _remove_if_empty(place.parent)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
