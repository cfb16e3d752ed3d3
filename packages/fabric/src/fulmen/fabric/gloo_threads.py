"""Let the threads in which gloo works come to rest, before the process group is closed and before Python ends.

A collective is over for its caller a moment before it is over for gloo's thread, which then lets go of the tensors and
of what autograd kept for backward. For these it needs Python's lock, and torch waits for it too early or not at all:

- Python ends in that moment: before Python 3.14, it ends a thread that asks for its lock then. That is an unwinding in
  the middle of a destructor of C++, and so the end of the process, its work done: "terminate called without an active
  exception", exit code 134. https://github.com/python/cpython/issues/87135
- The last owner of the group goes in that moment, which is a `DistributedDataParallel` that outlived
  `destroy_process_group`: it holds Python's lock while it waits for the thread, and both wait for ever.

On a machine with more work than cores, a moment may be seconds. Seen with torch 2.13, where it starts:
`~AsyncWork` -> `~ThreadLocalState` -> `SafePyObject`.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Final

import torch
import torch.distributed as dist

_TASKS: Final = "/proc/self/task"
# As torch names them. The kernel keeps 15 letters.
_NAME: Final = b"pt_gloo_runloop"
# torch 2.9 does not: they are called as the process is, and so are others that are asleep, as a rule, when it ends.
_ARE_NAMED: Final = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
_ASLEEP: Final = b"S"
_LOOK_EVERY_S: Final = 0.001
# Where the system tells nothing about threads.
_BLIND_WAIT_S: Final = 0.05


def close_group() -> None:
    """Close the process group, if there is one, and all groups made of it."""
    come_to_rest()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def come_to_rest(within_s: float = 3.0) -> bool:
    """Wait until gloo's threads have nothing to do, or wait for another process.

    Returns:
        False if they worked on for `within_s` seconds.
    """
    if not os.path.isdir(_TASKS):
        if dist.is_available() and dist.is_initialized():
            time.sleep(_BLIND_WAIT_S)
        return True
    deadline = time.monotonic() + within_s
    before = _threads()
    while before and time.monotonic() < deadline:
        # Without Python's lock: a thread that waits for it has it, or at least is woken, when we look again.
        time.sleep(_LOOK_EVERY_S)
        now = _threads()
        if now == before and all(state == _ASLEEP for state, _ in now.values()):
            return True
        before = now
    return not before


def _threads() -> dict[str, tuple[bytes, bytes]]:
    """Of each of gloo's threads, by its number: its state, and how often it has been put to sleep and woken."""
    found: dict[str, tuple[bytes, bytes]] = {}
    name = _NAME if _ARE_NAMED else _own_name()
    for number in os.listdir(_TASKS):
        if not _ARE_NAMED and number == str(threading.get_native_id()):
            continue
        try:
            with open(f"{_TASKS}/{number}/comm", "rb") as file:
                if file.read().strip() != name:
                    continue
            with open(f"{_TASKS}/{number}/status", "rb") as file:
                lines = file.read().splitlines()
        except OSError:  # it has just ended
            continue
        state = next(line.split()[1] for line in lines if line.startswith(b"State:"))
        found[number] = (state, b" ".join(line for line in lines if b"ctxt_switches" in line))
    return found


def _own_name() -> bytes:
    with open("/proc/self/comm", "rb") as file:
        return file.read().strip()
