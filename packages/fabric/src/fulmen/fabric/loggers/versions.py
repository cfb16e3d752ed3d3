"""The folders `version_0`, `version_1`, ... of the runs of one experiment, and the loggers that write into them."""

from __future__ import annotations

import os
import re
from abc import ABC
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from fulmen.fabric.arguments import check_count, check_location, check_text
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.filesystem import is_local, join, list_dir, local_path, make_dirs, saying_where
from fulmen.fabric.loggers.base import Logger
from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.fabric.types import PathLike

_VERSION = re.compile(r"version_(\d+)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


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


def check_inside(argument: str, name: object) -> None:
    """Refuse a name of an experiment or a version that leads out of the folder of all experiments, or nobody can read.

    Args:
        argument: As in "CSVLogger(name=...)", with what the user gave.
        name: A text may name folders below that one; anything else names none.

    Raises:
        ConfigurationError: Quoting the argument.
    """
    if not isinstance(name, str):
        return
    if unseen := _CONTROL.search(name):
        raise ConfigurationError(
            f"{argument} holds the control character {unseen[0]!r}. It names a folder, which nobody could type, and a"
            " terminal that lists it would act on the character. Leave it out."
        )
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
        raise ConfigurationError(
            f"{argument} leads outside of the folder that everything is written to. A name may hold folders below that"
            " one, and no other. Leave '..' and a leading '/' out, or pass that other folder itself."
        )


def version_dir(folder: PathLike, version: int | str) -> str:
    """The folder of one run: `version_N` for a number, and a name as it is."""
    return join(folder, version if isinstance(version, str) else f"version_{version}")


class VersionedLogger(Logger, ABC):
    """A logger that writes each run into a folder of its own, `root_dir/name/version_N`.

    Args:
        root_dir: The folder of all experiments.
        name: The folder of this experiment below it; None or "" for none.
        version: A number N for the folder `version_N`, or its name. None takes the next free number, and the folder
            with it: runs that start at the same time get different ones.
        prefix: Stands before the name of each metric.

    Raises:
        ArgumentTypeError: If one of them has another type.
        ConfigurationError: If the version is a negative number, or a name leads out of the folder or holds a control
            character.
    """

    # What a subclass calls `root_dir`.
    root_argument: ClassVar[str] = "root_dir"

    def __init__(
        self, root_dir: str | Path, name: str | None = None, version: int | str | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        check_location(self, self.root_argument, root_dir, "It is the folder of all experiments.")
        check_text(self, "name", name, "It is the folder of this experiment.")
        check_text(self, "prefix", prefix, "It stands before the name of each metric.")
        if isinstance(version, int):
            check_count(self, "version", version, "The folder of this run gets that number.", lowest=0)
        else:
            check_text(self, "version", version, "It is the number of this run, or the name of its folder.")
        check_inside(f"{type(self).__name__}(name={name!r})", name)
        check_inside(f"{type(self).__name__}(version={version!r})", version)
        self._root_dir = os.fspath(root_dir)
        self._name = name or ""
        self._version = version
        self._is_version_given = version is not None
        self._prefix = prefix or ""

    def _saying_where(self) -> AbstractContextManager[None]:
        """What cannot be written is said with the argument that names the folder."""
        return saying_where(f"{type(self).__name__}({self.root_argument}={self._root_dir!r})")

    @property
    def name(self) -> str:
        """The name of the experiment; "" if it has none."""
        return self._name

    @property
    def version(self) -> int | str:
        """Which run of the experiment this is; the first look takes a free number if none was given."""
        if self._version is None:
            with self._saying_where():
                self._version = take_version(join(self._root_dir, self._name))
        return self._version

    @property
    def root_dir(self) -> str:
        """The folder of all experiments."""
        return self._root_dir

    @property
    def versions_dir(self) -> str | None:
        """The folder of all versions; None if the version was given."""
        return None if self._is_version_given else join(self._root_dir, self._name)

    @property
    def log_dir(self) -> str:
        """The folder of this run."""
        return version_dir(join(self._root_dir, self._name), self.version)
