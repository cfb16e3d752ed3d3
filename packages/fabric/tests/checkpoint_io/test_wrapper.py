"""A checkpoint IO that wraps another."""

from __future__ import annotations

from typing import Any

from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.checkpoint_io.wrapper import WrappingCheckpointIO


class Recording(CheckpointIO):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        self.calls.append(("save", *arguments))

    def load_checkpoint(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        self.calls.append(("load", *arguments))
        return {"a": 1}

    def remove_checkpoint(self, *arguments: Any) -> None:
        self.calls.append(("remove", *arguments))

    def save_sharded(self, *arguments: Any, process_group: Any = None) -> None:
        self.calls.append(("save_sharded", *arguments, process_group))

    def load_sharded(self, *arguments: Any, process_group: Any = None) -> None:
        self.calls.append(("load_sharded", *arguments, process_group))

    def teardown(self) -> None:
        self.calls.append(("teardown",))


def test_everything_reaches_the_one_that_is_wrapped() -> None:
    inner = Recording()
    io = WrappingCheckpointIO(WrappingCheckpointIO(inner))
    io.save_checkpoint({"a": 1}, "x", {"option": 2})
    assert io.load_checkpoint("x", "meta", False) == {"a": 1}
    io.remove_checkpoint("x")
    io.save_sharded("x", {"a": 1}, process_group="group")
    io.load_sharded("x", {"a": 1}, process_group="group")
    io.teardown()
    assert inner.calls == [
        ("save", {"a": 1}, "x", {"option": 2}),
        ("load", "x", "meta", False),
        ("remove", "x"),
        ("save_sharded", "x", {"a": 1}, "group"),
        ("load_sharded", "x", {"a": 1}, "group"),
        ("teardown",),
    ]


def test_without_another_one_it_writes_files_and_another_can_be_set() -> None:
    io = WrappingCheckpointIO()
    assert type(io.checkpoint_io) is TorchCheckpointIO
    assert io.checkpoint_io is io.checkpoint_io
    io.checkpoint_io = inner = Recording()
    assert io.checkpoint_io is inner
