"""Where to go on from a saved position. Pure."""

from dataclasses import dataclass
from enum import IntEnum

from fulmen.trainer.progress.counts import FitCounts
from fulmen.trainer.progress.phase import Phase


class Owed(IntEnum):
    """What still follows the batch before, in this order; each includes those that are smaller."""

    NOTHING = 0  # the next batch comes
    COUNT = 1  # its step is counted, and schedulers that look at validation step
    VALIDATION = 2  # validation, if it is due
    ROW = 3  # its row for the loggers


@dataclass(frozen=True)
class Resumption:
    """How a fit goes on.

    Attributes:
        inside_epoch: Is an epoch under way, whose start hooks ran already?
        next_batch: 0-based batch of that epoch which comes next.
        owed: What still follows the batch before.
        after_epoch: Were the batches of the epoch before done, but not all that ends an epoch?
    """

    inside_epoch: bool
    next_batch: int
    owed: Owed = Owed.NOTHING
    after_epoch: bool = False


def resume(counts: FitCounts, between: Owed | None = None) -> Resumption:
    """Settle restored counts on a position from which a run can go on, and say how.

    | saved                                | goes on                                         |
    | ------------------------------------ | ----------------------------------------------- |
    | before the first epoch               | with epoch 0                                    |
    | in a hook at the end of an epoch     | with the rest of its end, and the next epoch    |
    | in a hook at the end of a batch      | after that batch: it is done, and counted       |
    | while validating inside an epoch     | with that validation, from its first batch      |
    | when such a validation has ended     | with the batch that follows                     |
    | while a batch was in work            | with that batch again: it changed no weight yet |

    Args:
        counts: As they were restored; they are moved.
        between: What the last batch was owed when no batch was in work. None if the checkpoint does not say: then it
            was written when a validation had ended, for nobody else's hooks run there.
    """
    match counts.epoch.phase:
        case Phase.PROCESSED:
            counts.epoch.completed()
            counts.batch.abandon()
            return Resumption(inside_epoch=False, next_batch=0, after_epoch=True)
        case Phase.IDLE:
            counts.batch.abandon()
            return Resumption(inside_epoch=False, next_batch=0)
        case Phase.READY | Phase.STARTED:
            # An epoch is STARTED from its first batch on; READY means that its start hooks had not all run.
            begun = counts.epoch.phase is Phase.STARTED
            owed = Owed.NOTHING
            if counts.batch.phase is Phase.PROCESSED:
                owed = Owed.ROW
                counts.batch.completed()
            elif counts.batch.phase is Phase.IDLE and begun and counts.batch.current > 0:
                owed = Owed.COUNT if between is None else between
            counts.batch.abandon()
            if not begun:
                counts.epoch.abandon()
            return Resumption(inside_epoch=begun, next_batch=counts.batch.current if begun else 0, owed=owed)
