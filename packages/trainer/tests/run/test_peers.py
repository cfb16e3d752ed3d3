"""Threads stand for processes, and one real process dies. Whole runs: `tests/cross/test_lost_processes.py`."""

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch.distributed as dist

from fulmen.trainer.errors import ProcessHangsError
from fulmen.trainer.run import peers
from fulmen.trainer.run.peers import Peers

TIMED_OUT = RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5000ms for recv operation")
GONE = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")


@pytest.fixture
def store() -> Any:
    return dist.PrefixStore(f"{time.monotonic_ns()}", dist.TCPStore("127.0.0.1", 0, 1, True, wait_for_workers=False))


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When this process would have ended itself."""
    found: list[float] = []
    monkeypatch.setattr(peers, "exit_within", found.append)
    return found


def test_the_one_that_neither_failed_nor_left_hangs_and_its_stack_is_told(store: Any) -> None:
    first, third = (Peers(store, rank, 4, ends_alone=False) for rank in (0, 2))
    fourth = Peers(store, 3, 4, ends_alone=False)
    begun, over = threading.Event(), threading.Event()
    found: list[Peers] = []

    def hang() -> None:
        found.append(Peers(store, 1, 4, ends_alone=False))
        begun.set()
        over.wait(60)

    hanging = threading.Thread(target=hang)
    hanging.start()
    begun.wait(60)
    fourth.leave()

    def look() -> None:
        while not over.is_set():
            found[0].look()
            time.sleep(0.01)

    looking = threading.Thread(target=look)
    looking.start()
    said: list[Any] = []
    other = threading.Thread(target=lambda: said.append(third.fail(GONE)))
    other.start()  # it is told by its connection before it can be told why
    blamed = first.fail(TIMED_OUT)
    other.join()
    over.set()
    hanging.join()
    looking.join()
    for error in (blamed, *said):
        assert isinstance(error, ProcessHangsError)
        assert str(error).startswith("Rank 1 of 4 hangs")
        assert "over.wait(60)" in str(error)


def test_an_error_of_its_own_is_its_own(store: Any) -> None:
    first = Peers(store, 0, 2, ends_alone=False)
    assert first.fail(ValueError("mine")) is None
    assert store.check(["failed"])


def test_who_has_no_launcher_ends_soon_after_another_one_has_failed(store: Any, ended: list[float]) -> None:
    alone, kept = Peers(store, 0, 3, ends_alone=True), Peers(store, 1, 3, ends_alone=False)
    for process in (alone, kept):
        process.look()
    assert ended == []
    Peers(store, 2, 3, ends_alone=False).fail(ValueError("mine"))
    for process in (alone, kept, alone):
        process.look()
    assert len(ended) == 1


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="processes are looked for there")
@pytest.mark.parametrize("leaves", [True, False])
def test_who_is_gone_without_a_word_is_missed(
    store: Any, ended: list[float], monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    monkeypatch.setattr(peers, "_LOOK_FOR_LOST_EVERY_S", 0.0)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = {**peers._identity(), "pid": other.pid, "began": peers._began(other.pid)}
    store.set("process/1", json.dumps(identity))
    # Of another machine: its number means nothing here.
    store.set("process/2", json.dumps({**identity, "host": "elsewhere", "pid": 1}))
    process = Peers(store, 0, 3, ends_alone=True)
    for _ in range(3):
        process.look()
        time.sleep(0.001)
    assert ended == []
    if leaves:
        store.set("left/1", "")
    other.kill()
    other.wait()
    assert other.stdin is not None
    other.stdin.close()
    time.sleep(0.001)
    process.look()
    assert len(ended) == (0 if leaves else 1)


def test_who_fails_knows_whether_the_others_fail_too(store: Any) -> None:
    first, second, third = (Peers(store, rank, 3, ends_alone=False) for rank in range(3))
    assert not first.fail_together(within_s=0.1)
    second.fail(ValueError("the same mistake"))
    assert not first.fail_together(within_s=0.1)
    third.fail(ValueError("the same mistake"))
    assert first.fail_together(within_s=10.0)


def test_who_saves_after_a_failure_knows_whether_the_others_come(store: Any) -> None:
    first, second = (Peers(store, rank, 2, ends_alone=False) for rank in range(2))
    said: list[bool] = []
    waiting = threading.Thread(target=lambda: said.append(second.come_together(1, within_s=600.0)))
    waiting.start()
    assert first.come_together(1, within_s=600.0)
    waiting.join()
    assert said == [True]
    # Who is in the middle of its end is waited for.
    waiting = threading.Thread(target=lambda: said.append(first.come_together(2, within_s=0.0)))
    waiting.start()
    waiting.join(0.3)
    assert said == [True]
    second.leave()
    waiting.join()
    assert said == [True, False]
    # Who has ended its part of the run may come after it.
    waiting = threading.Thread(target=lambda: said.append(first.come_together(3, within_s=600.0)))
    waiting.start()
    assert second.come_together(3, within_s=600.0)
    waiting.join()
    assert said == [True, False, True]
