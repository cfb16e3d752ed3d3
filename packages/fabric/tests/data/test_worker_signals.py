import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fulmen.fabric.data.worker_signals import let_workers_stay, stay, workers_stay

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks Linux which processes are there")
TERM = signal.SIGTERM


@pytest.fixture
def worker() -> Any:
    """Forks one that says when it is ready, and answers each thing it is sent."""
    pids, ends = [], []

    def begin(prepare: Callable[[], Any]) -> tuple[int, int, int]:
        here, there = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            prepare()
            os.write(there[1], b"r")
            while asked := os.read(here[0], 1):
                os.write(there[1], asked)
            os._exit(0)
        pids.append(pid)
        ends.extend([*here, *there])
        os.read(there[0], 1)
        return pid, here[1], there[0]

    yield begin
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
    for end in ends:
        os.close(end)


def forks() -> None:
    stay()
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
    time.sleep(0.2)
    os.kill(pid, TERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -TERM


def answers(asks: int, hears: int) -> bool:
    os.write(asks, b"?")
    return bool(select.select([hears], [], [], 60)[0]) and os.read(hears, 1) == b"?"


def test_the_first_signal_leaves_it_at_work_and_the_second_ends_it(worker: Any) -> None:
    pid, asks, hears = worker(stay)
    os.kill(pid, TERM)
    assert answers(asks, hears)
    os.kill(pid, TERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -TERM


def test_what_it_forks_ends_at_the_first_signal(worker: Any) -> None:
    _, asks, hears = worker(forks)
    assert answers(asks, hears)


def test_in_a_new_python_a_terminals_signals_are_not_for_workers(worker: Any) -> None:
    def as_new() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        stay()

    pid, asks, hears = worker(as_new)
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGHUP)
    assert answers(asks, hears)


def test_it_ends_with_the_one_it_works_for(worker: Any) -> None:
    said, says = os.pipe()

    def work_and_go() -> None:
        pid = os.fork()
        if pid == 0:
            stay()
            os.kill(os.getpid(), TERM)
            os.write(says, str(os.getpid()).encode())
            time.sleep(600)
        os.read(said, 0)

    middle, _, _ = worker(work_and_go)
    inner = int(os.read(said, 20))
    os.kill(middle, signal.SIGKILL)
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        try:
            if Path(f"/proc/{inner}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                break
        except OSError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("it is still there")
    os.close(said)
    os.close(says)


def test_they_stay_while_the_handler_that_says_so_is_there() -> None:
    assert not workers_stay()
    before = signal.getsignal(TERM)

    def handler(*_: Any) -> None: ...

    let_workers_stay(handler)
    signal.signal(TERM, handler)
    assert workers_stay()
    signal.signal(TERM, before)
    assert not workers_stay()


# Each worker would go on for ten minutes: one waits as those of loaders do, one is stuck in code of C.
_WORKERS = """
import ctypes, multiprocessing, time
from fulmen.fabric.data.worker_signals import let_workers_stay, stay

def wait():
    while True:
        time.sleep(600)

def wait_in_c():
    mutex = ctypes.create_string_buffer(256)  # of zeros: a mutex that nobody holds
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

def work(wait, is_there):
    stay()
    is_there.set()
    wait()

context = multiprocessing.get_context("fork")
for wait in (wait, wait_in_c):
    is_there = context.Event()
    context.Process(target=work, args=(wait, is_there), daemon=True).start()
    is_there.wait()
let_workers_stay(wait)
"""


def test_who_ends_waits_for_no_worker() -> None:
    begun_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _WORKERS], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - begun_s < 25, "they stayed for half a minute"
