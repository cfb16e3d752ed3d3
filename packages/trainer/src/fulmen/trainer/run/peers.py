"""What the processes of a run learn of each other when one of them fails, dies or hangs.

A process that waits in a collective hears nothing, and one that computes does not even wait. So the thread that each of
them has for `common_stop` also looks here, through the same key-value store:

- who fails says so. Where nobody else ends the others (torchrun, SLURM), they end within seconds, whatever they do;
- who is gone without a word is missed by the processes of the same machine;
- when a collective has waited for its timeout, everybody is asked where it is. Who has not failed and still is
  somewhere else, hangs: it is named, and its stack is part of the error.
"""

import json
import os
import re
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fulmen.fabric.ending import exit_no_more, exit_within, frame_of
from fulmen.fabric.errors import ProcessHangsError
from fulmen.fabric.launchers.failures import Weight, failure_from_error

_TIMED_OUT = re.compile(r"time(d[ -]?)?[ -]?out", re.IGNORECASE)
# For the others to say that they have failed too, and for their threads to answer.
_SETTLE_S = 0.6
_ANSWER_WITHIN_S = 1.5
# From hearing that another process is lost to the end of this one.
_END_WITHIN_S = 2.5
_LOOK_FOR_LOST_EVERY_S = 0.5
# The same mistake on the same batch comes to all processes, to some a little later.
_OTHERS_FAIL_WITHIN_S = 2.0
# Who has ended its part of a failed run may still come to save after it; who is in the middle of its end may take long.
_OTHERS_COME_WITHIN_S = 2.0
_WAIT_FOR_OTHERS_S = 1800.0


class Peers:
    """The other processes, as far as this one has to know of their end.

    Args:
        store: Of all processes, with `set`, `get` and `check`, over a connection of its own.
        rank: Of this process.
        world_size: Number of processes.
        ends_alone: Does nobody else end this process when another one fails?
    """

    def __init__(self, store: Any, rank: int, world_size: int, *, ends_alone: bool) -> None:
        self._store = store
        self._rank = rank
        self._others = [other for other in range(world_size) if other != rank]
        self._world_size = world_size
        self._ends_alone = ends_alone
        self._working_thread = threading.get_ident()
        self._has_news = self._has_answered = self._has_failed = False
        self._ends = False
        self._known: dict[int, dict[str, Any]] = {}
        self._looked_at_s = 0.0
        store.set(f"process/{rank}", json.dumps(_identity()))

    def look(self) -> None:
        """Called by the watching thread, many times a second."""
        if not self._has_news:
            self._has_news = self._store.check(["news"])
        if self._has_news:
            self._answer()
            if self._ends_alone and not self._has_failed and not self._ends and self._store.check(["failed"]):
                self._end_soon()
        if self._ends_alone and not self._ends and time.monotonic() - self._looked_at_s > _LOOK_FOR_LOST_EVERY_S:
            self._looked_at_s = time.monotonic()
            if any(self._is_lost(other) for other in self._others):
                self._end_soon()

    def fail(self, error: Exception) -> ProcessHangsError | None:
        """This process fails: tell the others.

        Returns:
            What to raise in its place, if `error` comes from another process that hangs.
        """
        try:
            return self._fail(error)
        except RuntimeError:  # whoever kept the store is gone too
            return None

    def fail_together(self, within_s: float = _OTHERS_FAIL_WITHIN_S) -> bool:
        """Do the others fail too, at most so many seconds later? Else they are in work, and meet nobody elsewhere."""
        try:
            self._store.set(f"failed/{self._rank}", "")
            end_s = time.monotonic() + within_s
            while not all(self._store.check([f"failed/{other}"]) for other in self._others):
                if time.monotonic() > end_s:
                    return False
                time.sleep(0.05)
        except RuntimeError:  # whoever kept the store is gone too
            return False
        return True

    def come_together(self, number: int, within_s: float = _OTHERS_COME_WITHIN_S) -> bool:
        """Do all others come here too, for the time of this number? Who is through with the run has so many seconds."""
        try:
            self._store.set(f"come/{number}/{self._rank}", "")
            end_s, missed_s = time.monotonic() + _WAIT_FOR_OTHERS_S, None
            while missing := [one for one in self._others if not self._store.check([f"come/{number}/{one}"])]:
                now_s = time.monotonic()
                if missed_s is None and any(
                    self._store.check([f"left/{one}"]) or self._is_lost(one) for one in missing
                ):
                    missed_s = now_s
                if now_s > end_s or (missed_s is not None and now_s - missed_s > within_s):
                    return False
                time.sleep(0.02)
        except RuntimeError:  # whoever kept the store is gone too
            return False
        return True

    def leave(self) -> None:
        """This process has ended its part of the run, and goes on by itself."""
        if self._ends:
            exit_no_more()
        try:
            self._store.set(f"left/{self._rank}", "")
        except RuntimeError:
            return

    def _fail(self, error: Exception) -> ProcessHangsError | None:
        self._has_failed = True
        is_echo = failure_from_error(self._rank, error, 0.0).weight is Weight.ECHO
        store = self._store
        store.set(f"failed/{self._rank}", "")
        if is_echo and any(_TIMED_OUT.search(str(one)) for one in _chain(error)):
            store.set("stuck", "")
            store.set("news", "")
        started_s = time.monotonic()
        hangs: ProcessHangsError | None = None
        # Who ran into the timeout has closed its connections, which the others notice before they can be told why.
        while is_echo and time.monotonic() - started_s < _SETTLE_S:
            if store.check(["stuck"]):
                hangs = self._who_hangs(started_s)
                break
            time.sleep(0.05)
        store.set("failed", "")
        store.set("news", "")
        return hangs

    def _who_hangs(self, started_s: float) -> ProcessHangsError | None:
        while (waited_s := time.monotonic() - started_s) < _ANSWER_WITHIN_S:
            if waited_s >= _SETTLE_S and all(map(self._has_said, self._others)):
                break
            time.sleep(0.05)
        hanging = [other for other in self._others if not self._store.check([f"failed/{other}"])]
        hanging = [other for other in hanging if not self._store.check([f"left/{other}"])]
        if not hanging:
            return None
        names = ", ".join(map(str, hanging))
        what = f"Rank {names} of {self._world_size} hangs" if len(hanging) == 1 else f"Ranks {names} hang"
        where = "\n".join(self._where(other) for other in hanging)
        return ProcessHangsError(
            f"{what}: the other processes waited in a collective until its timeout was over. See below where it is,"
            " and why it does not go on; if it only needs longer, pass a longer timeout, as in"
            f" strategy=DDPStrategy(timeout=timedelta(hours=1)).\n\n{where}"
        )

    def _has_said(self, other: int) -> bool:
        return any(self._store.check([f"{what}/{other}"]) for what in ("failed", "stack", "left"))

    def _where(self, other: int) -> str:
        identity = self._identity_of(other)
        who = f"Rank {other} (process {identity['pid']} on {identity['host']})" if identity else f"Rank {other}"
        if self._store.check([f"stack/{other}"]):
            return f"{who} is here (most recent call last):\n{self._store.get(f'stack/{other}').decode()}"
        state = _state_of(identity) if identity else None
        said = f" The system says of it: {state}." if state else ""
        return f"{who} does not answer: it was stopped, or runs code that lets no other thread of Python run.{said}"

    def _answer(self) -> None:
        if self._has_answered or not self._store.check(["stuck"]):
            return
        self._has_answered = True
        frame = frame_of(self._working_thread)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "  (it has ended)\n"
        self._store.set(f"stack/{self._rank}", stack)

    def _end_soon(self) -> None:
        self._ends = True
        # Of the C library: it also ends a process that never lets go of Python's lock.
        exit_within(_END_WITHIN_S)

    def _is_lost(self, other: int) -> bool:
        """Was it a process of this machine, and is gone without having left the run?"""
        if other not in self._known:
            identity = self._identity_of(other)
            # Only a process that was seen alive can be missed: in another container its number means nothing here.
            if identity is not None and _is_there(identity):
                self._known[other] = identity
            return False
        if _is_there(self._known[other]):
            return False
        return not self._store.check([f"left/{other}"])

    def _identity_of(self, other: int) -> dict[str, Any] | None:
        key = f"process/{other}"
        if not self._store.check([key]):
            return None
        identity: dict[str, Any] = json.loads(self._store.get(key))
        return identity


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__


def _identity() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid())}


def _is_there(identity: dict[str, Any]) -> bool:
    """Does this process run on this machine? Numbers of processes are used again, with another beginning."""
    if identity["host"] != socket.gethostname() or identity["began"] is None:
        return False
    return bool(_began(identity["pid"]) == identity["began"])


def _began(pid: int) -> int | None:
    """When the process began, in ticks of the system; None if there is none, or it has ended."""
    fields = _fields_of(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def _state_of(identity: dict[str, Any]) -> str | None:
    if not _is_there(identity):
        return None
    words = {"R": "it computes", "S": "it sleeps", "D": "it waits for a disk or a device", "T": "it was stopped"}
    fields = _fields_of(identity["pid"])
    return words.get(fields[0].upper()) if fields is not None else None


def _fields_of(pid: int) -> list[str] | None:
    """What Linux says of the process, behind its name, which may hold spaces."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
