"""One file under a second name."""

import os
import shutil
from pathlib import Path

from fulmen.fabric.filesystem import temporary_beside


def link_or_copy(path: str, link: str) -> None:
    """Make `link` a relative symbolic link to `path`, or a copy where links are not allowed.

    What was at `link` before stays until the new one is in its place.
    """
    aside = temporary_beside(Path(link))
    try:
        os.symlink(os.path.relpath(path, os.path.dirname(link)), aside)
    except OSError:  # Windows without developer mode, some network file systems
        if os.path.isdir(path):
            shutil.copytree(path, aside)
        else:
            shutil.copy(path, aside)
    if os.path.isdir(link) and not os.path.islink(link):
        shutil.rmtree(link)  # a folder cannot be replaced by renaming
    os.replace(aside, link)
