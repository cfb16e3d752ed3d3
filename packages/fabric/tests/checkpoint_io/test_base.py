"""A checkpoint IO of one's own."""

from __future__ import annotations

from typing import Any

import pytest

from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.types import PathLike


class InMemory(CheckpointIO):
    def __init__(self) -> None:
        self.saved: dict[str, dict[str, Any]] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: PathLike, storage_options: Any | None = None) -> None:
        self.saved[str(path)] = checkpoint

    def load_checkpoint(
        self, path: PathLike, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return self.saved[str(path)]

    def remove_checkpoint(self, path: PathLike) -> None:
        del self.saved[str(path)]


def test_three_methods_are_the_users() -> None:
    io = InMemory()
    io.save_checkpoint({"a": 1}, "x")
    assert io.load_checkpoint("x") == {"a": 1}
    io.remove_checkpoint("x")
    io.teardown()
    assert CheckpointIO.__abstractmethods__ == {"save_checkpoint", "load_checkpoint", "remove_checkpoint"}
    with pytest.raises(TypeError):
        CheckpointIO()  # type: ignore[abstract]
