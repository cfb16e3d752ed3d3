"""Saves in a thread: the same file, nothing lost, nothing hidden."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.fabric.checkpoint_io.background import AsyncCheckpointIO
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.checkpoint_io.wrapper import WrappingCheckpointIO
from fulmen.fabric.errors import CheckpointError, ConfigurationError
from fulmen.fabric.types import PathLike


class Gated(TorchCheckpointIO):
    """Writes only when it is let, and fails for paths with "bad" in them."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: PathLike, storage_options: Any | None = None) -> None:
        assert self.gate.wait(20)
        if "bad" in str(path):
            raise CheckpointError(f"{path} could not be written")
        super().save_checkpoint(checkpoint, path, storage_options)


def test_the_file_is_the_same_and_later_changes_are_not_in_it(tmp_path: Path) -> None:
    gated = Gated()
    io = AsyncCheckpointIO(gated)
    weight = torch.arange(1000.0)
    state = {"w": weight, "view": weight[3:], "nested": [{"step": 1}], "p": torch.nn.Parameter(torch.ones(2))}
    TorchCheckpointIO().save_checkpoint(state, tmp_path / "sync.ckpt")
    io.save_checkpoint(state, tmp_path / "async.ckpt")
    assert not (tmp_path / "async.ckpt").exists()
    weight.zero_()
    state["nested"][0]["step"] = 2  # type: ignore[index]
    gated.gate.set()
    io.teardown()
    contents = [(tmp_path / name).read_bytes() for name in ("sync.ckpt", "async.ckpt")]
    assert len(contents[0]) == len(contents[1])
    loaded = [torch.load(tmp_path / name, weights_only=True) for name in ("sync.ckpt", "async.ckpt")]
    assert repr(loaded[0]) == repr(loaded[1])
    assert loaded[1]["nested"] == [{"step": 1}]


def test_it_is_told_when_a_checkpoint_is_on_the_disk(tmp_path: Path) -> None:
    gated = Gated()
    heard: list[tuple[PathLike, bool, str]] = []
    io = AsyncCheckpointIO(
        gated, lambda path: heard.append((path, Path(path).exists(), threading.current_thread().name))
    )
    io.save_checkpoint({"step": 1}, tmp_path / "a.ckpt")
    assert io.poll() == []
    assert heard == []
    gated.gate.set()
    io.wait()
    assert heard == [(tmp_path / "a.ckpt", True, "fulmen-save")]
    assert io.poll() == [tmp_path / "a.ckpt"]
    assert io.poll() == []
    io.teardown()


def test_the_next_save_waits_for_the_one_before(tmp_path: Path) -> None:
    gated = Gated()
    io = AsyncCheckpointIO(gated)
    state = {"w": torch.zeros(1000)}
    io.save_checkpoint(state, tmp_path / "0.ckpt")
    threading.Timer(0.2, gated.gate.set).start()
    for number in range(1, 5):
        state["w"] += 1
        io.save_checkpoint(state, tmp_path / f"{number}.ckpt")
    io.teardown()
    for number in range(5):
        assert bool((TorchCheckpointIO().load_checkpoint(tmp_path / f"{number}.ckpt")["w"] == number).all())


@pytest.mark.parametrize("call", ["save", "load", "remove", "poll", "wait", "teardown"])
def test_a_failed_save_is_raised_by_the_next_call_once(tmp_path: Path, call: str) -> None:
    gated = Gated()
    gated.gate.set()
    io = AsyncCheckpointIO(gated)
    TorchCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "a.ckpt")
    io.save_checkpoint({"step": 1}, tmp_path / "bad.ckpt")
    while io._thread is not None:
        time.sleep(0.001)
    calls = {
        "save": lambda: io.save_checkpoint({"step": 2}, tmp_path / "a.ckpt"),
        "load": lambda: io.load_checkpoint(tmp_path / "a.ckpt"),
        "remove": lambda: io.remove_checkpoint(tmp_path / "a.ckpt"),
        "poll": io.poll,
        "wait": io.wait,
        "teardown": io.teardown,
    }
    with pytest.raises(CheckpointError, match=r"bad\.ckpt could not be written"):
        calls[call]()
    assert TorchCheckpointIO().load_checkpoint(tmp_path / "a.ckpt") == {"step": 1}
    calls[call]()
    io.teardown()


def test_an_old_checkpoint_goes_only_when_the_new_one_is_there(tmp_path: Path) -> None:
    gated = Gated()
    io = AsyncCheckpointIO(gated)
    TorchCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "old.ckpt")
    io.save_checkpoint({"step": 2}, tmp_path / "new.ckpt")
    io.remove_checkpoint(tmp_path / "old.ckpt")
    assert (tmp_path / "old.ckpt").exists()
    gated.gate.set()
    io.wait()
    assert not (tmp_path / "old.ckpt").exists()
    gated.gate.clear()
    io.save_checkpoint({"step": 3}, tmp_path / "bad.ckpt")
    io.remove_checkpoint(tmp_path / "new.ckpt")
    gated.gate.set()
    with pytest.raises(CheckpointError, match="bad"):
        io.teardown()
    assert (tmp_path / "new.ckpt").exists()


def test_loading_waits_for_what_is_being_written(tmp_path: Path) -> None:
    gated = Gated()
    io = AsyncCheckpointIO(gated)
    io.save_checkpoint({"step": 2}, tmp_path / "a.ckpt")
    threading.Timer(0.1, gated.gate.set).start()
    assert io.load_checkpoint(tmp_path / "a.ckpt") == {"step": 2}
    io.teardown()


def test_what_cannot_be_copied_is_answered_at_once(tmp_path: Path) -> None:
    io = AsyncCheckpointIO()
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*\['here'\]"):
        io.save_checkpoint({"step": 1, "here": threading.Lock()}, tmp_path / "a.ckpt")
    io.teardown()


def test_a_folder_of_one_process_is_saved_in_the_background_too(tmp_path: Path) -> None:
    io = AsyncCheckpointIO()
    state = {"w": torch.ones(5), "step": 1}
    io.save_sharded(tmp_path / "a", state)
    state["w"].zero_()  # type: ignore[union-attr]
    filled = {"w": torch.zeros(5), "step": 0}
    io.load_sharded(tmp_path / "a", filled)
    assert filled["step"] == 1
    assert torch.equal(filled["w"], torch.ones(5))  # type: ignore[arg-type]
    io.teardown()


def test_a_storage_with_a_sharded_layout_of_its_own_is_refused(tmp_path: Path) -> None:
    class Own(TorchCheckpointIO):
        def save_sharded(self, path: PathLike, state: dict[str, Any], *, process_group: Any | None = None) -> None:
            """In some other way."""

    with pytest.raises(ConfigurationError, match="through Own"):
        AsyncCheckpointIO(Own()).save_sharded(tmp_path / "a", {"w": torch.ones(1)})


AT_THE_END = """
import sys, time, torch
from fulmen.fabric.checkpoint_io.background import AsyncCheckpointIO
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.checkpoint_io.wrapper import WrappingCheckpointIO

class Slow(TorchCheckpointIO):
    def save_checkpoint(self, *arguments):
        time.sleep(0.3)
        super().save_checkpoint(*arguments)

for path in sys.argv[1:]:
    AsyncCheckpointIO(Slow()).save_checkpoint({"w": torch.ones(3_000_000)}, path)
"""


def test_a_process_does_not_end_before_its_last_save_is_on_the_disk(tmp_path: Path) -> None:
    """Neither teardown nor wait is called; and a save that fails then is at least shown."""
    good, bad = tmp_path / "a.ckpt", tmp_path / "file" / "a.ckpt"
    bad.parent.touch()
    command = [sys.executable, "-c", AT_THE_END, str(good), str(bad)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert bool((TorchCheckpointIO().load_checkpoint(good)["w"] == 1).all())
    assert "file/a.ckpt' could not be written" in run.stderr


def test_what_follows_saves_is_done_after_them_in_order_and_not_if_one_fails(tmp_path: Path) -> None:
    gated = Gated()
    io = WrappingCheckpointIO(AsyncCheckpointIO(gated))
    assert io.saves_in_background
    assert not gated.saves_in_background
    done: list[str] = []
    io.save_checkpoint({"step": 1}, tmp_path / "a.ckpt")
    io.after_saves(lambda: done.append(f"link {(tmp_path / 'a.ckpt').exists()}"))
    io.after_saves(lambda: done.append("more"))
    assert done == []
    gated.gate.set()
    io.wait()
    assert done == ["link True", "more"]
    assert io.poll() == [tmp_path / "a.ckpt"]
    gated.gate.clear()
    io.save_checkpoint({"step": 2}, tmp_path / "bad.ckpt")
    io.after_saves(lambda: done.append("never"))
    gated.gate.set()
    with pytest.raises(CheckpointError, match="bad"):
        io.wait()
    assert done == ["link True", "more"]
    gated.after_saves(lambda: done.append("now"))
    assert done[-1] == "now"
    io.teardown()
