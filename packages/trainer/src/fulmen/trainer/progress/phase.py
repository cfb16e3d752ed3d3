"""How far one unit of work (a batch, an epoch) has come. Pure."""

from enum import IntEnum


class Phase(IntEnum):
    """The moments of one unit of work, in order; the value is how many of its counters it has moved."""

    IDLE = 0  # nothing begun
    READY = 1  # fetched and announced
    STARTED = 2  # its *_start hooks have run
    PROCESSED = 3  # the work is done; its *_end hooks have not all run
