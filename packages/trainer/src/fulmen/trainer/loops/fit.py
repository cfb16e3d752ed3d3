"""Epochs until done."""

import math
from typing import Any

from fulmen.fabric.rank_zero import PossibleUserWarning, rank_zero_info, rank_zero_warn, warn_once
from fulmen.trainer.checkpoint.position import CutEpoch, FitPosition
from fulmen.trainer.checkpoint.restore import restore_rng
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.data.sources import PreparedLoaders, is_stale
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.flags import setting
from fulmen.trainer.loops import when
from fulmen.trainer.loops.base import limited, load
from fulmen.trainer.loops.evaluate import EvaluateLoop
from fulmen.trainer.loops.resume import Owed, Resumption, resume
from fulmen.trainer.loops.train_epoch import TrainEpochLoop
from fulmen.trainer.progress import legacy
from fulmen.trainer.progress.counts import FitCounts
from fulmen.trainer.progress.phase import Phase
from fulmen.trainer.run.context import RunContext
from fulmen.trainer.run.settings import Settings
from fulmen.trainer.signature import is_overridden
from fulmen.trainer.stages import Stage
from fulmen.trainer.strategies.half_summed import Gradients


class FitLoop:
    """Trains epoch after epoch, with validation inside, until a bound is reached or somebody asks to stop.

    Args:
        run: All that it may touch.
    """

    # Programs train on with the same Trainer by `trainer.fit_loop.max_epochs = 20`.
    max_epochs: int | None = setting("max_epochs", "Epochs after which the fit ends; -1 is none.")
    min_epochs: int | None = setting("min_epochs", "Epochs before which it is not stopped.")
    max_steps: int = setting("max_steps", "Optimizer steps after which the fit ends; -1 is none.")
    min_steps: int | None = setting("min_steps", "Optimizer steps before which it is not stopped.")

    def __init__(self, run: RunContext) -> None:
        self.run_context = run
        self.counts = FitCounts()
        self.epoch_loop = TrainEpochLoop(
            run,
            self.counts,
            EvaluateLoop(run, Stage.VALIDATE, self.counts.validation, fit=self.counts, inside_fit=True),
        )
        self.max_batches: int | float = 0
        self._is_odd_epoch = False  # begun by another number of processes
        self._cut: CutEpoch | None = None
        self.restored: dict[str, Any] | None = None  # what only a checkpoint knows, until the run has gone on from it

    @property
    def has_begun(self) -> bool:
        """Is there something to go on from?"""
        return self.counts.epoch.total > 0 or self.counts.epoch.phase is not Phase.IDLE

    @property
    def position(self) -> FitPosition:
        """Where it is, as far as the counts do not say it."""
        strategy, validation = self.run_context.strategy, self.val_loop.position
        module = strategy.lightning_module
        owed = Owed.VALIDATION if validation.is_under_way else self.epoch_loop.owed
        waits = module is not None and self.epoch_loop.gradients_wait
        gradients = strategy.gather_gradients(module) if waits and module is not None else None
        # Nobody else looks at the clock, and equal runs leave equal checkpoints.
        since_s = 0.0 if self.settings.val_check_time is None else self.epoch_loop.since_validation_s
        return FitPosition(validation, int(owed), gradients, since_s, self._cut)

    @property
    def settings(self) -> Settings:
        """Every flag."""
        return self.run_context.settings

    @property
    def val_loop(self) -> EvaluateLoop:
        """The validation inside."""
        return self.epoch_loop.val_loop

    @property
    def done(self) -> when.StopReason | None:
        """Why no further epoch begins, or None if one does."""
        settings, counts = self.run_context.settings, self.counts
        return when.fit_is_done(
            epochs=counts.epoch.total,
            steps=counts.global_step,
            num_batches=self.max_batches,
            max_epochs=settings.max_epochs if settings.max_epochs is not None else -1,
            max_steps=settings.max_steps,
            min_epochs=settings.min_epochs,
            min_steps=settings.min_steps,
            stop_requested=self.run_context.state.should_stop,
        )

    def estimated_steps(self) -> int | float:
        """Optimizer steps of the whole fit, counted from limits and length of the data; infinity if nobody knows."""
        settings = self.run_context.settings
        if settings.max_epochs == -1 and settings.max_steps == -1:
            return math.inf
        if Stage.TRAIN not in self.run_context.data.prepared:
            self._load()
        batches = self.max_batches
        if batches == math.inf or settings.max_epochs == -1:
            return settings.max_steps if settings.max_steps != -1 else math.inf
        epochs = max(settings.max_epochs or 0, 1)
        window = settings.accumulate_grad_batches
        # An epoch's last window steps also when it is short.
        decides = [one for one in self.run_context.hooks.callbacks if is_overridden("batches_to_a_step", one, Callback)]
        steps = math.ceil(batches / window) * epochs
        if decides:
            windows = ([one.batches_to_a_step(epoch) or 0 for one in decides] for epoch in range(epochs))
            steps = sum(math.ceil(batches / (max(asked) or window)) for asked in windows)
        return min(steps, settings.max_steps) if settings.max_steps != -1 else steps

    def run(self) -> when.StopReason:
        """Train until done. Returns why it ended."""
        run = self.run_context
        with run.state.inside(Stage.TRAIN), run.metrics.inside(Stage.TRAIN):
            # Somebody may have asked before how many batches there are.
            prepared = run.data.prepared.get(Stage.TRAIN) or self._load()
            self._check_restored()
            resumption = self._resumption()
            if prepared is not None:
                self._setup_data(prepared, resumption)
            if resumption is not None and resumption.after_epoch and prepared is not None:
                self._end_resumed_epoch()
            if reason := self.done:
                if self.restored is not None:  # what comes after this fit draws what it would have drawn
                    restore_rng(run, self.restored)
                return reason
            self._advise()
            self._setup_validation_data()
            self.epoch_loop.setup_steps()
            self.epoch_loop.start_clock()
            run.metrics.begin_epoch()
            run.hooks.on_train_start()
            if self.restored is not None:
                restore_rng(run, self.restored)
                self.epoch_loop.start_clock(self.restored.get("since_validation_s", 0.0))
                self._restore_gradients(self.restored.get("gradients"))
                self.restored = None
            inside_epoch = resumption is not None and resumption.inside_epoch
            while reason is None:
                self._run_epoch(begun=inside_epoch)
                inside_epoch = False
                reason = self.done
                if reason is None:
                    if run.state.should_stop:
                        self._tell_of_waiting()
                    run.metrics.begin_epoch()
            run.hooks.on_train_end()
            return reason

    def _end_resumed_epoch(self) -> None:
        """What the hooks at the end of an epoch are followed by, where a checkpoint was written in one of them."""
        self.epoch_loop.setup_steps()
        if self.restored is not None:
            restore_rng(self.run_context, self.restored)
        self.epoch_loop.after_epoch(self.counts.epoch.total - 1)

    def _tell_of_waiting(self) -> None:
        settings, counts = self.run_context.settings, self.counts
        rank_zero_info(
            f"A stop was asked for, and training goes on: {counts.epoch.total} epochs and {counts.global_step} steps"
            f" are done, and Trainer(min_epochs={settings.min_epochs}, min_steps={settings.min_steps}) wants more."
        )

    def _restore_gradients(self, saved: list[Gradients] | None) -> None:
        strategy = self.run_context.strategy
        if saved is None or strategy.lightning_module is None:
            return
        if not strategy.put_back_gradients(strategy.lightning_module, saved):
            rank_zero_warn(
                f"The checkpoint was written by {len(saved)} processes inside an accumulation window; this run has"
                f" {strategy.world_size}. Each process had the gradients of its own part of the parameters, so those"
                " of the window's first batches are lost. Resume with as many processes to go on exactly."
            )

    def reload(self) -> None:
        """Ask for the training loaders anew before the next batch: what they are made from has changed.

        To be called before an epoch's batches begin.
        """
        if self.run_context.data.prepared.pop(Stage.TRAIN, None) is not None:
            self._setup_data(self._load(), None)  # type: ignore[arg-type]  # there were batches before

    def _advise(self) -> None:
        run, batches = self.run_context, self.max_batches
        every = run.settings.log_every_n_steps or 0
        if run.metrics.loggers and batches < every and not run.settings.fast_dev_run:
            warn_once(
                f"Trainer(log_every_n_steps={every}) is more than an epoch has batches ({batches})."
                " Most epochs send no values of steps to the loggers. Pass a smaller number to see them.",
                category=PossibleUserWarning,
            )

    def _check_restored(self) -> None:
        epochs, limit = self.counts.epoch.total, self.run_context.settings.max_epochs
        if self.restored is not None and limit not in (None, -1) and epochs > limit:
            raise ConfigurationError(
                f"Trainer(max_epochs={limit}) is less than the {epochs} epochs that the checkpoint of `ckpt_path` has"
                " behind it. There is nothing left to train, and less cannot be made of it."
                f" Pass max_epochs={epochs + 1} or more, or load the weights alone with load_from_checkpoint."
            )

    def _resumption(self) -> Resumption | None:
        counts = self.counts
        self.run_context.data.seed = None if self.restored is None else self.restored.get("seed")
        if self.restored is None:
            # What an earlier fit on this Trainer had in work when it ended is not gone on with: its data is gone.
            counts.epoch.abandon()
            counts.batch.abandon()
            return None
        self._cut = None
        if "validation" in self.restored:
            self.val_loop.go_on_from(**self.restored["validation"])
        owed = self.restored.get("owed")
        return resume(counts, None if owed is None else Owed(owed))

    def _load(self) -> PreparedLoaders | None:
        """The training loaders; None if the user wants no batch of them."""
        run = self.run_context
        if run.settings.limit_train_batches == 0:
            self.max_batches = 0
            return None
        prepared = load(run, Stage.TRAIN, self.counts.epoch.total)
        [self.max_batches] = limited([prepared.length], run.settings.limit_train_batches, Stage.TRAIN)
        return prepared

    def _setup_data(self, prepared: PreparedLoaders, resumption: Resumption | None) -> None:
        settings = self.run_context.settings
        if resumption is not None:
            prepared.set_epoch(self.counts.epoch.total)
            # Between two epochs too: generators and samplers of the user run on from epoch to epoch.
            if self.restored and (saved := self.restored.get("data")):
                place, count = self.run_context.strategy.own_values
                state = saved[place] if len(saved) == count else saved[0]
                loaded_in, every = state.get("loaded_in_epoch", 0), settings.reload_dataloaders_every_n_epochs
                # Between two epochs, the loaders of the first may be due to be asked for anew: that has just been done.
                if resumption.inside_epoch or not is_stale(loaded_in, self.counts.epoch.total, every):
                    prepared.load_state_dict(state)
            if not resumption.inside_epoch:
                prepared.set_epoch(self.counts.epoch.total)
        batches = self.max_batches
        if resumption is not None and resumption.inside_epoch:
            # An epoch that another number of processes has begun has another length.
            [batches] = limited([prepared.length], settings.limit_train_batches, Stage.TRAIN)
        self._is_odd_epoch = batches != self.max_batches
        self.epoch_loop.setup_data(prepared, batches, resumption, is_odd=self._is_odd_epoch)

    def _setup_validation_data(self) -> None:
        """Validation loaders are made before training begins, if the first epoch needs them."""
        run, data = self.run_context, self.run_context.data
        self.epoch_loop.validates = validation_is_possible(run)
        if not self.epoch_loop.validates:
            return
        first = when.validates_in_epoch(self.counts.epoch.total, run.settings.check_val_every_n_epoch)
        if self.restored is not None:  # they were there, and callbacks decide by that when they save
            first = first or bool(run.settings.num_sanity_val_steps) or any(self.val_loop.position.seen_of)
        if Stage.VALIDATE in data.prepared or first:
            with run.state.inside(Stage.VALIDATE):
                self.val_loop.setup_data()
            self.epoch_loop.validates = not self.val_loop.skips

    def _run_epoch(self, *, begun: bool) -> None:
        run, counts, hooks = self.run_context, self.counts, self.run_context.hooks
        every = run.settings.reload_dataloaders_every_n_epochs
        self._cut = None
        run.signals.begin_next()  # before anything of this epoch: a run that ends here goes on with all of it
        if not begun and run.data.prepared[Stage.TRAIN].is_stale(counts.epoch.total, every):
            self._setup_data(self._load(), None)  # type: ignore[arg-type]  # there were batches before
        if not begun:
            run.data.set_epoch(Stage.TRAIN, counts.epoch.total)
            if self._is_odd_epoch:
                self._setup_data(run.data.prepared[Stage.TRAIN], None)
                self.epoch_loop.setup_steps()
            counts.begin_epoch()
            counts.epoch.ready()
            hooks.on_train_epoch_start()
            counts.epoch.started()
        hooks.timed("run_training_epoch", self.epoch_loop.run)()
        if self.epoch_loop.was_cut:
            self._cut = CutEpoch(legacy.write_fit(counts), run.metrics.state_dict())
        elif begun:  # an epoch with no batch left has not used up its place in the data
            run.data.set_epoch(Stage.TRAIN, counts.epoch.total + 1)
        self.epoch_loop.check_went_on()
        counts.epoch.processed()
        run.metrics.end_batches()
        hooks.on_train_epoch_end()
        self.epoch_loop.after_epoch(counts.epoch.total)
        counts.epoch.completed()


def validation_is_possible(run: RunContext) -> bool:
    """Has the module a validation step, are there loaders for it, and is it not switched off?"""
    module = run.strategy.lightning_module
    return (
        module is not None
        and is_overridden("validation_step", module)
        and run.data.sources[Stage.VALIDATE].is_defined()
        and run.settings.limit_val_batches != 0
    )
