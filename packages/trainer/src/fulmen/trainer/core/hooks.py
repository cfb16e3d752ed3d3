"""The hooks that a module or datamodule may override.

Their order, and in which of them `self.log` may be called, is in `hooks/table.py`. None of them does anything here
unless its docstring says so; one that is not overridden costs nothing.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fulmen.fabric.errors import MisconfigurationException
from fulmen.fabric.trees import move_to_device
from fulmen.trainer.core.needs import STEP_OUTPUT


class ModelHooks:
    """Moments in the life of a module."""

    def on_fit_start(self) -> None:
        """Fitting begins; the model is on its device."""

    def on_fit_end(self) -> None:
        """Fitting is over."""

    def on_train_start(self) -> None:
        """Training begins, after the sanity check."""

    def on_train_end(self) -> None:
        """Training is over."""

    def on_validation_start(self) -> None:
        """Validation begins."""

    def on_validation_end(self) -> None:
        """Validation is over."""

    def on_test_start(self) -> None:
        """Testing begins."""

    def on_test_end(self) -> None:
        """Testing is over."""

    def on_predict_start(self) -> None:
        """Predicting begins."""

    def on_predict_end(self) -> None:
        """Predicting is over."""

    def on_train_epoch_start(self) -> None:
        """An epoch of training begins."""

    def on_train_epoch_end(self) -> None:
        """An epoch of training is over; callbacks that monitor metrics run after this."""

    def on_validation_epoch_start(self) -> None:
        """The pass over the validation loaders begins."""

    def on_validation_epoch_end(self) -> None:
        """The pass over the validation loaders is over."""

    def on_test_epoch_start(self) -> None:
        """The pass over the test loaders begins."""

    def on_test_epoch_end(self) -> None:
        """The pass over the test loaders is over."""

    def on_predict_epoch_start(self) -> None:
        """The pass over the predict loaders begins."""

    def on_predict_epoch_end(self) -> None:
        """The pass over the predict loaders is over."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """A batch is on its device; returning -1 skips the rest of the epoch."""
        return None

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Any, batch_idx: int) -> None:
        """The batch is done, also its optimizer step if there was one."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A batch of validation is on its device."""

    def on_validation_batch_end(
        self, outputs: STEP_OUTPUT, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch of validation is done."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A batch of testing is on its device."""

    def on_test_batch_end(self, outputs: STEP_OUTPUT, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A batch of testing is done."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A batch of predicting is on its device."""

    def on_predict_batch_end(self, outputs: Any | None, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A batch of predicting is done."""

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Gradients are about to be cleared."""

    def on_before_backward(self, loss: Tensor) -> None:
        """Gradients of `loss` are about to be computed."""

    def on_after_backward(self) -> None:
        """Gradients are computed; under 16-mixed they are still scaled."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """The optimizer is about to step; gradients are unscaled and not yet clipped."""

    def configure_model(self) -> None:
        """Builds layers where they will live: on the device, in the run's precision, or sharded.

        It is called again by every entry point, so build a layer only if it is not there yet.
        """

    def configure_sharded_model(self) -> None:
        """The older name of `configure_model`."""

    def on_validation_model_eval(self) -> None:
        """Puts the model in eval mode for validation."""
        _whole_model(self).eval()

    def on_validation_model_train(self) -> None:
        """Puts the model in train mode after validation; not overridden, each layer gets its own mode back."""
        _whole_model(self).train()

    def on_validation_model_zero_grad(self) -> None:
        """Clears gradients before validation inside a fit, so that their memory is free."""
        _whole_model(self).zero_grad()

    def on_test_model_eval(self) -> None:
        """Puts the model in eval mode for testing."""
        _whole_model(self).eval()

    def on_test_model_train(self) -> None:
        """Puts the model in train mode after testing; not overridden, each layer gets its own mode back."""
        _whole_model(self).train()

    def on_predict_model_eval(self) -> None:
        """Puts the model in eval mode for predicting."""
        _whole_model(self).eval()


class DataHooks:
    """Where batches come from and how they get to the device."""

    #: Does each machine call `prepare_data`, or only the first of all?
    prepare_data_per_node: bool = True

    #: May a loader be empty on some of several devices?
    allow_zero_length_dataloader_with_multiple_devices: bool = False

    def prepare_data(self) -> None:
        """Downloads, tokenizes, writes to disk: once, in one process, before `setup`.

        Set nothing on `self` here: the other processes would not have it.
        """

    def setup(self, stage: str) -> None:
        """Builds what every process needs; `stage` is "fit", "validate", "test" or "predict"."""

    def teardown(self, stage: str) -> None:
        """Frees what `setup` built."""

    def train_dataloader(self) -> Any:
        """The loader of training batches, or a nested collection of loaders.

        Raises:
            MisconfigurationException: Unless overridden.
        """
        raise _no_loader(self, "train_dataloader", "fit")

    def val_dataloader(self) -> Any:
        """The loader of validation batches, or a list of loaders.

        Raises:
            MisconfigurationException: Unless overridden.
        """
        raise _no_loader(self, "val_dataloader", "validate")

    def test_dataloader(self) -> Any:
        """The loader of test batches, or a list of loaders.

        Raises:
            MisconfigurationException: Unless overridden.
        """
        raise _no_loader(self, "test_dataloader", "test")

    def predict_dataloader(self) -> Any:
        """The loader of batches to predict on, or a list of loaders.

        Raises:
            MisconfigurationException: Unless overridden.
        """
        raise _no_loader(self, "predict_dataloader", "predict")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Changes a batch on the CPU; returns it."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves every tensor of a batch; override it for types that hold tensors without having `.to(device)`."""
        return move_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Changes a batch on its device; returns it."""
        return batch


class CheckpointHooks:
    """What a module or datamodule adds to a checkpoint."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is about to be written; add plain data and tensors to `checkpoint`."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint was read; take back what was added, before weights are loaded."""


def _whole_model(hooks: Any) -> Any:
    """The module with what a strategy put around it, whose train mode counts as well."""
    trainer = getattr(hooks, "_trainer", None)
    model = getattr(trainer, "model", None)
    return hooks if model is None else model


def _no_loader(hooks: object, method: str, entry_point: str) -> MisconfigurationException:
    owner = type(hooks).__qualname__
    return MisconfigurationException(
        f"{owner}.{method}() is not there. Trainer.{entry_point} takes batches from it when no loader is passed."
        f" Define {method} in {owner}, or pass the loader to Trainer.{entry_point}."
    )
