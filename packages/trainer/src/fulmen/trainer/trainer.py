"""Trainer: flags in; fit, validate, test and predict out."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.rank_zero import rank_zero_info
from fulmen.trainer import lifecycle
from fulmen.trainer.checkpoint.dump import dump
from fulmen.trainer.checkpoint.durable import after_save
from fulmen.trainer.checkpoint.fetch import check_default, fetch
from fulmen.trainer.checkpoint.paths import stopped_path
from fulmen.trainer.checkpoint.requeue import Requeue
from fulmen.trainer.connectors.callbacks import choose_callbacks
from fulmen.trainer.connectors.checkpoint import choose_checkpoint
from fulmen.trainer.connectors.checks import check_callbacks, check_entry_point, check_module, check_path
from fulmen.trainer.connectors.data import attach_data
from fulmen.trainer.connectors.devices import choose_strategy
from fulmen.trainer.connectors.loggers import choose_loggers
from fulmen.trainer.connectors.notices import tell_of_flags, tell_of_run
from fulmen.trainer.connectors.profiler import choose_profiler
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.compiled import from_compiled, is_compiled_wrapper
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.data.sources import RunData
from fulmen.trainer.errors import CheckpointError, ConfigurationError
from fulmen.trainer.hooks.dispatch import Hooks
from fulmen.trainer.loggers.base import Logger
from fulmen.trainer.loops.evaluate import EvaluateLoop, Results
from fulmen.trainer.loops.predict import Predictions
from fulmen.trainer.metrics.board import MetricsBoard
from fulmen.trainer.metrics.print_results import print_results
from fulmen.trainer.processes import launch
from fulmen.trainer.profilers.base import Profiler
from fulmen.trainer.progress import legacy
from fulmen.trainer.properties import TrainerProperties
from fulmen.trainer.rehearsal import equip, sanity_check
from fulmen.trainer.run.context import RunContext
from fulmen.trainer.run.environment import defaults_from_environment
from fulmen.trainer.run.settings import Settings, root_folder
from fulmen.trainer.run.signals import Signals
from fulmen.trainer.run.state import RunState
from fulmen.trainer.stages import EntryPoint, Stage
from fulmen.trainer.strategies.base import Strategy
from fulmen.trainer.strategies.layer_sync import LayerSync

if TYPE_CHECKING:
    from fulmen.fabric.forecast.figures import Forecast

Plugin = Precision | ClusterEnvironment | CheckpointIO | LayerSync
PrecisionName = Literal[
    "transformer-engine",
    "transformer-engine-float16",
    "16-true",
    "16-mixed",
    "bf16-true",
    "bf16-mixed",
    "32-true",
    "64-true",
]
PrecisionFlag = Literal[64, 32, 16] | PrecisionName | Literal["64", "32", "16", "bf16"]


class Trainer(TrainerProperties):
    """Runs a LightningModule: `fit` trains it, `validate` and `test` measure it, `predict` asks it.

    An argument that is not passed is taken from the environment, where `FULMEN_TRAINER_` and its name are set, or
    `PL_TRAINER_` and its name.

    Args:
        accelerator: Kind of hardware: "cpu", "gpu", "cuda", "mps", "tpu", "auto", or an Accelerator.
        strategy: How the module runs on several devices: "auto", "ddp", "ddp_spawn", ..., or a Strategy.
        devices: How many, or which: an int, a list of indices, "auto", or -1 for all.
        num_nodes: Number of machines.
        precision: "32-true", "16-mixed", "bf16-mixed", "64-true", ...; None is "32-true".
        logger: Where metrics go; True or None: CSV files in `default_root_dir`; False: nowhere.
        callbacks: What is added to the run.
        fast_dev_run: Run so many batches (True: 1) of everything once, and keep nothing: does the program work?
        max_epochs: The fit ends after so many epochs; -1: no bound; None: 1000, unless there is another bound.
        min_epochs: It is not stopped before.
        max_steps: The fit ends after so many optimizer steps; -1: no bound.
        min_steps: It is not stopped before.
        max_time: It ends after this time: "DD:HH:MM:SS", a timedelta, or a dict of its arguments.
        limit_train_batches: Batches of an epoch (int) or a part of them (float).
        limit_val_batches: The same for validation; 0 switches it off.
        limit_test_batches: The same for testing.
        limit_predict_batches: The same for predicting.
        overfit_batches: Train and validate on these few batches only, in the same order each epoch.
        val_check_interval: Validate after so many batches (int), parts of an epoch (float) or time.
        check_val_every_n_epoch: Validate in every n-th epoch; None counts batches across epochs.
        num_sanity_val_steps: Validation batches before training begins, 2 unless said; -1: all.
        log_every_n_steps: Steps from row to row in the loggers, 50 unless said; 0: no rows of steps.
        enable_checkpointing: Keep checkpoints, with ModelCheckpoint unless another is among the callbacks?
        enable_progress_bar: Show one?
        enable_model_summary: Print a summary when a fit begins?
        accumulate_grad_batches: Add up gradients over so many batches before a step.
        gradient_clip_val: Bound of gradients before each step.
        gradient_clip_algorithm: "norm" (of all together; None is this) or "value" (each).
        deterministic: Use deterministic algorithms only; "warn" where there is none.
        benchmark: Let cuDNN choose the fastest convolution.
        inference_mode: Evaluate in `torch.inference_mode` rather than `no_grad`.
        use_distributed_sampler: Give each process its share of the data.
        profiler: "simple", "advanced", "pytorch", "xla", or a Profiler.
        detect_anomaly: Let autograd look for NaN in backward; slow.
        barebones: Leave out all that costs time beside the steps.
        plugins: Precision, cluster environment, checkpoint IO, layer sync.
        sync_batchnorm: Let batch norm see the batches of all processes.
        reload_dataloaders_every_n_epochs: Ask for the loaders anew; 0: never.
        default_root_dir: Where files go that have no other place; None: the current folder.
        enable_autolog_hparams: Hand hyperparameters to the loggers.
        model_registry: Name of a model registry, for `ckpt_path="registry:..."`.

    Raises:
        MisconfigurationException: For a wrong argument, before any work begins.
    """

    @defaults_from_environment
    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        strategy: str | Strategy = "auto",
        devices: list[int] | str | int = "auto",
        num_nodes: int = 1,
        precision: PrecisionFlag | None = None,
        logger: Logger | Iterable[Logger] | bool | None = None,
        callbacks: list[Callback] | Callback | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | dict[str, int] | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
        deterministic: bool | Literal["warn"] | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        profiler: Profiler | str | None = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        plugins: Plugin | list[Plugin] | None = None,
        sync_batchnorm: bool = False,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | Path | None = None,
        enable_autolog_hparams: bool = True,
        model_registry: str | None = None,
    ) -> None:
        settings = Settings(
            max_epochs=max_epochs,
            min_epochs=min_epochs,
            max_steps=max_steps,
            min_steps=min_steps,
            max_time=max_time,
            fast_dev_run=fast_dev_run,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            overfit_batches=overfit_batches,
            val_check_interval=val_check_interval,
            check_val_every_n_epoch=check_val_every_n_epoch,
            num_sanity_val_steps=num_sanity_val_steps,
            log_every_n_steps=log_every_n_steps,
            accumulate_grad_batches=accumulate_grad_batches,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
            deterministic=deterministic,
            benchmark=benchmark,
            inference_mode=inference_mode,
            use_distributed_sampler=use_distributed_sampler,
            detect_anomaly=detect_anomaly,
            barebones=barebones,
            sync_batchnorm=sync_batchnorm,
            reload_dataloaders_every_n_epochs=reload_dataloaders_every_n_epochs,
            enable_autolog_hparams=enable_autolog_hparams,
            default_root_dir=root_folder(default_root_dir),
        )
        tell_of_flags(settings)
        bound, self._selection = choose_strategy(
            accelerator=accelerator,
            strategy=strategy,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            plugins=plugins,
            sync_batchnorm=sync_batchnorm,
        )
        metrics = MetricsBoard(choose_loggers(logger, settings), settings.default_root_dir)
        metrics.muted = "barebones=True" if barebones else None
        timing = choose_profiler(profiler, barebones=barebones)
        chosen = choose_callbacks(
            callbacks,
            settings,
            enable_checkpointing=enable_checkpointing,
            enable_progress_bar=enable_progress_bar,
            enable_model_summary=enable_model_summary,
        )
        self.model_registry = check_default(model_registry)
        self._ckpt_path = None
        self._requeue = Requeue.of(self._selection.environment)
        context = RunContext(
            settings=settings,
            state=RunState(),
            strategy=bound,
            hooks=Hooks(metrics, timing, self, chosen),
            data=RunData(),
            metrics=metrics,
            profiler=timing,
            signals=Signals(),
        )
        equip(self, context)

    # ---- entry points --------------------------------------------------------------------------------------------

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any | LightningDataModule | None = None,
        val_dataloaders: Any | None = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train the module.

        Args:
            model: The module.
            train_dataloaders: A DataLoader, or a list or dict of them; or a datamodule.
            val_dataloaders: The same for validation.
            datamodule: Gives the loaders, in their place.
            ckpt_path: Go on from this checkpoint; "best", "last" and "hpc" stand for one that was kept, and "auto" for
                the newest, or for a fresh start where there is none. Earlier runs count too. One that is damaged is
                passed over.
            weights_only: As for `torch.load`; None is True. False runs code from the file.
        """
        self.should_stop = False
        loaders = {"train_dataloaders": train_dataloaders, "val_dataloaders": val_dataloaders}
        self._run(EntryPoint.FIT, model, loaders, datamodule, ckpt_path, weights_only, self._fit)

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any | LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Results:
        """Run the validation set once.

        Args:
            model: The module; None is that of the last run.
            dataloaders: A DataLoader, or a list or dict of them; or a datamodule.
            ckpt_path: Load these weights first; "best", "last", "hpc" and "auto" as in `fit`.
            verbose: Print the results as a table?
            datamodule: Gives the loaders, in their place.
            weights_only: As in `fit`.

        Returns:
            What was logged, one dict for each loader.
        """
        return self._evaluate(
            EntryPoint.VALIDATE, self.validate_loop, model, dataloaders, datamodule, ckpt_path, weights_only, verbose
        )

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any | LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Results:
        """Run the test set once; arguments and answer as for `validate`."""
        return self._evaluate(
            EntryPoint.TEST, self.test_loop, model, dataloaders, datamodule, ckpt_path, weights_only, verbose
        )

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any | LightningDataModule | None = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> Predictions:
        """Ask the module for predictions.

        Args:
            model, dataloaders, datamodule, ckpt_path, weights_only: As for `validate`.
            return_predictions: False keeps none, so that memory does not grow; None is True.

        Returns:
            What `predict_step` returned: a list of batches, or one such list for each of several loaders.
        """
        self.predict_loop.return_predictions = return_predictions is not False
        loaders = {"dataloaders": dataloaders}
        predictions: Predictions = self._run(
            EntryPoint.PREDICT, model, loaders, datamodule, ckpt_path, weights_only, self.predict_loop.run
        )
        return predictions

    # ---- beside --------------------------------------------------------------------------------------------------

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Save all that is needed to go on from here; every process must call it.

        With `plugins=[AsyncCheckpointIO()]`, a run goes on while it is written; callbacks hear `on_checkpoint_saved`.

        Args:
            filepath: Where to; local or remote.
            weights_only: Leave out optimizers, schedulers and callbacks?
            storage_options: For the checkpoint IO.

        Raises:
            ConfigurationError: If there is no module yet.
            CheckpointError: If it cannot be written; nothing half-written stays behind. Also after a run that failed,
                where other processes do not come to save with this one.
        """
        if self.lightning_module is None:
            raise ConfigurationError(
                f"Trainer.save_checkpoint({str(filepath)!r}) has nothing to save."
                " No module has been run by this Trainer. Call fit, validate, test or predict first."
            )
        if self.interrupted and self.world_size > 1 and (reason := self.context.signals.why_alone()):
            raise CheckpointError(
                f"Trainer.save_checkpoint({str(filepath)!r}) was called in rank {self.global_rank} of"
                f" {self.world_size}, after {reason}. A checkpoint is written by all of them together, and others do"
                " not come: this one would wait for them. Go on from the last checkpoint that was saved before, or keep"
                " the weights of this rank by torch.save(trainer.lightning_module.state_dict(), ...)."
            )
        self._save(self._dump(weights_only=bool(weights_only)), filepath, storage_options)

    def plan(
        self,
        model: LightningModule,
        train_dataloaders: Any | LightningDataModule | None = None,
        datamodule: LightningDataModule | None = None,
        *,
        devices: int | None = None,
        num_nodes: int | None = None,
    ) -> "Forecast":
        """What a fit would take: mesh, shards, memory, collectives, steps, warnings. Nothing is trained or launched.

        Print it for a table of 80 columns; `as_dict()` is for JSON.

        Args:
            model: The module; it is not changed. A large one is best made in `configure_model`, or on the meta device.
            train_dataloaders, datamodule: As in `fit`; one batch is taken, of which only shapes and types count.
            devices, num_nodes: In the place of this Trainer's: how many on each machine, and machines. They need not
                exist.

        Raises:
            ConfigurationError: If the strategy is of a kind that cannot be forecast, or does not fit.
        """
        from fulmen.trainer.forecast import forecast_of_fit

        return forecast_of_fit(self, model, train_dataloaders, datamodule, devices, num_nodes)

    def init_module(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """A context in which a module is built on the device and in the precision of this Trainer at once.

        Args:
            empty_init: Leave the weights as they are in memory: they will be loaded from a checkpoint.
        """
        return self.strategy.tensor_init_context(empty_init=empty_init)

    # ---- inside --------------------------------------------------------------------------------------------------

    def _fit(self) -> None:
        sanity_check(self.context)
        reason = self.fit_loop.run()
        rank_zero_info(f"The fit ends: {reason}.")  # below the progress bar, which is closed by now

    def _evaluate(
        self,
        entry: EntryPoint,
        loop: EvaluateLoop,
        model: LightningModule | None,
        dataloaders: Any,
        datamodule: LightningDataModule | None,
        ckpt_path: str | Path | None,
        weights_only: bool | None,
        verbose: bool,
    ) -> Results:
        loaders = {"dataloaders": dataloaders}
        results: Results | None = self._run(entry, model, loaders, datamodule, ckpt_path, weights_only, loop.run)
        if verbose and results and self.is_global_zero:
            print_results(results, loop.stage)
        return results or []

    def _run(
        self,
        entry: EntryPoint,
        model: LightningModule | None,
        loaders: Mapping[str, Any],
        datamodule: LightningDataModule | None,
        ckpt_path: str | Path | None,
        weights_only: bool | None,
        work: Any,
    ) -> Any:
        if is_compiled_wrapper(model):
            model = from_compiled(model)  # type: ignore[arg-type]  # a wrapper, as was just asked
        module = model if model is not None else self.lightning_module
        if module is None:
            raise ConfigurationError(
                f"Trainer.{entry}() was called without a model, and this Trainer has run none yet."
                " There is nothing to take weights and steps from. Pass the module: trainer."
                f"{entry}(model=...)."
            )
        check_module(module, entry)
        check_path(ckpt_path, entry)
        attach_data(self.context.data, module, entry, loaders, datamodule)
        check_entry_point(module, self.context.data, entry, self.settings)
        if entry is EntryPoint.FIT:
            # A strategy may know its device only in the processes that it starts.
            device_type = self.strategy.fabric_strategy.device_type or self.strategy.root_device.type
            self.strategy.precision_plugin.check_training(device_type, "Trainer.fit(...)")
            self.strategy.check_fit(module, self.settings)
            check_callbacks(self.callbacks, self.strategy)
            source = self.context.data.source(Stage.TRAIN)
            self.strategy.check_train_loader(None if source is None else source.value, self.settings)
        tell_of_run(self.settings, entry, module, self.callbacks)
        is_given = model is not None
        choice = choose_checkpoint(self, entry, ckpt_path, model_given=is_given, requeue=self._requeue)
        self._ckpt_path = choice.path
        self.fit_loop.restored = None  # an earlier run may have failed before it went on from its checkpoint
        plan = lifecycle.Plan(entry, module, work, choice, weights_only, self._load_loops)
        plan = replace(plan, save_stopped=self._save_stopped, log_dir=self._find_log_dir)
        if self._requeue is not None:
            plan = replace(plan, also_hears=(self._requeue.signum,), put_back=self._put_back)
        plan = replace(plan, fetch=self._fetch_checkpoint, take_note=partial(setattr, self, "ckpt_path"))
        return launch(self, partial(lifecycle.run, self.context, plan), module)

    def _fetch_checkpoint(self, path: str) -> str:
        return fetch(path, self)

    def _find_log_dir(self) -> str | None:
        return self.log_dir

    def _dump(self, *, weights_only: bool) -> dict[str, Any]:
        return dump(
            self.context,
            loops=self._loop_states(),
            epoch=self.current_epoch,
            global_step=self.global_step,
            weights_only=weights_only,
            position=self.fit_loop.position if self.state.fn is EntryPoint.FIT and not weights_only else None,
        )

    def _save(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        # Who goes on from this checkpoint finds the rows of all steps before it.
        self.context.metrics.outlets.write_held(self.context.metrics.loggers)
        self.strategy.save_checkpoint(checkpoint, path, storage_options=storage_options)
        self.strategy.barrier("save_checkpoint")
        after_save(self.context, path)

    def _save_stopped(self) -> None:
        """Keep the fit that a signal has stopped, and put a SLURM job back into the queue if that was its signal."""
        keeps = self.state.fn is EntryPoint.FIT and not self.fast_dev_run and self.fit_loop.has_begun
        requeue = self._requeue
        if requeue is not None and self.context.signals.caught == requeue.signum:
            if keeps:
                hpc_path = self.strategy.broadcast(requeue.next_path(self.default_root_dir))
                checkpoint = self._dump(weights_only=False)
                requeue.mark(checkpoint)
                self._save(checkpoint, hpc_path)
                rank_zero_info(f"Saved to {hpc_path}.")
            self._put_back()
        elif keeps and (path := stopped_path(self.callbacks, trainer=self)) is not None:
            self.save_checkpoint(path)
            rank_zero_info(f"Saved to {path}. Trainer.fit(..., ckpt_path={path!r}), or 'last', goes on from there.")

    def _put_back(self) -> None:
        if self._requeue is not None and self.is_global_zero:
            self._requeue.put_back()

    def _loop_states(self) -> dict[str, Any]:
        return {
            "fit_loop": legacy.write_fit(self.fit_loop.counts),
            "validate_loop": legacy.write_evaluation(self.validate_loop.counts),
            "test_loop": legacy.write_evaluation(self.test_loop.counts),
            "predict_loop": legacy.write_evaluation(self.predict_loop.counts, is_last_batch=False),
        }

    def _load_loops(self, saved: Mapping[str, Any], own: dict[str, Any]) -> None:
        # One that has ended inside an epoch goes on there.
        legacy.read_fit(self.fit_loop.counts, (own.get("cut") or saved)["fit_loop"])
        for name in ("validate_loop", "test_loop", "predict_loop"):
            legacy.read_evaluation(getattr(self, name).counts, saved[name])
        self.fit_loop.restored = own
