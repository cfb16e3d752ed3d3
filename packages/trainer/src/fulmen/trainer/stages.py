"""Which entry point runs, which stage of it, and how the run stands.

The words are the values: they appear in messages, in `setup(stage=...)` and in the names of dataloaders. The longer
member names (`FITTING`, `TRAINING`, ...) are aliases for programs written for the reference.
"""

from enum import StrEnum


class EntryPoint(StrEnum):
    """What the user called: the method of `Trainer`."""

    FIT = "fit"
    VALIDATE = "validate"
    TEST = "test"
    PREDICT = "predict"

    FITTING = "fit"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"


class Stage(StrEnum):
    """What is running now; a fit has `VALIDATE` inside `TRAIN`, and `SANITY_CHECK` before it."""

    TRAIN = "train"
    SANITY_CHECK = "sanity_check"
    VALIDATE = "validate"
    TEST = "test"
    PREDICT = "predict"

    TRAINING = "train"
    SANITY_CHECKING = "sanity_check"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"

    @property
    def evaluating(self) -> bool:
        """Does this stage measure without training? Predicting measures nothing."""
        return self in (Stage.VALIDATE, Stage.TEST, Stage.SANITY_CHECK)

    @property
    def dataloader_prefix(self) -> str:
        """The first part of the dataloader hook's name: "train", "val", "test" or "predict"."""
        return "val" if self in (Stage.VALIDATE, Stage.SANITY_CHECK) else self.value


class Status(StrEnum):
    """How the run stands."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"

    @property
    def stopped(self) -> bool:
        """Is the run over, whether it came to its end or not?"""
        return self in (Status.FINISHED, Status.INTERRUPTED)


TrainerFn = EntryPoint
RunningStage = Stage
TrainerStatus = Status
