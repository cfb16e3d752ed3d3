"""The read side of Trainer: what users and callbacks ask it, answered from the parts of the run."""

import signal
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.filesystem import is_local
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.selection import Selection
from fulmen.trainer.callbacks.checkpoint import Checkpoint
from fulmen.trainer.callbacks.progress_bar import ProgressBar
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.needs import LRSchedulerConfig
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.flags import TrainerFlags
from fulmen.trainer.loggers.base import Logger
from fulmen.trainer.loops.evaluate import EvaluateLoop
from fulmen.trainer.loops.fit import FitLoop
from fulmen.trainer.loops.fit import validation_is_possible as _validation_is_possible
from fulmen.trainer.loops.predict import PredictLoop
from fulmen.trainer.loops.when import logs_after, num_sanity_batches
from fulmen.trainer.metrics.outlets import asked
from fulmen.trainer.profilers.base import Profiler
from fulmen.trainer.run.context import RunContext
from fulmen.trainer.run.settings import Settings
from fulmen.trainer.run.state import RunState
from fulmen.trainer.stages import EntryPoint, Stage, Status
from fulmen.trainer.strategies.base import Strategy

if TYPE_CHECKING:
    from fulmen.trainer.callbacks.early_stopping import EarlyStopping


def _runs(stage: Stage, doc: str) -> Any:
    """A property: does `stage` run now? Set, it lets it run, or not, in place of the one that does."""

    def read(self: "TrainerProperties") -> bool:
        return self.state.stage is stage

    def write(self: "TrainerProperties", runs: bool) -> None:
        if runs or self.state.stage is stage:
            self.state.stage = stage if runs else None

    return property(read, write, doc=doc)


class TrainerProperties(TrainerFlags):
    """The properties of `Trainer`. It owns nothing: every answer comes from the context or a loop."""

    context: RunContext
    fit_loop: FitLoop
    validate_loop: EvaluateLoop
    test_loop: EvaluateLoop
    predict_loop: PredictLoop
    _selection: Selection
    _ckpt_path: str | Path | None

    # ---- how it stands -------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """Every flag."""
        return self.context.settings

    @property
    def state(self) -> RunState:
        """Status, entry point and stage."""
        return self.context.state

    @property
    def should_stop(self) -> bool:
        """Shall the fit end after this batch, once the minimum of epochs and steps is done?"""
        return self.context.state.should_stop

    @should_stop.setter
    def should_stop(self, should_stop: bool) -> None:
        self.context.state.should_stop = should_stop

    @property
    def interrupted(self) -> bool:
        """Did the last run end before its time?"""
        return self.state.status == Status.INTERRUPTED

    @property
    def received_sigterm(self) -> bool:
        """Has a signal asked this run to end?"""
        return self.context.signals.caught not in (0, signal.SIGINT)

    training: bool = _runs(Stage.TRAIN, "Is it training now?")
    validating: bool = _runs(Stage.VALIDATE, "Is it validating now?")
    testing: bool = _runs(Stage.TEST, "Is it testing now?")
    predicting: bool = _runs(Stage.PREDICT, "Is it predicting now?")
    sanity_checking: bool = _runs(Stage.SANITY_CHECK, "Is the sanity check running now?")

    @property
    def evaluating(self) -> bool:
        """Is it validating (in the sanity check too) or testing now?"""
        return self.state.stage is not None and self.state.stage.evaluating

    # ---- where it stands -----------------------------------------------------------------------------------------

    @property
    def current_epoch(self) -> int:
        """Epochs completed: the 0-based number of the one that runs."""
        return self.fit_loop.counts.epoch.total

    @property
    def global_step(self) -> int:
        """Optimizer steps made, over all epochs."""
        return self.fit_loop.counts.global_step

    @property
    def is_last_batch(self) -> bool:
        """Is it the last batch of its epoch that runs?"""
        return self.fit_loop.counts.is_last_batch

    @property
    def max_epochs(self) -> int | None:
        """Epochs after which a fit ends; -1 is none."""
        return self.settings.max_epochs

    @property
    def min_epochs(self) -> int | None:
        """Epochs before which it is not stopped."""
        return self.settings.min_epochs

    @property
    def max_steps(self) -> int:
        """Optimizer steps after which a fit ends; -1 is none."""
        return self.settings.max_steps

    @property
    def min_steps(self) -> int | None:
        """Optimizer steps before which it is not stopped."""
        return self.settings.min_steps

    @property
    def num_training_batches(self) -> int | float:
        """Batches of a training epoch; infinity if unknown."""
        return self.fit_loop.max_batches

    @property
    def val_check_batch(self) -> int | float:
        """Training batches from validation to validation; infinity: at the end of an epoch."""
        return self.fit_loop.epoch_loop.val_check_batch

    @property
    def num_val_batches(self) -> list[int | float]:
        """Batches of each validation loader."""
        loop = self.validate_loop if self.state.fn is EntryPoint.VALIDATE else self.fit_loop.val_loop
        return loop.max_batches or loop.known_batches  # in the sanity check it is another loop that runs

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Batches of each validation loader in the sanity check."""
        loop = self.fit_loop.val_loop
        return num_sanity_batches(self.num_sanity_val_steps, loop.max_batches or loop.known_batches)

    @property
    def num_test_batches(self) -> list[int | float]:
        """Batches of each test loader."""
        return self.test_loop.max_batches

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Batches of each prediction loader."""
        return self.predict_loop.max_batches

    @property
    def enable_validation(self) -> bool:
        """Can a fit of this module validate?"""
        return Stage.VALIDATE in self.context.data.sources and _validation_is_possible(self.context)

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the whole fit, infinity if nobody knows; for schedulers that need their number.

        Raises:
            ConfigurationError: Outside of a fit.
        """
        if self.state.fn is not EntryPoint.FIT or Stage.TRAIN not in self.context.data.sources:
            raise ConfigurationError(
                "Trainer.estimated_stepping_batches was read outside of a fit. It is counted from the training data,"
                " which only a fit knows. Read it in configure_optimizers or a hook of fit."
            )
        return self.fit_loop.estimated_steps()

    # ---- the parts -----------------------------------------------------------------------------------------------

    @property
    def strategy(self) -> Strategy:
        """How the module runs on devices."""
        return self.context.strategy

    @property
    def accelerator(self) -> Accelerator:
        """The kind of hardware."""
        return self._selection.accelerator

    @property
    def precision_plugin(self) -> Precision:
        """How numbers are held and computed."""
        return self.strategy.precision_plugin

    @property
    def precision(self) -> str:
        """The name of the precision, "32-true" for example."""
        return self.strategy.precision

    @property
    def scaler(self) -> Any:
        """The gradient scaler, where the precision has one."""
        return getattr(self.precision_plugin, "scaler", None)

    @property
    def profiler(self) -> Profiler:
        """What times the run."""
        return self.context.profiler

    @property
    def lightning_module(self) -> LightningModule | None:
        """The module of the current or last run."""
        return self.strategy.lightning_module

    @property
    def model(self) -> nn.Module | None:
        """The module as the strategy wrapped it."""
        return self.strategy.model

    @property
    def datamodule(self) -> LightningDataModule | None:
        """The datamodule of the current or last run."""
        return self.context.data.datamodule

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers of the current or last fit."""
        return self.strategy.optimizers

    @optimizers.setter
    def optimizers(self, optimizers: list[Optimizer]) -> None:
        self.strategy.optimizers = optimizers

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """The schedulers, and when they step."""
        return self.strategy.lr_scheduler_configs

    @property
    def num_nodes(self) -> int:
        """How many machines take part."""
        return self._selection.num_nodes

    @property
    def num_devices(self) -> int:
        """Devices of one machine."""
        return self._selection.num_devices

    @property
    def device_ids(self) -> list[int]:
        """Indices of the devices of this machine."""
        return [index if device.index is None else device.index for index, device in enumerate(self._selection.devices)]

    @property
    def world_size(self) -> int:
        """Number of processes in all."""
        return self.strategy.world_size

    @property
    def global_rank(self) -> int:
        """Number of this process among all."""
        return self.strategy.global_rank

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine."""
        return self.strategy.local_rank

    @property
    def node_rank(self) -> int:
        """Number of this machine."""
        return self.strategy.node_rank

    @property
    def is_global_zero(self) -> bool:
        """Is this the first of all processes?"""
        return self.strategy.is_global_zero

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any] | None:
        """What a sampler needs to give each process its share; None for one process."""
        return self.strategy.distributed_sampler_kwargs

    # ---- callbacks -----------------------------------------------------------------------------------------------

    @property
    def callbacks(self) -> list[Callback]:
        """The callbacks, in the order in which they are called."""
        return self.context.hooks.callbacks

    @callbacks.setter
    def callbacks(self, callbacks: list[Callback]) -> None:
        self.context.hooks.callbacks = callbacks
        self.context.hooks.compile()

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """The callbacks that save checkpoints."""
        return [callback for callback in self.callbacks if isinstance(callback, Checkpoint)]

    @property
    def checkpoint_callback(self) -> Checkpoint | None:
        """The first of them."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> "list[EarlyStopping]":
        """The callbacks that stop early."""
        from fulmen.trainer.callbacks.early_stopping import EarlyStopping

        return [callback for callback in self.callbacks if isinstance(callback, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> "EarlyStopping | None":
        """The first of them."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> ProgressBar | None:
        """The progress bar, if there is one."""
        return next((callback for callback in self.callbacks if isinstance(callback, ProgressBar)), None)

    # ---- metrics and loggers -------------------------------------------------------------------------------------

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """Everything logged, as callbacks see it."""
        return self.context.metrics.callback_metrics

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """What goes to the loggers."""
        return self.context.metrics.logged_metrics

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What the progress bar shows."""
        return self.context.metrics.progress_bar_metrics

    @property
    def logs_this_step(self) -> bool:
        """Do metrics of the training batch at hand go to the loggers, by `log_every_n_steps`?"""
        step, every = self.fit_loop.counts.stepped_batches, self.log_every_n_steps or 0
        return bool(self.loggers) and logs_after(step, every, stopping=self.should_stop)

    @property
    def loggers(self) -> list[Logger]:
        """The loggers."""
        return self.context.metrics.loggers

    @loggers.setter
    def loggers(self, loggers: Iterable[Logger] | None) -> None:
        self.context.metrics.loggers = list(loggers or [])

    @property
    def logger(self) -> Logger | None:
        """The first logger."""
        return self.loggers[0] if self.loggers else None

    @logger.setter
    def logger(self, logger: Logger | None) -> None:
        self.loggers = [logger] if logger is not None else []

    @property
    def default_root_dir(self) -> str:
        """Where files go that no logger has a place for; an absolute path on this machine, or a remote one."""
        root = self.settings.default_root_dir
        return str(Path(root).expanduser().absolute()) if is_local(root) else root

    @property
    def log_dir(self) -> str | None:
        """The folder of this run, the same on every process."""
        logger = self.logger
        folder = self.default_root_dir
        if logger is not None:
            folder = asked(logger, "log_dir") or asked(logger, "save_dir") or folder
        return self.strategy.broadcast(folder)

    # ---- data ----------------------------------------------------------------------------------------------------

    @property
    def train_dataloader(self) -> Any:
        """The training loaders as the user gave them; None before they are loaded."""
        return self.context.data.original(Stage.TRAIN)

    @property
    def val_dataloaders(self) -> Any:
        """The validation loaders as the user gave them; None before they are loaded."""
        return self.context.data.original(Stage.VALIDATE)

    @property
    def test_dataloaders(self) -> Any:
        """The test loaders as the user gave them; None before they are loaded."""
        return self.context.data.original(Stage.TEST)

    @property
    def predict_dataloaders(self) -> Any:
        """The prediction loaders as the user gave them; None before they are loaded."""
        return self.context.data.original(Stage.PREDICT)

    @property
    def ckpt_path(self) -> str | Path | None:
        """The checkpoint that the current or last run was restored from."""
        return self._ckpt_path

    @ckpt_path.setter
    def ckpt_path(self, ckpt_path: str | Path | None) -> None:
        self._ckpt_path = ckpt_path
        self._ckpt_path_was_set = bool(ckpt_path)

    _ckpt_path_was_set = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first process, past the progress bar if there is one."""
        if not self.is_global_zero:
            return
        bar = self.progress_bar_callback
        if bar is not None and self.state.status == Status.RUNNING:
            bar.print(*args, **kwargs)
        else:
            print(*args, **kwargs)

    @property
    def root_device(self) -> torch.device:
        """The device of this process."""
        return self.strategy.root_device
