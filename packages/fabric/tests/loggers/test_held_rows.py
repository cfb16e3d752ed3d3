"""Rows that are written together: none is lost, none comes twice, and none waits longer than said."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.fabric.loggers.held_rows import HeldRows

LONG_S = 10_000.0


class Sink:
    """Takes rows, or refuses them."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.refuses = False
        self.num_calls = 0
        self.changed = threading.Event()

    def take(self, rows: Sequence[int]) -> None:
        self.num_calls += 1
        self.changed.set()
        if self.refuses:
            raise OSError("a full disk")
        self.rows += rows


@settings(deadline=None)
@given(st.lists(st.sampled_from(["add", "write", "fail", "mend"])), st.integers(1, 4))
def test_every_row_that_was_taken_is_written_once_and_in_order(moves: list[str], max_rows: int) -> None:
    sink = Sink()
    held = HeldRows(sink.take, LONG_S, max_rows)
    taken = []
    for number, move in enumerate(moves):
        if move in ("fail", "mend"):
            sink.refuses = move == "fail"
            continue
        try:
            if move == "add":
                held.add(number)
                taken.append(number)
            else:
                held.write()
                assert sink.rows == taken
        except OSError:
            assert sink.refuses
        assert len(taken) - len(sink.rows) < max_rows or sink.refuses
    sink.refuses = False
    held.write()
    assert sink.rows == taken


def test_the_clock_writes_them_together() -> None:
    sink = Sink()
    held = HeldRows(sink.take, 0.2, 1000)
    for number in range(10):
        held.add(number)
    assert sink.changed.wait(60)
    held.write()  # waits for a thread that is at it
    assert sink.rows == list(range(10))


def test_a_failure_of_the_clock_is_heard_by_what_comes_next() -> None:
    sink = Sink()
    sink.refuses = True
    held = HeldRows(sink.take, 0.01, 1000)
    held.add(1)
    assert sink.changed.wait(60)
    with pytest.raises(OSError, match="a full disk"):
        held.write()
    with pytest.raises(OSError, match="a full disk"):
        held.add(2)
    sink.refuses = False
    held.add(3)
    held.write()
    assert sink.rows == [1, 3]


def test_without_a_time_to_wait_nothing_waits() -> None:
    sink = Sink()
    held = HeldRows(sink.take, 0, 1000)
    for number in range(3):
        held.add(number)
        assert sink.rows == list(range(number + 1))


def test_where_no_thread_can_be_begun_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    sink = Sink()
    held = HeldRows(sink.take, LONG_S, 1000)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Timer, "start", refuse)
        held.add(0)
    assert sink.rows == [0]
    held.add(1)
    assert sink.rows == [0]
    held.write()
    assert sink.rows == [0, 1]


def test_nothing_is_kept_alive_by_it() -> None:
    sink = Sink()
    held = HeldRows(sink.take, LONG_S, 1000)
    held.add(1)
    held.write()
    gone = weakref.ref(held)
    del held
    ends_s = time.monotonic() + 60
    while gone() is not None and time.monotonic() < ends_s:  # its thread may still be leaving
        gc.collect()
        time.sleep(0.01)
    assert gone() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_leaves_the_rows_to_its_parent() -> None:
    code = """
import os, sys
from fulmen.fabric.loggers.held_rows import HeldRows
def write(rows):
    print(os.getpid() == parent, list(rows), flush=True)
parent = os.getpid()
held = HeldRows(write, 10_000, 1000)
held.add(1)
if os.fork() == 0:
    held.write()
    held.add(2)
    held.write()
    os._exit(0)
os.wait()
held.add(3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["False [2]", "True [1, 3]"]  # the last one by the end of the process
