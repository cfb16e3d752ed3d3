"""Where to go on from a saved position. Pure."""

from dataclasses import dataclass

from fulmen.trainer.progress.counts import FitCounts
from fulmen.trainer.progress.phase import Phase


@dataclass(frozen=True)
class Resumption:
    """How a fit goes on.

    Attributes:
        inside_epoch: Is an epoch under way, whose start hooks ran already?
        next_batch: 0-based batch of that epoch which comes next.
        after_batch: Was the batch before it done, but not what follows a batch (validation, stopping)?
        after_epoch: Were the batches of the epoch before done, but not all that ends an epoch?
    """

    inside_epoch: bool
    next_batch: int
    after_batch: bool
    after_epoch: bool = False


def resume(counts: FitCounts) -> Resumption:
    """Settle restored counts on a position from which a run can go on, and say how.

    | saved                                | goes on                                         |
    | ------------------------------------ | ----------------------------------------------- |
    | before the first epoch               | with epoch 0                                    |
    | in a hook at the end of an epoch     | with the next epoch                             |
    | in a hook at the end of a batch      | after that batch: it is done, and counted       |
    | while validating inside an epoch     | with the batch that follows                     |
    | while a batch was in work            | with that batch again: it changed no weight yet |
    """
    match counts.epoch.phase:
        case Phase.PROCESSED:
            counts.epoch.completed()
            counts.batch.abandon()
            return Resumption(inside_epoch=False, next_batch=0, after_batch=False, after_epoch=True)
        case Phase.IDLE:
            counts.batch.abandon()
            return Resumption(inside_epoch=False, next_batch=0, after_batch=False)
        case Phase.READY | Phase.STARTED:
            # An epoch is STARTED from its first batch on; READY means that its start hooks had not all run.
            begun = counts.epoch.phase is Phase.STARTED
            done = counts.batch.phase is Phase.PROCESSED
            if done:
                counts.batch.completed()
            else:
                counts.batch.abandon()
            if not begun:
                counts.epoch.abandon()
            return Resumption(inside_epoch=begun, next_batch=counts.batch.current if begun else 0, after_batch=done)
