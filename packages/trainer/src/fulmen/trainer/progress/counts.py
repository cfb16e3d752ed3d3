"""What each loop counts. Pure."""

from dataclasses import dataclass, field

from fulmen.trainer.progress.cursor import Cursor, Tally


@dataclass(slots=True)
class EvaluationCounts:
    """Batches of one validate, test or predict loop; a round is one pass over the loaders."""

    batch: Cursor = field(default_factory=Cursor)
    is_last_batch: bool = False

    def begin_pass(self, *, keep_total: bool) -> None:
        """A new pass over the loaders; `keep_total` when it goes on counting those of this training epoch."""
        total = self.batch.total if keep_total else 0
        self.batch = Cursor(total, 0)
        self.is_last_batch = False


@dataclass(slots=True)
class FitCounts:
    """All that a fit counts. `global_step` is the number of optimizer steps, however they were made."""

    epoch: Cursor = field(default_factory=Cursor)
    batch: Cursor = field(default_factory=Cursor)
    is_last_batch: bool = False
    optimizer_steps: Tally = field(default_factory=Tally)
    zero_grads: Tally = field(default_factory=Tally)
    manual_steps: Tally = field(default_factory=Tally)
    scheduler_steps: Tally = field(default_factory=Tally)
    stepped_batches: int = 0  # batches that ended with an optimizer step; the x axis of loggers
    validation: EvaluationCounts = field(default_factory=EvaluationCounts)

    @property
    def global_step(self) -> int:
        """Optimizer steps made so far."""
        return self.optimizer_steps.total + self.manual_steps.total

    def begin_epoch(self) -> None:
        """Every count of this epoch starts at nought; totals go on."""
        self.batch.begin_round()
        self.is_last_batch = False
        for tally in (self.optimizer_steps, self.zero_grads, self.manual_steps, self.scheduler_steps):
            tally.begin_round()
        self.validation.batch = Cursor()
