"""Train a few steps with a rising learning rate, and watch the loss."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_info, rank_zero_warn
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import StopRun
from fulmen.trainer.rehearsal import rehearsing
from fulmen.trainer.trainer import Trainer
from fulmen.tuner.lr_suggestion import WIDTH, Smoother, has_diverged, smoothed, steepest_descent, swept_rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODES = ("linear", "exponential")
NAMES = ("lr", "learning_rate")  # where a learning rate is looked for if nobody says


@dataclass(frozen=True)
class SweepOptions:
    """How to sweep; the names are the arguments of `Tuner.lr_find`.

    Raises:
        ArgumentTypeError: For a value of the wrong type.
        ConfigurationError: For a value out of range.
    """

    min_lr: float = 1e-8
    max_lr: float = 1
    num_training: int = 100
    mode: str = "exponential"
    early_stop_threshold: float | None = 4.0
    call: str = "Tuner.lr_find"
    steps_argument: str = "num_training"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigurationError(
                f"{self.call}(mode={self.mode!r}) is unknown. The learning rate rises by equal ratios or by equal"
                " differences. Pass mode='exponential' or mode='linear'."
            )
        for name in ("min_lr", "max_lr"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ArgumentTypeError(
                    f"{self.call}({name}={value!r}) is no number. It bounds the learning rates that are tried."
                    f" Pass for example {name}={1e-8 if name == 'min_lr' else 1.0}."
                )
        if not 0 < self.min_lr < self.max_lr < math.inf:
            raise ConfigurationError(
                f"{self.call}(min_lr={self.min_lr}, max_lr={self.max_lr}) is no range to sweep. The learning rate rises"
                " from min_lr to max_lr, both positive. Pass a smaller min_lr, or a larger max_lr."
            )
        steps = self.num_training
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ConfigurationError(
                f"{self.call}({self.steps_argument}={steps!r}) is no number of steps. So many learning rates are tried,"
                f" one in each step. Pass a positive int, such as {self.steps_argument}=100."
            )
        threshold = self.early_stop_threshold
        if threshold is not None and not threshold > 1:
            raise ConfigurationError(
                f"{self.call}(early_stop_threshold={threshold!r}) would end every sweep at once. The sweep ends when"
                " the loss is so many times the best. Pass a number above 1, such as 4.0, or None to never end early."
            )


class LRFinder:
    """The curve of a sweep.

    Attributes:
        mode, lr_min, lr_max, num_training: What was asked for.
        results: "lr": the learning rate of every step that was made; "loss": the smoothed loss; "raw_loss": the loss
            itself, as it was before that step.
    """

    def __init__(self, mode: str, lr_min: float, lr_max: float, num_training: int) -> None:
        self.mode = mode
        self.lr_min = lr_min
        self.lr_max = lr_max
        self.num_training = num_training
        self.results: dict[str, list[float]] = {}

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """The learning rate at which the loss falls fastest; None, with a warning, if it falls nowhere.

        Args:
            skip_begin: So many steps at the start are not looked at.
            skip_end: So many at the end are not.
        """
        for name, value in (("skip_begin", skip_begin), ("skip_end", skip_end)):
            if not isinstance(value, int) or value < 0:
                raise ConfigurationError(
                    f"LRFinder.suggestion({name}={value!r}) is no number of steps. So many steps of the curve are not"
                    f" looked at. Pass 0 or a positive int."
                )
        index = self._suggested(skip_begin, skip_end)
        if index is not None:
            return self.results["lr"][index]
        num_steps = len(self.results.get("loss", ()))
        if num_steps - skip_begin - skip_end < 2:
            why = (
                f"The sweep made {num_steps} steps, of which suggestion(skip_begin={skip_begin}, skip_end={skip_end})"
                " leaves fewer than two. Sweep with more steps, or skip fewer."
            )
        else:
            why = (
                "The loss falls nowhere on the curve. Look at it with plot(); sweep a wider range, with more steps, or"
                " on a larger batch."
            )
        rank_zero_warn(f"No learning rate is suggested. {why}")
        return None

    def plot(self, suggest: bool = False, show: bool = False, ax: "Axes | None" = None) -> Any:
        """Draw the curve: raw and smoothed loss over the learning rate. Needs matplotlib.

        Args:
            suggest: Mark the suggested learning rate?
            show: Open a window?
            ax: Draw here; None makes a new figure.

        Returns:
            The matplotlib figure.

        Raises:
            MissingPackageError: If matplotlib is not installed.
        """
        from fulmen.tuner.lr_plot import draw_sweep

        index = self._suggested() if suggest else None
        return draw_sweep(self.results, index, is_linear=self.mode == "linear", show=show, ax=ax)

    def _suggested(self, skip_begin: int = 10, skip_end: int = 1) -> int | None:
        return steepest_descent(self.results.get("loss", []), skip_begin, skip_end)


class Sweep(Callback):
    """Sets the learning rate before every step and notes the loss after it. It belongs to a trial.

    Args:
        options: How to sweep.

    Attributes:
        rates: The learning rate of every step of the sweep.
        used, losses: The learning rates of the steps that were made, and the losses before them.
        schedulers: What the module can ask for once the loop has none to step; None leaves all as it is.
    """

    def __init__(self, options: SweepOptions) -> None:
        self.rates = swept_rates(
            options.min_lr, options.max_lr, options.num_training, is_linear=options.mode == "linear"
        )
        self.used: list[float] = []
        self.losses: list[float] = []
        self.schedulers: list[Any] | None = None
        self._options = options
        self._smoother = Smoother()
        self._best = math.inf
        self._window: list[Tensor] = []  # the losses since the last step
        self._num_steps = 0
        self._epoch_began_at = 0
        self._ratios: list[list[float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how the learning rates of the parameter groups relate: a sweep keeps that."""
        if self.schedulers is not None:
            trainer.strategy.lr_scheduler_configs = self.schedulers
        for optimizer in trainer.strategy.optimizers:
            rates = [float(group["lr"]) for group in optimizer.param_groups]
            self._ratios.append([rate / rates[0] if rates[0] else 1.0 for rate in rates])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the epoch begins."""
        self._epoch_began_at = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the learning rate early enough for optimizers that read it before their closure."""
        self._set_rate(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Set it again: schedulers that the module steps may have changed it."""
        self._set_rate(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss, if a step was made."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._window.append(loss.detach().float() * trainer.accumulate_grad_batches)  # callbacks hear it divided
        if trainer.global_step == self._num_steps:
            return  # gradients are still being accumulated
        used = self.rates[min(self._num_steps, len(self.rates) - 1)]
        self._num_steps = trainer.global_step
        if not self._window:
            return
        # The same loss on every process: all take the same decision.
        mean = trainer.strategy.reduce(torch.stack(self._window).mean(), reduce_op="mean")
        self._window.clear()
        self._note(used, float(mean), trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a sweep that would never make a step."""
        if trainer.global_step == self._epoch_began_at:
            trainer.should_stop = True

    def _set_rate(self, trainer: Trainer) -> None:
        rate = self.rates[min(trainer.global_step, len(self.rates) - 1)]
        for optimizer, ratios in zip(trainer.strategy.optimizers, self._ratios, strict=True):
            for group, ratio in zip(optimizer.param_groups, ratios, strict=False):
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate * ratio)  # capturable optimizers keep it on the device
                else:
                    group["lr"] = rate * ratio

    def _note(self, rate: float, loss: float, trainer: Trainer, module: LightningModule) -> None:
        threshold = self._options.early_stop_threshold
        if not math.isfinite(loss):
            if not self.losses:
                raise ConfigurationError(
                    f"{self._options.call} met a loss of {loss} in the very first step, at a learning rate of {rate:g}."
                    f" The step of {class_name(module)} gives no number even before anything was learned, so there"
                    " is no curve. Check the data for NaN and infinity, or look with Trainer(detect_anomaly=True)."
                )
            if threshold is not None:
                trainer.should_stop = True
                return
        self.used.append(rate)
        self.losses.append(loss)
        mean = self._smoother.add(loss)
        if threshold is not None and len(self.losses) > 1 and has_diverged(mean, self._best, threshold):
            rank_zero_info(f"The sweep ends early: at a learning rate of {rate:g} the loss has diverged.")
            trainer.should_stop = True
        self._best = min(self._best, mean)


def sweep(options: SweepOptions, trainer: Trainer) -> LRFinder:
    """Sweep in the middle of a fit; afterwards that fit is as before.

    Raises:
        ConfigurationError: If there is not exactly one optimizer, or no loss.
    """
    watching = Sweep(options)
    with rehearsing(
        trainer,
        callbacks=[watching],
        max_steps=options.num_training,
        max_epochs=-1,
        min_steps=None,
        min_epochs=None,
        limit_val_batches=0,
        log_every_n_steps=0,
    ) as trial:
        module = trial.lightning_module
        name = class_name(module)
        num_optimizers = len(trial.strategy.optimizers)
        if num_optimizers != 1:
            raise ConfigurationError(
                f"{options.call} needs exactly one optimizer, and {name}.configure_optimizers() gave {num_optimizers}."
                " With several it cannot be known whose learning rate to raise."
                " Return a single one while you look for its learning rate, and the others with fixed rates later."
            )
        if module is not None and module.automatic_optimization:
            # The sweep is the only schedule; the module may still ask for those that it made.
            watching.schedulers, trial.strategy.lr_scheduler_configs = trial.strategy.lr_scheduler_configs, []
        with suppress(StopRun):  # the module has enough of the trial, not of the run around it
            trial.fit_loop.run()
    if not watching.losses:
        raise ConfigurationError(
            f"{options.call} saw no loss in any step of {name}. Either no batch was run, or training_step returned no"
            " loss, or the module made no optimizer step."
            " Return the loss from training_step, and give it batches (limit_train_batches)."
        )
    finder = LRFinder(options.mode, options.min_lr, options.max_lr, options.num_training)
    curve = smoothed(watching.losses, WIDTH * options.num_training)
    finder.results = {"lr": watching.used, "loss": curve, "raw_loss": watching.losses}
    return finder
