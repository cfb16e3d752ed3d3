"""The folders `version_0`, `version_1`, ... of the runs of one experiment."""

from __future__ import annotations

import os
import re

from fulmen.fabric.filesystem import is_local, join, list_dir, local_path, make_dirs
from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.fabric.types import PathLike

_VERSION = re.compile(r"version_(\d+)")


def take_version(folder: PathLike) -> int:
    """The next free number below `folder`; on rank zero its folder is made, so that no other run takes it."""
    while True:
        matches = (_VERSION.fullmatch(name) for name in list_dir(folder))
        version = max((int(match[1]) for match in matches if match), default=-1) + 1
        if rank_zero_only.rank != 0 or not is_local(folder):
            return version
        make_dirs(folder)
        try:
            os.mkdir(join(local_path(folder), f"version_{version}"))
        except FileExistsError:
            continue
        return version


def version_dir(folder: PathLike, version: int | str) -> str:
    """The folder of one run: `version_N` for a number, and a name as it is."""
    return join(folder, version if isinstance(version, str) else f"version_{version}")
