"""What is running now: status, entry point, the stack of stages, and who asked to stop."""

from collections.abc import Iterator
from contextlib import contextmanager

from fulmen.trainer.stages import EntryPoint, Stage, Status


class RunState:
    """The one owner of status, entry point and stages; others read.

    Validation inside fit is a stage inside a stage: it is entered with `inside` and left again, also on errors.
    """

    def __init__(self) -> None:
        self.status = Status.INITIALIZING
        self.fn: EntryPoint | None = None
        self.should_stop = False
        self._stages: list[Stage] = []

    @property
    def stage(self) -> Stage | None:
        """The innermost stage."""
        return self._stages[-1] if self._stages else None

    @property
    def finished(self) -> bool:
        """Has the last run ended as planned?"""
        return self.status == Status.FINISHED

    @property
    def stopped(self) -> bool:
        """Has the last run ended, in whatever way?"""
        return self.status in (Status.FINISHED, Status.INTERRUPTED)

    @contextmanager
    def inside(self, stage: Stage) -> Iterator[None]:
        """Be in `stage` until the block is left."""
        self._stages.append(stage)
        try:
            yield
        finally:
            self._stages.pop()
