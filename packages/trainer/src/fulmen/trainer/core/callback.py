"""Callback: what users add to a run without touching module or trainer."""

from typing import Any, ClassVar
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.needs import STEP_OUTPUT
from fulmen.trainer.signature import extension_point


class _RunsModule:
    """The module of the run that a callback is in, not held alive; a pickled callback is in none."""

    def __init__(self, module: LightningModule | None = None) -> None:
        self.get = ref(module) if module is not None else _nothing

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def __deepcopy__(self, _: Any) -> "_RunsModule":
        return self


def _nothing() -> None:
    """Where there is no run."""


@extension_point
class Callback:
    """Methods that the run calls at named moments; all are yours to override, and do nothing here.

    A hook that is not overridden costs nothing. Each gets the trainer and the module; what else it gets is in its
    signature. What a callback wants to find again after a resume, it hands out in `state_dict`.
    """

    #: Does it decide by metrics, as checkpointing does? Then it runs after the module at the end of an epoch, and is
    #: kept at the end of the list.
    monitors_metrics: ClassVar[bool] = False
    #: Does it try out what the others will work with, as a learning rate? Then it is the first in the list.
    tunes: ClassVar[bool] = False

    _logs_with = _RunsModule()

    @property
    def state_key(self) -> str:
        """Where its state lies in a checkpoint; two callbacks in one run need two keys."""
        return self.__class__.__qualname__

    def generate_state_key(self, **kwargs: Any) -> str:
        """A `state_key` that tells objects of one class apart by `kwargs`, the arguments that matter."""
        return f"{self.__class__.__qualname__}{kwargs!r}"

    def _generate_state_key(self, **kwargs: Any) -> str:
        # The name that callbacks written for the reference call.
        return self.generate_state_key(**kwargs)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Logs as `pl_module.log` does, in hooks of a run; with the same arguments.

        Raises:
            ConfigurationError: If the callback is in no run.
        """
        self._module_of_run("log").log(name, value, *args, **kwargs)

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        """Logs as `pl_module.log_dict` does; see `log`."""
        self._module_of_run("log_dict").log_dict(dictionary, *args, **kwargs)

    def log_with(self, module: LightningModule) -> None:
        """From now on, `log` is that of `module`; the run says so when it begins."""
        self.__dict__["_logs_with"] = _RunsModule(module)

    def _module_of_run(self, method: str) -> LightningModule:
        module = self._logs_with.get()
        if module is None:
            raise ConfigurationError(
                f"{type(self).__qualname__}.{method}(...) was called while the callback is in no run."
                " What is logged goes to the loggers and metrics of a run."
                f" Pass the callback to a Trainer, and call {method} in its hooks."
            )
        return module

    def state_dict(self) -> dict[str, Any]:
        """What to keep in a checkpoint: plain data and tensors."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""

    def batches_to_a_step(self, epoch: int) -> int | None:
        """In how many batches an optimizer step is made in `epoch` (0-based), if it decides that; None: it does not."""
        return None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is about to be written; `checkpoint` may be changed."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint was read; the states of module and callbacks are not restored yet."""

    def on_save_weights(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """As `on_save_checkpoint`, for a checkpoint with `weights_only`: the state of callbacks is not kept in it."""

    def on_checkpoint_saved(self, trainer: Trainer, pl_module: LightningModule, path: str) -> None:
        """A checkpoint is whole and on the disk, at `path`; called on the first process only."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The run ends by `exception`, a signal or Ctrl-C."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The run begins; `stage` is "fit", "validate", "test" or "predict"."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The run ends; `stage` is as in `setup`."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fitting begins; the model is on its device."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fitting is over."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The few validation batches before training begin."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The sanity check is over."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training begins, after the sanity check."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training is over."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch of training begins."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch of training is over; its metrics may be logged and read."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch is on its device; nothing is computed yet."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """The batch is done, also its optimizer step if there was one."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation begins."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is over."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The one pass of validation over its loaders begins."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The one pass of validation is over."""

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch of validation is on its device."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch of validation is done."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Testing begins."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Testing is over."""

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The one pass of testing over its loaders begins."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The one pass of testing is over."""

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch of testing is on its device."""

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch of testing is done."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Predicting begins."""

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Predicting is over."""

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The one pass of predicting over its loaders begins."""

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The one pass of predicting is over."""

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch of predicting is on its device."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch of predicting is done."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Gradients are about to be cleared."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Gradients of `loss` are about to be computed."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gradients are computed; under 16-mixed they are still scaled."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The optimizer is about to step; gradients are unscaled and not yet clipped."""
