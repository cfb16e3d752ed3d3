"""What is running now: status, entry point, the stack of stages, and who asked to stop."""

from collections.abc import Iterator
from contextlib import contextmanager

from fulmen.trainer.stages import EntryPoint, Stage, Status


class RunState:
    """The one owner of status, entry point and stages; others read.

    Validation inside fit is a stage inside a stage: it is entered with `inside` and left again, also on errors.

    Args:
        status: How the run stands.
        fn: Which entry point runs.
        stage: What is running now.
    """

    def __init__(
        self, status: Status = Status.INITIALIZING, fn: EntryPoint | None = None, stage: Stage | None = None
    ) -> None:
        self.status = status
        self.fn = fn
        self.should_stop = False
        self._stages: list[Stage] = [] if stage is None else [stage]

    @property
    def stage(self) -> Stage | None:
        """The innermost stage; what is set here holds until the stage around it is left."""
        return self._stages[-1] if self._stages else None

    @stage.setter
    def stage(self, stage: Stage | None) -> None:
        self._stages[-1:] = [] if stage is None else [Stage(stage)]

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
        depth = len(self._stages)
        self._stages.append(stage)
        try:
            yield
        finally:
            del self._stages[depth:]  # not `pop`: the stage may have been set to None meanwhile


TrainerState = RunState
