"""The tuner's two searches as callbacks: they run when a run begins, and the run goes on with what was found."""

from typing import Any, ClassVar

from fulmen.fabric.rank_zero import rank_zero_info, rank_zero_warn
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.optimization.configure import set_up_optimizers
from fulmen.trainer.stages import EntryPoint
from fulmen.trainer.trainer import Trainer
from fulmen.tuner.attributes import find_attribute
from fulmen.tuner.batch_size import MODES as _BATCH_SIZE_MODES
from fulmen.tuner.batch_size import (
    STAGES,
    BatchSizeOptions,
    BatchSizeTrials,
    find_batch_size_attribute,
    search_batch_size,
)
from fulmen.tuner.lr_sweep import MODES as _LR_MODES
from fulmen.tuner.lr_sweep import NAMES as _LR_NAMES
from fulmen.tuner.lr_sweep import LRFinder, SweepOptions, sweep

_TOO_SHORT = "{} looks for nothing under Trainer(fast_dev_run=...): a run of so few batches shows nothing."


class LearningRateFinder(Callback):
    """Looks for a learning rate before a fit trains, and lets it train with that.

    A subclass may call `lr_find` at other times, such as the beginning of an epoch.

    Args:
        min_lr, max_lr: The learning rates to sweep.
        num_training_steps: In so many steps.
        mode: "exponential" (equal ratios) or "linear" (equal differences).
        early_stop_threshold: End when the loss is above so many times the best; None: never.
        update_attr: Train with what was found? Else it is only looked for.
        attr_name: Where the learning rate lives; "" tries "lr" and "learning_rate".

    Attributes:
        optimal_lr: The curve, an `LRFinder`, when it was found.
    """

    SUPPORTED_MODES = _LR_MODES
    #: The run calls tuners before all other callbacks.
    tunes: ClassVar[bool] = True

    def __init__(
        self,
        min_lr: float = 1e-08,
        max_lr: float = 1,
        num_training_steps: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> None:
        self._options = SweepOptions(
            min_lr,
            max_lr,
            num_training_steps,
            mode,
            early_stop_threshold,
            call="LearningRateFinder",
            steps_argument="num_training_steps",
        )
        self._update_attr = update_attr
        self._attr_name = attr_name
        self.optimal_lr: LRFinder | None = None

    def lr_find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sweep; then, if wanted, set attribute and optimizers to what was found."""
        if trainer.fast_dev_run:
            rank_zero_warn(_TOO_SHORT.format("LearningRateFinder"))
            return
        attribute = None
        if self._update_attr:
            names = [self._attr_name] if self._attr_name else _LR_NAMES
            attribute = find_attribute(
                names, pl_module, trainer.datamodule, call="LearningRateFinder", argument="attr_name"
            )
        self.optimal_lr = sweep(self._options, trainer)
        found = self.optimal_lr.suggestion()
        if attribute is None or found is None:
            return
        attribute.write(found)
        rank_zero_info(f"LearningRateFinder sets {attribute.name!r} to {found:g}.")
        for optimizer in trainer.optimizers:
            first = optimizer.param_groups[0]["lr"]
            for group in optimizer.param_groups:
                group["lr"] = found * (group["lr"] / first if first else 1.0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search; nothing was trained yet, so optimizers and schedulers are made anew with what was found."""
        self.lr_find(trainer, pl_module)
        if self._update_attr and self.optimal_lr is not None:
            set_up_optimizers(trainer.context)


class BatchSizeFinder(Callback):
    """Looks for the largest batch size that fits into memory when a run begins, and lets it run with that.

    A subclass may call `scale_batch_size` at other times, such as the beginning of an epoch.

    Args:
        mode: "power": double while it fits; "binsearch": bisect to the exact limit, with larger jumps at first.
        steps_per_trial: Batches that every size must survive.
        init_val: The first size.
        max_trials: So many sizes are tried at most.
        batch_arg_name: Where the batch size lives.
        margin: mode="binsearch" stays below the limit by this part.
        max_val: Larger sizes are not tried.

    Attributes:
        optimal_batch_size: The size, when it was found.
        trials: What was tried.
    """

    SUPPORTED_MODES = _BATCH_SIZE_MODES
    #: The run calls tuners before all other callbacks.
    tunes: ClassVar[bool] = True

    def __init__(
        self,
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> None:
        self._options = BatchSizeOptions(
            mode, steps_per_trial, init_val, max_trials, batch_arg_name, margin, max_val, call="BatchSizeFinder"
        )
        self.optimal_batch_size: int | None = None
        self.trials: BatchSizeTrials | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Refuse at once what cannot be tuned."""
        if not trainer.fast_dev_run:
            find_batch_size_attribute(self._options, pl_module, trainer.context.data)

    def scale_batch_size(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search; then set the attribute, and let the run ask for its loaders anew."""
        if trainer.fast_dev_run:
            rank_zero_warn(_TOO_SHORT.format("BatchSizeFinder"))
            return
        self.trials = search_batch_size(self._options, trainer)
        self.optimal_batch_size = self.trials.suggestion()
        entry = trainer.state.fn
        assert entry is not None
        run = trainer.context
        find_batch_size_attribute(self._options, pl_module, run.data).write(self.optimal_batch_size)
        rank_zero_info(f"BatchSizeFinder sets {self._options.batch_arg_name!r} to {self.optimal_batch_size}.")
        if entry is EntryPoint.FIT:
            trainer.fit_loop.reload()
            return
        run.data.prepared.pop(STAGES[entry], None)
        loop: Any = {
            EntryPoint.VALIDATE: trainer.validate_loop,
            EntryPoint.TEST: trainer.test_loop,
            EntryPoint.PREDICT: trainer.predict_loop,
        }[entry]
        loop.setup_data()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search; schedulers that count the steps of the fit are made anew, for there are other batches now."""
        self.scale_batch_size(trainer, pl_module)
        if self.optimal_batch_size is not None:
            set_up_optimizers(trainer.context)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, unless the validation is part of a fit."""
        if trainer.state.fn is EntryPoint.VALIDATE:
            self.scale_batch_size(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search."""
        self.scale_batch_size(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search."""
        self.scale_batch_size(trainer, pl_module)
