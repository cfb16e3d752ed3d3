"""How a job of peer_work.py is done by hand, with a Fabric, and with a Trainer that takes a LightningModule.

A training run starts `job.watch` just before the first batch is asked for and stops it when the last epoch is over;
each framework is asked for that at its own events. Validation and prediction likewise.
"""

from __future__ import annotations

import functools
import importlib
import tempfile
from typing import Any

import torch
from peer_work import Job, features_of
from step_overhead import trainer_flags
from torch import Tensor

# ---- by hand


def train_by_hand(job: Job) -> None:
    """The reference: the loop that one would write."""
    model, optimizer, loader, loss_of = job.model, job.optimizer(), job.loader(), job.work.loss_of
    train_with(job, model, optimizer, loader, Tensor.backward, loss_of)


def train_with(job: Job, model: Any, optimizer: Any, loader: Any, backward: Any, loss_of: Any) -> None:
    """The same loop with a model, optimizer, loader and backward that others made of the plain ones."""
    job.watch.start()
    for _ in range(job.num_epochs):
        for batch in loader:
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            backward(loss)
            optimizer.step()
    job.watch.stop()


def validate_with(job: Job, model: Any, loader: Any) -> None:
    """The loss of each batch, and nothing kept."""
    loss_of = job.work.loss_of
    model.eval()
    job.watch.start()
    with torch.inference_mode():
        for batch in loader:
            loss_of(model, batch)
    job.watch.stop()


def predict_with(job: Job, model: Any, loader: Any) -> None:
    """All answers, kept."""
    answers = []
    model.eval()
    job.watch.start()
    with torch.inference_mode():
        for batch in loader:
            answers.append(model(features_of(batch)))  # a comprehension would not be the loop that is compared
    job.watch.stop()


def validate_by_hand(job: Job) -> None:
    """With nothing but torch."""
    validate_with(job, job.model, job.loader())


def predict_by_hand(job: Job) -> None:
    """With nothing but torch."""
    predict_with(job, job.model, job.loader())


# ---- a Fabric, and what looks like one


def with_fabric(module_name: str, do: str, job: Job) -> None:
    """A loop with a Fabric; `module_name` is where the class is, `do` one of train, validate, predict."""
    fabric = importlib.import_module(module_name).Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(job.model, job.optimizer())
    loader = fabric.setup_dataloaders(job.loader())
    if do == "train":
        train_with(job, model, optimizer, loader, fabric.backward, job.work.loss_of)
    else:
        {"validate": validate_with, "predict": predict_with}[do](job, model, loader)


def with_accelerate(do: str, job: Job) -> None:
    """A loop with Accelerate."""
    accelerator = importlib.import_module("accelerate").Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(job.model, job.optimizer(), job.loader())
    if do == "train":
        train_with(job, model, optimizer, loader, accelerator.backward, job.work.loss_of)
    else:
        {"validate": validate_with, "predict": predict_with}[do](job, model, loader)


# ---- a Trainer with a LightningModule


@functools.cache
def module_classes(module_name: str) -> tuple[type[Any], type[Any]]:
    """A module that does a job and one callback that stops its watch; built on the classes of `module_name`."""
    api: Any = importlib.import_module(module_name)

    class Does(api.LightningModule):  # type: ignore[misc]  # which class it is, is known at runtime only
        def __init__(self, job: Job, setting: str) -> None:
            super().__init__()
            self.model = job.model
            self.job = job
            self.options = {"log": {}, "off": None}.get(
                setting, {"on_step": True, "on_epoch": True, "prog_bar": True, "batch_size": job.work.batch_size}
            )

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = self.job.work.loss_of(self.model, batch)
            if self.options is not None:
                self.log("loss", loss, **self.options)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = self.job.work.loss_of(self.model, batch)
            return loss

        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            answer: Tensor = self.model(features_of(batch))
            return answer

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.job.optimizer()

        def on_train_start(self) -> None:
            self.job.watch.start()  # modules hear it after callbacks: the bar and the logger are ready

        def on_validation_epoch_start(self) -> None:
            self.job.watch.start()

        def on_validation_epoch_end(self) -> None:
            self.job.watch.stop()

        on_predict_epoch_start = on_validation_epoch_start
        on_predict_epoch_end = on_validation_epoch_end

    class StopsWatch(api.Callback):  # type: ignore[misc]
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.job.watch.stop()

    return Does, StopsWatch


def with_trainer(module_name: str, setting: str, do: str, job: Job, **changes: Any) -> None:
    """`Trainer.fit`, `validate` or `predict` in a setting of step_overhead.py, with some `changes` of its flags."""
    api = importlib.import_module(module_name)
    module_class, stops_watch = module_classes(module_name)
    with tempfile.TemporaryDirectory(prefix="peers_") as folder:
        trainer = api.Trainer(
            max_epochs=job.num_epochs,
            accelerator="cpu",
            devices=1,
            callbacks=[stops_watch()],
            **(trainer_flags(module_name, setting, folder) | changes),
        )
        module = module_class(job, setting)
        if do == "train":
            trainer.fit(module, job.loader())
        elif do == "validate":
            trainer.validate(module, job.loader(), verbose=False)
        else:
            trainer.predict(module, job.loader())
