import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.trainer.delivery import sender
from fulmen.trainer.delivery.backlog import read_entries
from fulmen.trainer.delivery.sender import Delivery, Refused, is_refusal

# What one call of `send` does: takes so many, or raises.
ANSWERS = st.one_of(st.integers(1, 5), st.sampled_from([ConnectionError("down"), RuntimeError("?"), TimeoutError()]))


class Tracker:
    """Does what it is told, call by call, and then takes everything; never takes what is in `refused`."""

    def __init__(self, answers=(), refused=()):
        self.taken = []
        self.calls = 0
        self.threads = set()
        self._answers = list(answers)
        self._refused = set(refused)

    def send(self, entries):
        self.calls += 1
        self.threads.add(threading.get_ident())
        assert entries
        if self._refused & {entry["n"] for entry in entries}:
            raise Refused("never")
        answer = self._answers.pop(0) if self._answers else len(entries)
        if isinstance(answer, Exception):
            raise answer
        count = min(answer, len(entries))
        self.taken += [entry["n"] for entry in entries[:count]]
        return count


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def make(tracker, folder, **options):
    defaults = {
        "who": "T",
        "threaded": False,
        "folder": lambda: Path(folder),
        "how_to_send": lambda path: f"cat {path}",
    }
    return Delivery(tracker.send, **{**defaults, **options})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return lambda: tmp_path_factory.mktemp("run")


@given(
    answers=st.lists(ANSWERS, max_size=30),
    refused=st.sets(st.integers(0, 40), max_size=3),
    steps=st.lists(st.one_of(st.just("put"), st.floats(0.1, 20.0)), max_size=60),
    chunk=st.integers(1, 6),
    memory=st.integers(1, 8),
)
@settings(deadline=None)
def test_whatever_fails_what_is_delivered_is_what_was_logged(folders, answers, refused, steps, chunk, memory):
    folder, clock = folders(), Clock()
    tracker = Tracker(answers, refused)
    delivery = make(tracker, folder, clock=clock, chunk=chunk, memory=memory)
    number = 0
    with warnings.catch_warnings(record=True):
        for step in steps:
            if step == "put":
                delivery.put("n", n=number)
                number += 1
            else:
                clock.now_s += step
                delivery.flush()
            # A prefix of what was logged, in order, each once; the rest waits.
            done = len(tracker.taken) + len([n for n in sorted(refused) if n < number])
            assert tracker.taken == [n for n in range(number) if n not in refused][: len(tracker.taken)]
            assert done + delivery.num_waiting >= number
        left = delivery.close(0)
    rest = [entry["n"] for entry in read_entries(left)] if left else []
    aside = [entry["n"] for path in folder.glob("refused-*") for entry in read_entries(path)]
    assert sorted(tracker.taken + rest + aside) == list(range(number))
    assert tracker.taken + [n for n in rest if n not in refused] == [n for n in range(number) if n not in refused]
    assert aside == sorted(aside)
    assert set(aside) <= refused
    assert delivery.num_waiting == 0
    assert not (folder / "undelivered-T.jsonl").exists() or rest


@given(answers=st.lists(ANSWERS, max_size=4), count=st.integers(0, 30))
@settings(deadline=None, max_examples=15)
def test_a_thread_delivers_the_same(folders, answers, count):
    tracker = Tracker(answers)
    with warnings.catch_warnings(record=True), mock.patch.object(sender, "FIRST_PAUSE_S", 0.001):
        delivery = make(tracker, folders(), threaded=True, memory=3)
        for number in range(count):
            delivery.put("n", n=number)
        assert delivery.close(patience_s=1e9) is None
    assert tracker.taken == list(range(count))
    assert threading.get_ident() not in tracker.threads


def test_it_is_not_asked_again_in_a_pause_and_pauses_grow(tmp_path):
    clock, tracker = Clock(), Tracker([ConnectionError("down")] * 100)
    delivery = make(tracker, tmp_path, clock=clock)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for number in range(1000):
            clock.now_s += 0.1
            delivery.put("n", n=number)
    assert ["T cannot send what is logged: ConnectionError: down" in str(one.message) for one in said] == [True]
    assert tracker.calls == 8  # after 0, 1, 3, 7, 15, 31, 61 and 91 s
    assert delivery.num_waiting == 1000
    clock.now_s += 60
    tracker._answers.clear()
    delivery.flush()
    assert tracker.taken == list(range(1000))
    assert list(tmp_path.iterdir()) == []


def test_an_outage_moves_to_the_file_what_a_kill_would_take(tmp_path):
    delivery = make(Tracker([ConnectionError("down")] * 9), tmp_path)
    with pytest.warns(UserWarning, match=r"it waits in .*undelivered-T\.jsonl"):
        delivery.put("n", n=0)
    delivery.put("n", n=1)
    assert [entry["n"] for entry in read_entries(tmp_path / "undelivered-T.jsonl")] == [0, 1]
    with pytest.warns(UserWarning, match="could not deliver 2"):
        delivery.close(0)


def test_at_the_end_it_says_what_is_left_and_where(tmp_path):
    delivery = make(Tracker([ConnectionError("down")] * 2), tmp_path)
    with pytest.warns(UserWarning, match="cannot send"):
        delivery.put("n", n=0)
    with pytest.warns(UserWarning, match=r"could not deliver 1 .*undelivered-T\.jsonl\. cat .*undelivered-T\.jsonl"):
        path = delivery.close(0)
    assert path == tmp_path / "undelivered-T.jsonl"
    delivery.put("n", n=1)  # as a second run does
    assert delivery.close(0) is None


def test_one_that_is_refused_holds_nobody_up(tmp_path):
    clock, tracker = Clock(), Tracker(refused={2, 5})
    delivery = make(tracker, tmp_path, clock=clock, chunk=10)
    tracker._answers = [ConnectionError("down")]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for number in range(8):
            delivery.put("n", n=number)
        clock.now_s += 5
        delivery.flush()
        assert delivery.close(0) is None
    assert tracker.taken == [0, 1, 3, 4, 6, 7]
    assert [entry["n"] for entry in read_entries(tmp_path / "refused-T.jsonl")] == [2, 5]
    assert ["cannot send" in str(w.message) for w in said] == [True, False, False]
    assert "was refused 2 of the things" in str(said[-1].message)


def test_a_tracker_that_hangs_is_left_after_the_patience(tmp_path):
    hangs, released = threading.Event(), threading.Event()

    class Hanging(Tracker):
        def send(self, entries):
            hangs.set()
            released.wait()
            return super().send(entries)

    tracker = Hanging()
    delivery = make(tracker, tmp_path, threaded=True)
    delivery.put("n", n=0)
    hangs.wait()
    delivery.put("n", n=1)
    with pytest.warns(UserWarning, match="could not deliver 2"):
        path = delivery.close(0.05)
    assert [entry["n"] for entry in read_entries(path)] == [0, 1]
    delivery.put("n", n=2)  # a new thread: the old one still hangs
    released.set()
    assert delivery.close(1e9) is None
    assert 2 in tracker.taken  # before or after what the old one still sends
    assert [entry["n"] for entry in read_entries(path)] == [0, 1]


def test_what_is_refused_and_what_is_only_out_of_reach():
    assert is_refusal(ValueError())
    assert is_refusal(KeyError("x"))
    assert is_refusal(Refused())
    assert not is_refusal(RuntimeError())
    assert not is_refusal(ConnectionError())

    class ErrorOfARequest(OSError, ValueError):  # as of requests
        pass

    assert not is_refusal(ErrorOfARequest())


PROGRAM = """
import os, sys
from pathlib import Path
from fulmen.trainer.delivery.sender import Delivery
out = Path(sys.argv[1])
def send(entries):
    with open(out / f"taken by {'parent' if os.getpid() == parent else 'child'}", "a") as file:
        file.writelines(f"{entry['n']}\\n" for entry in entries)
    return len(entries)
parent = os.getpid()
def how(path): return ""
delivery = Delivery(send, who="T", threaded=True, folder=lambda: out, how_to_send=how)
delivery.put("n", n=1)
if os.fork() == 0:
    delivery.put("n", n=2)
    sys.exit(0)  # nobody closes it: the end of the program does
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_processes_that_were_forked_send_their_own_and_the_exit_sends_the_rest(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert (tmp_path / "taken by parent").read_text() == "1\n"
    assert (tmp_path / "taken by child").read_text() == "2\n"
