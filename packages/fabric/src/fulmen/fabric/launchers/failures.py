"""Which process failed first, and what to tell the user about it. Starts and ends nothing."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from fulmen.fabric.errors import ProcessHangsError

# What gloo, nccl and the store say when a peer is gone: the consequence of a failure, not its cause.
_PEER_IS_GONE = re.compile(
    r"\bgloo\b|Connection (closed|reset|refused)|Broken pipe|\bNCCL\b|ncclRemoteError|TCPStore|recvValue",
    re.IGNORECASE,
)
_REQUESTS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Killed by the signal, or ended by itself because of it, with the code that shells expect then.
_POLITE_ENDS = frozenset(code for number in _REQUESTS for code in (-number, 128 + number))


# Killed by the signal: it had no handler that saves first. Python itself ends by SIGINT, when it has cleaned up.
_UNHEARD = frozenset(-getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Weight(IntEnum):
    """How likely a failure is the cause of the others; the smallest is."""

    CAUSE = 0  # an error of its own, or killed by the kernel
    SILENT = 1  # ended with an exit code and no word
    REQUESTED = 2  # somebody asked it to end
    ECHO = 3  # could not reach a process that was gone


@dataclass(frozen=True, slots=True)
class Failure:
    """How one process failed.

    Attributes:
        rank: Global rank of the process.
        time_s: When, in seconds of the wall clock.
        weight: How likely it is the cause.
        text: Its traceback, or empty if it said nothing.
        exit_code: As `subprocess` has it: negative for a signal.
    """

    rank: int
    time_s: float
    weight: Weight
    text: str = ""
    exit_code: int = 1


def failure_from_error(rank: int, error: BaseException, time_s: float) -> Failure:
    """The failure of a process in which `error` was not caught."""
    exit_code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        exit_code = error.code
    weight = _weigh_exit(exit_code) if isinstance(error, (KeyboardInterrupt, SystemExit)) else _weigh_error(error)
    return Failure(rank, time_s, weight, "".join(traceback.format_exception(error)), exit_code)


def failure_from_exit(rank: int, exit_code: int, time_s: float) -> Failure:
    """The failure of a process that ended with `exit_code` and said nothing."""
    return Failure(rank, time_s, _weigh_exit(exit_code), exit_code=exit_code)


def is_request(exit_code: object) -> bool:
    """Did a process that ended with this code do so because it was asked to?"""
    return exit_code in _POLITE_ENDS


def ended_unheard(exit_code: object) -> bool:
    """Was a process that ended with this code asked to, and heard nothing of it, as before it listens?"""
    return exit_code in _UNHEARD


def first_failure(failures: Iterable[Failure]) -> Failure:
    """The one that caused the others: the earliest of those of the smallest weight."""
    return min(failures, key=lambda failure: (failure.weight, failure.time_s, failure.rank))


def describe(failure: Failure, world_size: int) -> str:
    """What to print about the first failure; its traceback comes last."""
    others = "the other process was" if world_size == 2 else f"the other {world_size - 1} processes were"
    head = f"Rank {failure.rank} of {world_size} failed first; {others} ended because of it."
    if failure.text:
        return f"{head} Its traceback:\n\n{failure.text}"
    if ended_unheard(failure.exit_code):
        how = f"was killed by {_signal_name(-failure.exit_code)}"
        advice = "Somebody asked it to end, such as a cluster manager, before it listened to that."
    elif failure.exit_code < 0:
        how = f"was killed by {_signal_name(-failure.exit_code)}"
        advice = "Often the machine ran out of memory: see `dmesg`, and try a smaller batch or fewer devices."
    else:
        how = f"ended with exit code {failure.exit_code}"
        advice = "Look above for what it printed, or run with devices=1 to see the error alone."
    return f"{head} The process {how}. {advice}\n"


def _weigh_exit(exit_code: int) -> Weight:
    if is_request(exit_code):
        return Weight.REQUESTED
    return Weight.CAUSE if exit_code < 0 else Weight.SILENT


def _weigh_error(error: BaseException) -> Weight:
    if isinstance(error, ProcessHangsError):  # what the others say, and nobody else will
        return Weight.CAUSE
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (RuntimeError, ConnectionError)) and _PEER_IS_GONE.search(str(cause)):
            return Weight.ECHO
        cause = cause.__cause__
    return Weight.CAUSE


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
