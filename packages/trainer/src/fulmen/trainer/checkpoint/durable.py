"""Who is told that a checkpoint is on the disk, and when: at once, or for saves in the background once they are.

What a background save has failed with is raised here too: at the next batch, or where the run ends.
"""

import os

from fulmen.trainer.run.context import RunContext
from fulmen.trainer.stages import Status


def after_save(run: RunContext, path: str | os.PathLike[str]) -> None:
    """The strategy has saved to `path`, or begun to; outside of a run nobody asks later, so it is waited for."""
    if not run.strategy.checkpoint_io.saves_in_background:
        _tell(run, path)
    elif run.state.status is not Status.RUNNING:
        settle(run)


def tell_of_saves(run: RunContext) -> None:
    """Tell of what has come to the disk meanwhile; waits for nothing.

    Raises:
        CheckpointError: Or whatever a save in the background has failed with.
    """
    for path in run.strategy.checkpoint_io.poll():
        _tell(run, path)


def settle(run: RunContext) -> None:
    """Wait until all that was begun is on the disk, and tell of it.

    Raises:
        CheckpointError: Or whatever a save in the background has failed with.
    """
    try:
        run.strategy.checkpoint_io.wait()
    finally:
        tell_of_saves(run)


def _tell(run: RunContext, path: str | os.PathLike[str]) -> None:
    # The parts of a folder are on the disk when the first process says so.
    if run.strategy.is_global_zero:
        run.hooks.on_checkpoint_saved(os.fspath(path))
