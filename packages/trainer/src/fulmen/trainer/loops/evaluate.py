"""Validate and test: every batch once, without gradients, and the means of what was logged."""

from collections.abc import Sequence
from typing import Any

from fulmen.fabric.seeding import collect_rng_state
from fulmen.trainer.checkpoint.position import ValidationPosition
from fulmen.trainer.data.fetchers import Fetcher
from fulmen.trainer.loops.base import limited, load, nothing_to_run
from fulmen.trainer.loops.passes import evaluating, run_batches, without_gradients
from fulmen.trainer.loops.when import num_sanity_batches
from fulmen.trainer.progress.counts import EvaluationCounts, FitCounts
from fulmen.trainer.progress.cursor import Cursor
from fulmen.trainer.run.context import RunContext
from fulmen.trainer.stages import Stage

Results = list[dict[str, float]]
# Test and validation hooks differ in this word only.
_WORDS = {Stage.VALIDATE: "validation", Stage.SANITY_CHECK: "validation", Stage.TEST: "test"}


class EvaluateLoop:
    """One pass over the loaders of a stage.

    Args:
        run: All that it may touch.
        stage: VALIDATE, TEST or SANITY_CHECK.
        counts: Where it counts; made by the caller when a fit owns them.
        fit: The counts of the fit, on whose axis its results are logged.
        inside_fit: Does it run between training batches? Then the weights are trained on afterwards.
    """

    def __init__(
        self,
        run: RunContext,
        stage: Stage,
        counts: EvaluationCounts | None = None,
        *,
        fit: FitCounts | None = None,
        inside_fit: bool = False,
    ) -> None:
        self.run_context = run
        self.stage = stage
        self.counts = counts or EvaluationCounts()
        self.word = _WORDS[stage]
        self.max_batches: list[int | float] = []
        self._skips = True
        self._fit = fit or FitCounts()
        self._inside_fit = inside_fit
        self._seen_of: list[int] = []  # batches of each loader in the whole run: the x value of metrics of steps
        self._saved_data: list[dict[str, Any]] | None = None  # of the run that goes on, until there are loaders
        self._begun: ValidationPosition | None = None  # with what the pass under way began, until its means are out

    @property
    def source_stage(self) -> Stage:
        """The stage whose loaders are used; the sanity check uses those of validation."""
        return Stage.VALIDATE if self.stage is Stage.SANITY_CHECK else self.stage

    @property
    def skips(self) -> bool:
        """Is there nothing to do, in any process? One without a batch of its own goes along with the others."""
        return self._skips

    def setup_data(self) -> None:
        """Get the loaders, unless they are there already and still fresh."""
        run, epoch = self.run_context, self._fit.epoch.total
        prepared = run.data.prepared.get(self.source_stage)
        every = run.settings.reload_dataloaders_every_n_epochs
        if prepared is None or prepared.is_stale(epoch, every):
            prepared = load(run, self.source_stage, epoch)
        if self._saved_data:
            place, count = run.strategy.own_values
            saved, self._saved_data = self._saved_data, None
            prepared.load_resting_state(saved[place] if len(saved) == count else saved[0], epoch, every)
        self.max_batches = self.known_batches
        if self.stage is Stage.SANITY_CHECK:
            self.max_batches = num_sanity_batches(run.settings.num_sanity_val_steps or 0, self.max_batches)
        self._skips = nothing_to_run(run, self.max_batches)

    @property
    def known_batches(self) -> list[int | float]:
        """Batches of each loader as far as the limits allow, once the loaders are there; also before a pass."""
        run = self.run_context
        prepared = run.data.prepared.get(self.source_stage)
        if prepared is None:
            return []
        limit = getattr(run.settings, f"limit_{self.source_stage.dataloader_prefix}_batches")
        return limited(prepared.lengths, limit, self.source_stage)

    def run(self) -> Results:
        """Make one pass. Returns, for each loader, what was logged over it."""
        run = self.run_context
        with run.state.inside(self.stage):
            if self._inside_fit:
                run.hooks.on_validation_model_zero_grad()
            with without_gradients(inference=self._inference):
                self.setup_data()
                return [] if self.skips else self._pass()

    @property
    def position(self) -> ValidationPosition:
        """Where it is, as far as the counts do not say it."""
        return self._begun or ValidationPosition(tuple(self._seen_of), data=self._resting_state())

    def _resting_state(self) -> dict[str, Any] | None:
        prepared = self.run_context.data.prepared.get(self.source_stage)
        return None if prepared is None else prepared.resting_state()

    def go_on_from(
        self,
        *,
        under_way: bool,
        seen_of: Sequence[int] = (),
        seen_batches: int = 0,
        data: list[dict[str, Any]] | None = None,
    ) -> None:
        """Be there again; the counts have been restored before. A pass that was under way has not begun.

        Args:
            under_way, seen_of: As in `ValidationPosition`.
            seen_batches: Of all loaders together: all that the first checkpoints of ours have.
            data: Its `data`, of each process that sees other data.
        """
        self._seen_of, self._saved_data = list(seen_of) or [seen_batches], data
        if under_way:
            batch = self.counts.batch
            self.counts.batch = Cursor(batch.total - batch.current, 0)

    def _pass(self) -> Results:
        run = self.run_context
        self.counts.begin_pass(keep_total=self._inside_fit)
        with run.metrics.inside(self.stage, len(self.max_batches)), evaluating(run, self.word):
            run.metrics.begin_epoch()
            if self._inside_fit:
                self._begun = ValidationPosition(tuple(self._seen_of), collect_rng_state(), self._resting_state())
            self._fire("start")
            self._fire("epoch_start")
            # Only now: a hook may have had the loaders made anew.
            if len(self._seen_of) != len(self.max_batches):
                self._seen_of = shares_of(sum(self._seen_of), self.max_batches)
            fetcher = Fetcher(run.data.prepared[self.source_stage].loader, self._limits, indexed=True)
            run_batches(
                run, self.word, self.counts, fetcher, num_loaders=len(self.max_batches), after=self._after_batch
            )
            run.metrics.end_batches()
            self._fire("epoch_end")
            run.metrics.publish_epoch(self._fit.stepped_batches, self._fit.epoch.total)
            self._begun = None
            self._fire("end")
            return run.metrics.results()

    @property
    def _inference(self) -> bool:
        in_fit = self._inside_fit or self.stage is Stage.SANITY_CHECK
        allowed = self.run_context.strategy.allows_inference_mode
        return self.run_context.settings.inference_mode and allowed and not in_fit

    @property
    def _limits(self) -> int | float | list[int | float]:
        return self.max_batches if len(self.max_batches) > 1 else self.max_batches[0]

    def _fire(self, moment: str) -> None:
        getattr(self.run_context.hooks, f"on_{self.word}_{moment}")()

    def _after_batch(self, _answer: Any, loader: int) -> None:
        self.run_context.metrics.publish_step(self._seen_of[loader])
        self._seen_of[loader] += 1


def shares_of(seen_batches: int, lengths: list[int | float]) -> list[int]:
    """How many of these batches were of each loader, if every pass was one over all of them.

    >>> shares_of(10, [2, 3])
    [4, 6]
    """
    whole = sum(lengths)
    if len(lengths) == 1 or not 0 < whole < float("inf"):
        return [seen_batches // len(lengths)] * len(lengths)
    return [int(seen_batches * length // whole) for length in lengths]
