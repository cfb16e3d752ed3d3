"""One epoch of training: batch, step, metrics, validate?"""

from collections.abc import Callable, Iterable
from contextlib import closing
from time import monotonic
from typing import Any

from fulmen.fabric.class_names import class_name
from fulmen.trainer.checkpoint.durable import tell_of_saves
from fulmen.trainer.data.batch import Placer, make_placer
from fulmen.trainer.data.fetchers import BatchIterator, Fetcher
from fulmen.trainer.data.sources import PreparedLoaders
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.hooks.dispatch import HookFunction, listened
from fulmen.trainer.loops import when
from fulmen.trainer.loops.evaluate import EvaluateLoop
from fulmen.trainer.loops.resume import Owed, Resumption
from fulmen.trainer.optimization.arguments import takes_iterator, warn_self_fetching
from fulmen.trainer.optimization.automatic import AutomaticOptimization
from fulmen.trainer.optimization.loss import LossWatch
from fulmen.trainer.optimization.manual import ManualOptimization
from fulmen.trainer.optimization.schedulers import Schedulers
from fulmen.trainer.progress.counts import FitCounts
from fulmen.trainer.run.agreed_clock import AgreedClock
from fulmen.trainer.run.context import RunContext

SKIP_EPOCH = -1  # what `on_train_batch_start` answers to leave out the rest of the epoch


class TrainEpochLoop:
    """The batches of one epoch after the other.

    Args:
        run: All that it may touch.
        counts: The fit's counts; this loop moves those of batches.
        val_loop: Run between batches, or after them.
    """

    def __init__(self, run: RunContext, counts: FitCounts, val_loop: EvaluateLoop) -> None:
        self.run_context = run
        self.counts = counts
        self.val_loop = val_loop
        self.max_batches: int | float = 0
        self.validates = False  # can this fit validate at all?
        self.val_check_batch: int | float = float("inf")
        self._across_epochs = False
        self._validated_at_s = monotonic()
        self._clock = AgreedClock()
        self._fetches_itself = False
        self._resumption: Resumption | None = None
        self.was_cut = False
        """Did the epoch under way end before its batches did, because the fit ends?"""
        self.owed = Owed.NOTHING
        """What still follows the batch before, while no batch is in work."""

    def setup_data(
        self,
        prepared: PreparedLoaders,
        max_batches: int | float,
        resumption: Resumption | None,
        *,
        is_odd: bool = False,
    ) -> None:
        """Take these batches for the epochs to come.

        Args:
            prepared: The training loaders.
            max_batches: How many of their batches make an epoch.
            resumption: Where the first epoch goes on, if it was under way.
            is_odd: Has that epoch another length than those that follow?
        """
        settings = self.run_context.settings
        self.max_batches = max_batches
        self._across_epochs = settings.check_val_every_n_epoch is None
        self.val_check_batch = float("inf")
        if settings.val_check_time is None and max_batches > 0:
            interval = settings.val_check_interval
            assert isinstance(interval, int | float)
            counts_on = self._across_epochs or (is_odd and isinstance(interval, int))  # then it may be too long
            self.val_check_batch = when.validation_interval(interval, max_batches, across_epochs=counts_on)
        inside = resumption is not None and resumption.inside_epoch
        start = resumption.next_batch if resumption is not None and inside else 0
        self._resumption = resumption if inside else None
        self._fetcher = Fetcher(prepared.loader, max_batches, start=start)

    def setup_steps(self) -> None:
        """Decide all that can be decided before the first batch; the optimizers are there."""
        run = self.run_context
        module = run.strategy.lightning_module
        assert module is not None
        self._fetches_itself = takes_iterator(module.training_step)
        if self._fetches_itself:
            self._check_self_fetching()
        self._optimization: AutomaticOptimization | ManualOptimization
        if module.automatic_optimization:
            self._optimization = AutomaticOptimization(run, self.counts, self.max_batches)
        else:
            self._optimization = ManualOptimization(run, self.counts)
        configs = run.strategy.lr_scheduler_configs
        self._run_optimization = run.hooks.timed("run_training_batch", self._optimization.run)
        self._schedulers = Schedulers(configs, module, run.hooks, run.metrics, self.counts)
        self._watch = LossWatch(class_name(module), reads=bool(run.metrics.loggers))
        place = make_placer(module, run.data.datamodule, run.strategy, run.hooks.as_hook)
        self._place: Placer | None = place and run.hooks.step("batch_to_device", place)
        self._on_batch_start: HookFunction | None = listened(run.hooks.on_train_batch_start)
        self._on_batch_end: HookFunction | None = listened(run.hooks.on_train_batch_end)

    @property
    def batch_idx(self) -> int:
        """The batch of this epoch that is in work, or was the last; -1 before the first."""
        return self.counts.batch.begun - 1

    @property
    def total_batch_idx(self) -> int:
        """The same, counted since the fit began."""
        return self.counts.batch.total_begun - 1

    @property
    def global_step(self) -> int:
        """Optimizer steps made so far."""
        return self.counts.global_step

    @property
    def since_validation_s(self) -> float:
        """Seconds since the last validation, or since the fit began."""
        return monotonic() - self._validated_at_s

    def start_clock(self, since_validation_s: float = 0.0) -> None:
        """The fit begins, so long after its last validation."""
        self._validated_at_s = monotonic() - since_validation_s

    def _check_self_fetching(self) -> None:
        run = self.run_context
        name = type(run.strategy.lightning_module).__name__
        window = run.settings.accumulate_grad_batches
        if window != 1:
            raise ConfigurationError(
                f"Trainer(accumulate_grad_batches={window}) cannot be used with {name}.training_step(dataloader_iter)."
                " How many batches such a step takes only the step knows, so they cannot be counted to a window."
                " Take several batches in one step, or define training_step(self, batch, batch_idx)."
            )
        warn_self_fetching(f"{name}.training_step")

    @property
    def gradients_wait(self) -> bool:
        """Are there gradients that further batches will be added to before a step?"""
        optimization = vars(self).get("_optimization")  # made when the first epoch begins
        return optimization is not None and bool(optimization.gradients_wait)

    @property
    def may_stop(self) -> bool:
        """Was a stop asked for, and has enough been trained to follow?"""
        settings, counts = self.run_context.settings, self.counts
        return self.run_context.state.should_stop and when.may_stop_early(
            epochs=counts.epoch.total,
            steps=counts.global_step,
            min_epochs=settings.min_epochs,
            min_steps=settings.min_steps,
        )

    def run(self) -> None:
        """Train on the batches of this epoch."""
        resumption, self._resumption = self._resumption, None
        fetcher = self._fetcher
        with self.run_context.hooks.inside("training_step"), closing(fetcher):
            self.owed, self.was_cut = Owed.NOTHING, False
            stopped = resumption is not None and self._pay(resumption.next_batch - 1, resumption.owed)
            if not stopped:
                run_batch: Callable[..., bool] = self._run_self_fetching if self._fetches_itself else self._run_batch
                if self.run_context.strategy.checkpoint_io.saves_in_background:
                    run_batch = self._looking_at_saves(run_batch)
                for batch in self._batches(fetcher):
                    if run_batch(batch, fetcher):
                        break

    def _batches(self, fetcher: Fetcher) -> Iterable[Any]:
        if self._fetches_itself:
            return fetcher.items(self.run_context.metrics.begin_batch)
        return self.run_context.hooks.timed_items("[_TrainingEpochLoop].train_dataloader_next", fetcher)

    def check_went_on(self) -> None:
        """Refuse to begin epoch after epoch in which nothing happens; asked when the batches of one are done.

        Raises:
            ConfigurationError: The loader had no batch left, or nothing counts towards the only bound of the fit.
        """
        if self._fetcher.count == self.counts.batch.current == 0 and self.max_batches > 0:
            epoch = self.counts.epoch.total
            raise ConfigurationError(
                f"Epoch {epoch} of Trainer.fit had no batch: the training loader gave none."
                " It has no length that would have told so, and is empty or can be read only once."
                " Give it samples, or a dataset whose `__iter__` begins anew each time; or pass max_epochs=1."
            )
        if isinstance(self._optimization, ManualOptimization):
            self._optimization.check_steps(self._fetcher.count)

    def after_epoch(self, epoch: int) -> None:
        """What follows the hooks at the end of `epoch` (0-based)."""
        if not self.was_cut:  # whoever goes on inside the epoch comes to its end again
            self._schedulers.after_epoch(epoch, plateau=True)
        # The last step of the epoch, on the same axis as the steps' own metrics.
        self.run_context.metrics.publish_epoch(max(self.counts.stepped_batches - 1, 0), epoch)

    def _looking_at_saves(self, run_batch: Callable[..., bool]) -> Callable[..., bool]:
        """`run_batch`, and after it callbacks hear what has come to the disk; a failed save ends the run there."""

        def run_and_look(batch: Any, fetcher: Fetcher) -> bool:
            ends = run_batch(batch, fetcher)
            tell_of_saves(self.run_context)
            return ends

        return run_and_look

    def _run_batch(self, batch: Any, fetcher: Fetcher) -> bool:
        """One batch and what follows it. Does the epoch end here, before its batches do?"""
        run, counts, cursor = self.run_context, self.counts, self.counts.batch
        index = fetcher.count - 1
        counts.is_last_batch = fetcher.count >= fetcher.bound
        cursor.ready()
        if self._place is not None:
            batch = self._place(batch, 0)
        run.metrics.begin_batch(batch, index)
        if self._on_batch_start is not None and self._on_batch_start(batch, index) == SKIP_EPOCH:
            cursor.skip()
            if fetcher.is_last:
                self._schedulers.after_epoch(counts.epoch.total, plateau=False)
            return True
        cursor.started()
        # Of data without a length, `is_last` fetches the next batch: before the step only where the step must know.
        closes_window = run.settings.accumulate_grad_batches != 1 and fetcher.is_last
        output = self._run_optimization(batch, index, closes_window)
        end = fetcher.end  # as `is_last`, without the call where the length is known
        is_last = counts.is_last_batch = fetcher.is_last if end is None else fetcher.count >= end
        return self._finish_batch(output, batch, index, is_last)

    def _run_self_fetching(self, batches: BatchIterator, fetcher: Fetcher) -> bool:
        """As `_run_batch`, of a step that takes as many batches as it likes; hooks hear of the last one taken."""
        run, counts, cursor = self.run_context, self.counts, self.counts.batch
        first = fetcher.count
        counts.is_last_batch = False
        cursor.ready()
        if self._on_batch_start is not None and self._on_batch_start(batches.batch, first) == SKIP_EPOCH:
            cursor.skip()
            return True
        cursor.started()
        try:
            output = self._run_optimization(batches, first, False)
        except StopIteration:  # it asked for more batches than were left
            cursor.abandon()
            counts.is_last_batch = True
            self._schedulers.after_epoch(counts.epoch.total, plateau=False)
            if self.validates and self._validates_after(fetcher.count - 1, is_last=True):
                self.val_loop.run()
            return True
        batches.check_taken(first, f"{type(run.strategy.lightning_module).__name__}.training_step")
        is_last = counts.is_last_batch = fetcher.is_last
        for _ in range(first, fetcher.count - 1):
            cursor.pass_over()
        return self._finish_batch(output, batches.batch, fetcher.count - 1, is_last)

    def _finish_batch(self, output: Any, batch: Any, index: int, is_last: bool) -> bool:
        """What follows the step. Does the epoch end here, before its batches do?"""
        counts, cursor = self.counts, self.counts.batch
        cursor.processed()
        if self._schedulers.step_by_step and self._stepped(index, is_last):
            self._schedulers.after_step(plateau=False)
        if is_last:
            self._schedulers.after_epoch(counts.epoch.total, plateau=False)
        if self._on_batch_end is not None:
            self._on_batch_end(self._optimization.outputs(output), batch, index)
        cursor.completed()
        due = self._publish_step(index, is_last)
        if due or is_last:
            step, epoch = counts.stepped_batches, counts.epoch.total
            self._watch.look(output, step=step, epoch=epoch, batch=index, is_last=is_last)
        return self._after_batch(index, is_last, self.validates)

    def _pay(self, index: int, owed: Owed) -> bool:
        """What still follows a batch after a resume. Does the epoch end here, before its batches do?"""
        is_last = self.counts.is_last_batch
        if owed is Owed.NOTHING:
            return False
        if owed is Owed.ROW:
            self._publish_step(index, is_last)
        return self._after_batch(index, is_last, self.validates and owed is not Owed.COUNT)

    def _publish_step(self, index: int, is_last: bool) -> bool:
        """Send the row of a step, if it is time. Is it?"""
        run, counts = self.run_context, self.counts
        # While gradients accumulate the step is not done: it has one row, at its end.
        due = when.logs_after(
            counts.stepped_batches, run.settings.log_every_n_steps or 0, stopping=run.state.should_stop
        )
        if due and self._stepped(index, is_last):
            run.metrics.publish_step(counts.stepped_batches, counts.epoch.total)
        return due

    def _stepped(self, index: int, is_last: bool) -> bool:
        """Did the batch end an accumulation window?"""
        return is_last or (index + 1) % self.run_context.settings.accumulate_grad_batches == 0

    def _after_batch(self, index: int, is_last: bool, validates: bool) -> bool:
        """Validate if it is time. Does the epoch end here, before its batches do?"""
        run, counts = self.run_context, self.counts
        if validates and self._validates_after(index, is_last=is_last):
            self.owed = Owed.COUNT
            self.val_loop.run()
            self.owed = Owed.NOTHING
            self._validated_at_s = monotonic()
        if is_last or (index + 1) % run.settings.accumulate_grad_batches == 0:  # as `_stepped`, without the call
            counts.stepped_batches += 1
            if self._schedulers.step_by_step:
                self._schedulers.after_step(plateau=True)
        signals = run.signals
        signals.place += 1
        if signals.caught:
            signals.stop_if_due(signals.place - 1)
        max_steps = run.settings.max_steps
        ends = max_steps != -1 and counts.global_step >= max_steps
        if run.state.should_stop:
            run.metrics.outlets.tell(run.metrics.loggers, "save")
            ends = ends or self.may_stop
        # Behind its last batch, an epoch asks the loaders once more: some draw another batch before they end.
        self.was_cut = ends and not is_last
        return self.was_cut

    def _validates_after(self, index: int, *, is_last: bool) -> bool:
        run, epoch = self.run_context, self.counts.epoch.total
        if not when.validates_in_epoch(epoch, run.settings.check_val_every_n_epoch):
            return False
        duration = run.settings.val_check_time
        if duration is not None:
            remaining_s = duration.total_seconds() - self.since_validation_s
            # Clocks differ: the first rank's decides. All processes must ask, also if they stop anyway.
            due = self._clock.is_over(remaining_s, run.strategy, run.strategy.world_size)
            return due or self.may_stop
        return when.validates_after(
            batch=index,
            batches_in_all=self.counts.batch.total - 1,
            every=self.val_check_batch,
            across_epochs=self._across_epochs,
            is_last=is_last,
            stopping=run.state.should_stop and self.may_stop,
        )
