import json
import os
from collections import deque
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.trainer.delivery import backlog
from fulmen.trainer.delivery.backlog import Backlog, new_file, read_entries, write_entries

MOVES = st.lists(
    st.one_of(
        st.just("put"),
        st.just("keep"),
        st.just("disk fills"),
        st.just("disk frees"),
        st.tuples(st.integers(1, 7), st.booleans()),
    ),
    max_size=60,
)


class FullDisk:
    """While it is full, a write of a backlog's file puts down a few bytes, and fails."""

    def __init__(self):
        self.is_full = False
        self._append = backlog.Spill.append

    def append(self, spill, entries):
        if self.is_full:
            spill._writer.seek(spill._end)
            spill._writer.write(b'{"half')
            spill._writer.truncate(spill._end)
            raise OSError(28, "No space left on device")
        self._append(spill, entries)


@given(moves=MOVES, memory=st.integers(1, 5))
@settings(deadline=None)
def test_it_is_a_queue_whatever_the_disk_does(tmp_path_factory, moves, memory):
    folder = tmp_path_factory.mktemp("backlog")
    queue, model, number, disk = Backlog(lambda: folder, "b", memory), deque(), 0, FullDisk()
    with mock.patch.object(backlog.Spill, "append", lambda spill, entries: disk.append(spill, entries)):
        for move in moves:
            match move:
                case "put":
                    queue.put({"n": number})
                    model.append(number)
                    number += 1
                case "keep":
                    nothing_new = not queue._held
                    assert queue.keep() == (nothing_new or not disk.is_full)
                case "disk fills" | "disk frees":
                    disk.is_full = move == "disk fills"
                case (count, moves_meanwhile):
                    shown = queue.first(count)
                    assert [entry["n"] for entry in shown] == list(model)[: len(shown)]
                    assert bool(shown) == bool(model)
                    assert len(shown) <= count
                    if moves_meanwhile:
                        queue.keep()
                    queue.drop(len(shown))
                    for _ in shown:
                        model.popleft()
            assert len(queue) == len(model)
            assert [entry["n"] for entry in queue.first(3)] == list(model)[: len(queue.first(3))]
        disk.is_full = False
        path = queue.give_up()
    assert ([entry["n"] for entry in read_entries(path)] if path else []) == list(model)
    assert len(queue) == 0
    assert len(list(folder.iterdir())) == (1 if model else 0)


def test_memory_is_bounded_and_the_rest_is_in_the_file(tmp_path):
    queue = Backlog(lambda: tmp_path / "run", "b", memory=10)
    for number in range(1000):
        queue.put({"n": number})
        assert queue.num_in_memory <= 10
    assert queue.path == tmp_path / "run" / "b.jsonl"
    taken = []
    while queue:
        shown = queue.first(7)
        assert queue.num_in_memory <= 7
        taken += [entry["n"] for entry in shown]
        queue.drop(len(shown))
    assert taken == list(range(1000))
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be removed there")
def test_a_file_that_somebody_removes_is_read_to_its_end(tmp_path):
    queue = Backlog(lambda: tmp_path, "b", memory=2)
    for number in range(5):
        queue.put({"n": number})
    queue.path.unlink()
    assert [entry["n"] for entry in queue.first(9)] == [0, 1, 2, 3, 4]
    queue.drop(5)
    assert len(queue) == 0


def test_where_no_file_can_be_written_nothing_is_lost(tmp_path):
    (tmp_path / "in the way").touch()
    queue = Backlog(lambda: tmp_path / "in the way" / "run", "b", memory=2)
    for number in range(9):
        queue.put({"n": number})
    assert not queue.keep()
    assert [entry["n"] for entry in queue.first(9)] == list(range(9))
    assert queue.give_up() is None
    assert len(queue) == 9


def test_numbers_come_back_as_they_were(tmp_path):
    values = [0.1, 1e-300, float("inf"), float("-inf"), 3, True, None, "ä\n"]
    write_entries(tmp_path / "e.jsonl", [{"values": values}, {"value": Path("a")}])
    with open(tmp_path / "e.jsonl", "ab") as file:
        file.write(b'{"cut of')
    assert list(read_entries(tmp_path / "e.jsonl")) == [{"values": values}, {"value": "a"}]
    assert json.loads((tmp_path / "e.jsonl").read_bytes().splitlines()[1]) == {"value": "a"}


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    write_entries(tmp_path / "e.jsonl", [{"n": 1}])

    def entries():
        yield {"n": 2}
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_entries(tmp_path / "e.jsonl", entries())
    assert list(read_entries(tmp_path / "e.jsonl")) == [{"n": 1}]
    assert [path.name for path in tmp_path.iterdir()] == ["e.jsonl"]


def test_names_that_are_taken_get_a_number(tmp_path):
    assert [new_file(tmp_path, "b").name for _ in range(3)] == ["b.jsonl", "b-1.jsonl", "b-2.jsonl"]


def test_half_a_line_of_a_write_that_failed_is_never_read(tmp_path):
    class HalfFull:
        """Writes a few bytes, and then there is no space."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, _):
            self.file.write(b"\0" * 5)
            raise OSError(28, "No space left on device")

    queue = Backlog(lambda: tmp_path, "b", memory=1)
    queue.put({"n": 0})
    whole = queue._spill._writer
    queue._spill._writer = HalfFull(whole)
    queue.put({"n": 1})
    assert queue.first(5) == [{"n": 0}]  # reads ahead in the file
    queue._spill._writer = whole
    queue.put({"n": 2})
    assert queue.first(5) == [{"n": 0}, {"n": 1}, {"n": 2}]
    queue.drop(3)
