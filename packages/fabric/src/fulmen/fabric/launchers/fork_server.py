"""Imported by Python's fork server, before all else: lets it end at once when its last user is gone.

It has imported torch for the processes that it forks. To take all that apart again is a second of computing, and on a
busy machine many, in which nothing of a run should be left.
"""

from __future__ import annotations

import atexit
import os
import sys


def _leave(server: int) -> None:
    # What is forked from the server inherits the handler, and ends as it likes.
    if os.getpid() == server:
        os._exit(0)


if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    atexit.register(_leave, os.getpid())
