"""Send what was logged: in order, each once, as often as it takes, and without ever raising.

Knows no logger: what sending means is a function.
"""

import atexit
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fulmen.fabric.rank_zero import rank_zero_info, rank_zero_warn
from fulmen.trainer.delivery.backlog import Backlog, Entry, new_file

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
PATIENCE_AT_EXIT_S = 10.0

# What no waiting mends. An `OSError` is the other case also where it is one of these too, as errors of requests are.
_HOPELESS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError, NotImplementedError)


class Refused(Exception):
    """Whoever takes the entries is there, and will never take this one."""


def is_refusal(error: Exception) -> bool:
    """Is it of no use to send the same thing again?"""
    return isinstance(error, Refused) or (isinstance(error, _HOPELESS) and not isinstance(error, OSError))


class Delivery:
    """Takes entries at once, and hands them to `send` when it can.

    Args:
        send: Gets the first entries that wait. It takes some of them and says how many, or raises and has taken none.
        who: Whose entries they are, for messages: "MLFlowLogger".
        threaded: Call `send` in a thread of its own? Otherwise in `put`, `flush` and `close`, with pauses after
            failures, in which nothing is tried.
        folder: Where a file goes for what must wait; asked when there is one.
        how_to_send: From the path of such a file, what the user can do with it later.
        chunk: So many entries are shown to `send` at once.
        memory: With so many entries in memory, they move to the file.
        clock: In seconds; for tests.
    """

    _thread: threading.Thread | None
    _refusals: Path | None
    _is_busy: bool
    _fails: bool
    _has_warned: bool
    _num_refused: int

    def __init__(
        self,
        send: Callable[[Sequence[Entry]], int],
        *,
        who: str,
        threaded: bool,
        folder: Callable[[], Path],
        how_to_send: Callable[[Path], str],
        chunk: int = 100,
        memory: int = 1000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._who = who
        self._threaded = threaded
        self._folder = folder
        self._how_to_send = how_to_send
        self._chunk = chunk
        self._memory = memory
        self._clock = clock
        self._generation = 0
        self._changed = threading.Condition()
        self._begin()
        if threaded:
            atexit.register(_close_at_exit, weakref.ref(self))

    @property
    def num_waiting(self) -> int:
        """How many entries are not delivered yet."""
        return len(self._backlog)

    @property
    def num_in_memory(self) -> int:
        """How many of them are in memory."""
        return self._backlog.num_in_memory

    @property
    def path(self) -> Path | None:
        """The file of those that wait, while there is one."""
        return self._backlog.path

    @property
    def belongs_here(self) -> bool:
        """Did this process put in what waits? In one that was forked, it is the parent's."""
        return self._pid == os.getpid()

    def put(self, kind: str, **content: Any) -> None:
        """Take an entry; never raises, and with a thread never waits for `send`.

        Args:
            kind: Tells `send` what it is; "file" if it takes long.
            content: Numbers, texts, and lists and dicts of them.
        """
        self._leave_parent()
        with self._changed:
            self._backlog.put({"kind": kind, "time": time.time(), **content})
            if self._threaded:
                self._start_thread()
                self._changed.notify_all()
        self.flush()

    def flush(self) -> None:
        """Send what waits, unless a thread does it or the pause after a failure is not over; say what has happened."""
        if not self._threaded:
            while self._backlog and self._clock() >= self._try_at and self._attempt():
                pass
        if self._warnings:
            self._speak()

    def close(self, patience_s: float, upload_patience_s: float = 600.0) -> Path | None:
        """Wait for what is left; then say what could not be delivered, and where it is.

        Args:
            patience_s: How long nothing may get through before it is given up. Without a thread nobody waits: there
                is one more attempt.
            upload_patience_s: The same while a file is on its way.

        Returns:
            The file with what is left; None if all was delivered.
        """
        self._leave_parent()
        self._try_at = 0.0
        if self._threaded:
            self._wait(patience_s, upload_patience_s)
        else:
            self.flush()
        return self._give_up()

    # ---- sending

    def _attempt(self) -> bool:
        """Show `send` the first entries once. Is it of use to go on at once?"""
        with self._changed:
            generation = self._generation
            if self._is_busy:
                return False
            try:
                entries = self._backlog.first(1 if self._num_singly else self._chunk)
            except OSError as unreadable:
                self._fail(unreadable)
                return False
            if not entries:
                return False
            self._is_busy = True
            self._kind = entries[0]["kind"]
        taken, error = self._try(entries)
        with self._changed:
            if generation != self._generation:  # given up meanwhile
                return False
            self._is_busy = False
            goes_on = self._note(entries, taken, error)
            self._changed.notify_all()
        return goes_on

    def _try(self, entries: list[Entry]) -> tuple[int, Exception | None]:
        try:
            return self._send(entries), None
        except Exception as error:  # whatever ails the tracker, the run goes on
            return 0, error

    def _note(self, entries: list[Entry], taken: int, error: Exception | None) -> bool:
        if error is not None and not is_refusal(error):
            self._fail(error)
            return False
        if error is not None and len(entries) > 1:
            self._num_singly = len(entries)  # one of these was meant
            return True
        if error is not None:
            self._set_aside(entries[0], error)
            taken = 1
        elif self._fails:
            self._fails = False
            rank_zero_info(f"{self._who} can send again; what has waited goes first.")
        self._pause_s = FIRST_PAUSE_S
        self._moved_at = self._clock()
        self._num_singly = max(0, self._num_singly - taken)
        self._backlog.drop(taken)
        return True

    def _fail(self, error: Exception) -> None:
        self._try_at = self._clock() + (min(self._pause_s, FIRST_PAUSE_S) if self._is_closing else self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._fails = True
        kept = self._backlog.keep()  # a run may be killed while it waits
        if not self._has_warned:
            self._has_warned = True
            where = f"in {self._backlog.path}" if kept else "in memory"
            self._warnings.append(
                f"{self._who} cannot send what is logged: {in_words(error)}. The run goes on, and nothing is lost:"
                f" it waits {where}, and is sent as soon as that is possible."
            )

    def _set_aside(self, entry: Entry, error: Exception) -> None:
        self._num_refused += 1
        try:
            if self._refusals is None:
                self._refusals = new_file(self._folder(), f"refused-{self._who}")
            with open(self._refusals, "a", encoding="utf-8") as file:
                file.write(json.dumps({**entry, "reason": in_words(error)}, default=str) + "\n")
            where = f"It is in {self._refusals}, as all that follow will be."
        except OSError as unwritable:
            where = f"It is lost: {in_words(unwritable)}."
        if self._num_refused == 1:
            self._warnings.append(
                f"{self._who} was refused something that was logged: {in_words(error)}. Sending it again is of no"
                f" use, and the run goes on. {where}"
            )

    # ---- the thread

    def _start_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            name = f"{self._who} sends"
            self._thread = threading.Thread(target=self._work, args=(self._generation,), name=name, daemon=True)
            self._thread.start()

    def _work(self, generation: int) -> None:
        while True:
            with self._changed:
                while generation == self._generation and not (self._backlog and self._clock() >= self._try_at):
                    pause_s = self._try_at - self._clock()
                    self._changed.wait(max(pause_s, 0.001) if self._backlog else None)
                if generation != self._generation:
                    return
            self._attempt()

    def _wait(self, patience_s: float, upload_patience_s: float) -> None:
        with self._changed:
            self._is_closing = True
            self._moved_at = self._clock()
            if self._backlog:
                self._start_thread()
            self._changed.notify_all()
            while self._backlog:
                is_uploading = self._is_busy and self._kind == "file"
                left_s = self._moved_at + (upload_patience_s if is_uploading else patience_s) - self._clock()
                if left_s <= 0:
                    return
                self._changed.wait(min(left_s, 1.0))

    # ---- the beginning and the end

    def _begin(self) -> None:
        """Nothing waits, nothing runs."""
        self._backlog = Backlog(self._folder, f"undelivered-{self._who}", self._memory)
        self._thread = None
        self._pid = os.getpid()
        self._is_busy = False
        self._kind = ""
        self._fails = False
        self._num_singly = 0  # so many entries are sent one by one, since one of them was refused
        self._pause_s = FIRST_PAUSE_S
        self._try_at = 0.0
        self._moved_at = 0.0
        self._is_closing = False
        self._has_warned = False
        self._warnings: list[str] = []
        self._num_refused = 0
        self._refusals = None

    def _leave_parent(self) -> None:
        """In a forked process nothing waits: what waited is the parent's, and its thread is not here."""
        if not self.belongs_here:
            self._changed = threading.Condition()  # the old one may be held for ever
            self._begin()

    def _give_up(self) -> Path | None:
        with self._changed:
            num_left = len(self._backlog)
            path = self._backlog.give_up() if num_left else None
            num_lost = len(self._backlog)
            if num_left:
                self._warnings.append(self._farewell(num_left, num_lost, path))
            if self._num_refused:
                where = f"They are in {self._refusals}, each with the reason." if self._refusals else "They are lost."
                self._warnings.append(
                    f"{self._who} was refused {self._num_refused:,} of the things that were logged. {where}"
                )
            warnings = self._warnings
            self._generation += 1
            self._changed.notify_all()
            self._begin()
        self._warnings = warnings
        self._speak()
        return path

    def _farewell(self, num_left: int, num_lost: int, path: Path | None) -> str:
        text = f"{self._who} could not deliver {num_left:,} of the things that were logged."
        if path is not None:
            text += f" They are in {path}. {self._how_to_send(path)}"
        if num_lost:
            text += f" {num_lost:,} are lost, since no file can be written in {self._folder()}."
        return text

    def _speak(self) -> None:
        with self._changed:
            warnings, self._warnings = self._warnings, []
        for warning in warnings:
            rank_zero_warn(warning)


def in_words(error: BaseException) -> str:
    """The type of an error, and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _close_at_exit(reference: "weakref.ref[Delivery]") -> None:
    delivery = reference()
    if delivery is not None and delivery.num_waiting and delivery.belongs_here:
        delivery.close(PATIENCE_AT_EXIT_S)
