"""What waits to be sent: a queue that keeps its order, holds few entries in memory and the others in a file.

Knows no logger and no thread. The file has one JSON object per line, and is there only while it is needed.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Backlog:
    """A queue of JSON objects.

    Args:
        folder: Says where the file would be. It is asked when the first one is needed.
        name: How the file is called, without `.jsonl`; a number is added if it is taken.
        memory: With so many entries in memory, all move to the file. Where no file can be written, they stay in memory:
            losing none comes first.
    """

    def __init__(self, folder: Callable[[], Path], name: str, memory: int = 1000) -> None:
        self._folder = folder
        self._name = name
        self._memory = self._moves_at = memory
        self._held: deque[Entry] = deque()  # without a file: all; with one: those that came when it could not grow
        self._spill: Spill | None = None

    def __len__(self) -> int:
        return len(self._held) + (self._spill.count if self._spill is not None else 0)

    @property
    def path(self) -> Path | None:
        """The file, while there is one."""
        return self._spill.path if self._spill is not None else None

    @property
    def num_in_memory(self) -> int:
        """How many entries are in memory."""
        return len(self._held) + (len(self._spill.window) if self._spill is not None else 0)

    def put(self, entry: Entry) -> None:
        """Add one at the end."""
        self._held.append(entry)
        if self._spill is not None or len(self._held) >= self._moves_at:
            self.keep()

    def first(self, count: int) -> list[Entry]:
        """The first `count` or fewer; none only if nothing waits."""
        return list(islice(self._held, count)) if self._spill is None else self._spill.first(count)

    def drop(self, count: int) -> None:
        """The first `count` are delivered; never more than `first` has just shown."""
        if self._spill is None:
            for _ in range(count):
                self._held.popleft()
            return
        self._spill.drop(count)
        if not self._spill.count:
            self._spill.remove()
            self._spill = None

    def keep(self) -> bool:
        """Move all to the file, so that a process that is killed does not take them along. Could it be written?"""
        if not self._held:
            return True
        try:
            if self._spill is None:
                self._spill = Spill(new_file(self._folder(), self._name))
            self._spill.append(self._held)
        except OSError:
            self._moves_at = len(self._held) + self._memory
            if self._spill is not None and not self._spill.count:
                self._spill.remove()
                self._spill = None
            return False
        self._held.clear()
        self._moves_at = self._memory
        return True

    def give_up(self) -> Path | None:
        """Leave what is left in the file, which is the user's from now on; None if there is none.

        What no file could take stays in the queue.
        """
        self.keep()
        spill, self._spill = self._spill, None
        return spill.leave() if spill is not None else None


class Spill:
    """The file of a backlog: grows at its end, is read from its beginning.

    Both handles stay open: a file that somebody removes meanwhile is still read to its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0  # entries that are not delivered
        self.window: deque[Entry] = deque()  # the first of them, as far as they were read
        self._end = 0  # bytes that are whole lines
        self._writer = open(path, "r+b", buffering=0)  # noqa: SIM115  # until remove() or leave()
        self._reader = open(path, "rb")  # noqa: SIM115

    def append(self, entries: Iterable[Entry]) -> None:
        """Add all of them, or none."""
        lines = list(_lines(entries))
        rest = memoryview(b"".join(lines))
        end = self._end + len(rest)
        self._writer.seek(self._end)
        try:
            while rest:
                rest = rest[self._writer.write(rest) :]
        except OSError:
            self._writer.truncate(self._end)  # before the reader sees half a line
            raise
        self._end = end
        self.count += len(lines)

    def first(self, count: int) -> list[Entry]:
        """The first `count`, or as many as there are."""
        for _ in range(min(count, self.count) - len(self.window)):
            self.window.append(json.loads(self._reader.readline()))
        return list(islice(self.window, count))

    def drop(self, count: int) -> None:
        """The first `count` are delivered; they may have been in memory when they were shown."""
        self.first(count)
        for _ in range(count):
            self.window.popleft()
        self.count -= count

    def remove(self) -> None:
        """Nothing is left."""
        self._close()
        self.path.unlink(missing_ok=True)

    def leave(self) -> Path:
        """Let the file hold what is not delivered, and let go of it."""
        temporary = self.path.with_suffix(".tmp")
        try:
            _write(temporary, chain(_lines(self.window), self._reader))
            self._close()
            os.replace(temporary, self.path)
        except OSError:
            self._close()
            temporary.unlink(missing_ok=True)  # what was delivered stays in the file too
        return self.path

    def _close(self) -> None:
        self._writer.close()
        self._reader.close()


def new_file(folder: Path, name: str) -> Path:
    """An empty file that nobody else has: `name.jsonl`, `name-1.jsonl`, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(100_000):
        path = folder / (f"{name}-{number}.jsonl" if number else f"{name}.jsonl")
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"In {folder}, all names from {name}.jsonl to {name}-99999.jsonl are taken.")


def read_entries(path: Path) -> Iterator[Entry]:
    """The entries of a file, in order; a last line that was cut off is left out."""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def write_entries(path: Path, entries: Iterable[Entry]) -> None:
    """Make `path` hold these; if it fails, it holds what it held."""
    temporary = path.with_suffix(".tmp")
    try:
        _write(temporary, _lines(entries))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, lines: Iterable[bytes]) -> None:
    with open(path, "wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def _lines(entries: Iterable[Entry]) -> Iterator[bytes]:
    for entry in entries:
        yield (json.dumps(entry, default=str) + "\n").encode()
