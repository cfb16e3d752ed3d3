"""The queues of worker processes, kept for the iterator that will end the workers by them."""

from __future__ import annotations

import weakref
from typing import Any

# Of torch's iterators over workers, and torchdata's.
_BY_WHICH_WORKERS_END = ("_index_queues", "_workers_done_event", "_workers", "_worker_result_queue", "_data_queue")
_KEPT: weakref.WeakSet[Any] = weakref.WeakSet()


def keep_queues(batches: Any) -> None:
    """Let an iterator find its queues when it is collected as part of a circle; any other iterator is left alone.

    A Trainer, its module and its loaders are such a circle. Python closes what is in it before it asks the
    iterator to end: without its queues it waits five seconds for each of its workers, in the middle of something else.
    """
    kept = [getattr(batches, name) for name in _BY_WHICH_WORKERS_END if hasattr(batches, name)]
    if kept and batches not in _KEPT:
        _KEPT.add(batches)
        # What a finalizer holds is no garbage yet when the iterator is; it is let go of right before.
        weakref.finalize(batches, _let_go, *kept).atexit = False


def _let_go(*_kept: Any) -> None: ...
