"""Which steps are recorded, when each kind of step is counted by itself."""

from collections.abc import Callable

from torch.profiler import ProfilerAction

_KINDS = ("training_step", "validation_step", "test_step", "predict_step")


class ScheduleWrapper:
    """A schedule for `torch.profiler.profile` that counts training, validation, test and predict steps each by itself.

    `PyTorchProfiler` counts all steps together; hand it `schedule=ScheduleWrapper(...)` and call `pre_step` where a
    step begins, to have a window of each kind.

    Args:
        schedule: Called with the number of the step (0-based) among those of its kind.
    """

    def __init__(self, schedule: Callable[[int], ProfilerAction]) -> None:
        self._schedule = schedule
        self.reset()

    def reset(self) -> None:
        """Forget all counts."""
        self._counts = dict.fromkeys(_KINDS, 0)
        self._finished: set[str] = set()
        self._current = ""
        self._start_action = ""

    def setup(self, start_action_name: str) -> None:
        """The action with which recording began."""
        self._start_action = self._current = start_action_name

    def pre_step(self, current_action: str) -> None:
        """The action that is about to run."""
        self._current = current_action

    @property
    def _kind(self) -> str:
        return self._current.rpartition(".")[2]

    @property
    def is_training(self) -> bool:
        """Is it a training step that runs?"""
        return self._kind == "training_step"

    @property
    def is_validating(self) -> bool:
        """Is it a validation step that runs?"""
        return self._kind == "validation_step"

    @property
    def is_testing(self) -> bool:
        """Is it a test step that runs?"""
        return self._kind == "test_step"

    @property
    def is_predicting(self) -> bool:
        """Is it a predict step that runs?"""
        return self._kind == "predict_step"

    @property
    def num_step(self) -> int:
        """How many steps of this kind came before."""
        return self._counts.get(self._kind, 0)

    @property
    def has_finished(self) -> bool:
        """Was a window of this kind saved already?"""
        return self._kind in self._finished

    def __call__(self, num_step: int) -> ProfilerAction:
        """What to do in the step that runs; `num_step`, which counts all kinds, does not matter."""
        if self.has_finished:
            return ProfilerAction.NONE
        action = self._schedule(self.num_step)
        if self._kind in self._counts:
            self._counts[self._kind] += 1
            if action is ProfilerAction.RECORD_AND_SAVE:
                self._finished.add(self._kind)
        return action
