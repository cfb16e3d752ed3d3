"""In which version of the format a checkpoint was written (pure).

The format is that of PyTorch Lightning; its version stands in the checkpoint.
"""

import re
from collections.abc import Mapping
from typing import Any

from fulmen.fabric.rank_zero import PossibleUserWarning, warn_once

VERSION_KEY = "pytorch-lightning_version"
FORMAT_VERSION = "2.6.6"  # the version whose form we read and write


def version_of(checkpoint: Mapping[str, Any]) -> str:
    """The version of the format in which `checkpoint` was written; "0.0.0" if it does not say."""
    return str(checkpoint.get(VERSION_KEY, "0.0.0"))


def as_numbers(version: str) -> tuple[int, int, int]:
    """A version as three numbers that can be compared: "1.10.0rc1" to (1, 10, 0)."""
    numbers = [int(number) for number in re.findall(r"\d+", re.split(r"[a-zA-Z+]", version)[0])[:3]]
    major, minor, micro = [*numbers, 0, 0, 0][:3]
    return major, minor, micro


def is_newer(checkpoint: Mapping[str, Any], than: str = FORMAT_VERSION) -> bool:
    """Was `checkpoint` written by a version that we cannot know?"""
    return as_numbers(version_of(checkpoint)) > as_numbers(than)


def warn_of_newer(checkpoint: Mapping[str, Any]) -> None:
    """Say so, once, where a checkpoint may hold what we do not know."""
    if is_newer(checkpoint):
        warn_once(
            f"The checkpoint was written in the form of version {version_of(checkpoint)}, and this program knows those"
            f" up to {FORMAT_VERSION}. What a newer one added is not restored. Install the program that wrote it to be"
            " sure.",
            category=PossibleUserWarning,
        )
