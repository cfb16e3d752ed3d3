"""How a job of peer_work.py is done by Ignite, Transformers, skorch and Keras, in two settings each.

"off" is nothing but the loop; "bar" draws and keeps what they do by default. Their packages are imported when their row
runs.
"""

from __future__ import annotations

import functools
import os
import tempfile
from typing import Any

import torch
from peer_work import Job, features_of
from torch import Tensor, nn

# ---- Ignite


def with_ignite(setting: str, do: str, job: Job) -> None:
    """An `Engine` around a function; "bar": with a running mean of the loss and a progress bar."""
    from ignite.engine import Engine, Events
    from ignite.handlers import ProgressBar
    from ignite.metrics import RunningAverage

    optimizer, loss_of, answers = job.optimizer(), job.work.loss_of, []

    def train(engine: Any, batch: Any) -> float | Tensor:
        loss = loss_of(job.model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item() if setting == "bar" else loss

    def validate(engine: Any, batch: Any) -> Tensor:
        with torch.inference_mode():
            return loss_of(job.model, batch)

    def predict(engine: Any, batch: Any) -> None:
        with torch.inference_mode():
            answers.append(job.model(features_of(batch)))

    engine = Engine({"train": train, "validate": validate, "predict": predict}[do])
    if setting == "bar":
        RunningAverage(output_transform=float).attach(engine, "loss")
        ProgressBar().attach(engine, ["loss"])
    engine.add_event_handler(Events.STARTED, job.watch.start)
    engine.add_event_handler(Events.COMPLETED, job.watch.stop)
    job.model.train(do == "train")
    engine.run(job.loader(), max_epochs=job.num_epochs)


# ---- the Trainer of Transformers


@functools.cache
def transformers_classes() -> tuple[type[Any], type[Any]]:
    """Its Trainer on our loader, with our loss and without clipping; the callback that stops the watch."""
    from transformers import Trainer, TrainerCallback

    class Answers(nn.Module):
        """Called with the fields of a batch, as that Trainer calls models."""

        def __init__(self, job: Job) -> None:
            super().__init__()
            self.model = job.model
            self.loss = job.work.loss

        def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            outputs = self.model(features)
            return {"loss": self.loss(outputs, labels), "logits": outputs}

    class OnOurLoader(Trainer):  # type: ignore[misc]
        def __init__(self, job: Job, **options: Any) -> None:
            optimizer = job.optimizer()
            constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
            super().__init__(model=Answers(job), optimizers=(optimizer, constant), callbacks=[Stops], **options)
            self.job = job
            Stops.watch = job.watch

        def get_train_dataloader(self) -> Any:
            loader = self.job.loader()
            collate = loader.collate_fn
            loader.collate_fn = lambda rows: dict(zip(("features", "labels"), collate(rows), strict=True))
            return loader

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            return self.get_train_dataloader()

        get_test_dataloader = get_eval_dataloader

        def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
            self.job.watch.start()
            found = super().evaluation_loop(*arguments, **options)
            self.job.watch.stop()
            return found

    class Stops(TrainerCallback):  # type: ignore[misc]
        watch: Any = None

        def on_train_begin(self, *arguments: Any, **options: Any) -> None:
            self.watch.start()

        def on_train_end(self, *arguments: Any, **options: Any) -> None:
            self.watch.stop()

    return OnOurLoader, Stops


def with_transformers(setting: str, do: str, job: Job) -> None:
    """`Trainer.train`, `evaluate`, `predict`; "bar" has its defaults: a log every 500 steps, and a bar."""
    import transformers

    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(prefix="peers_") as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            per_device_train_batch_size=job.work.batch_size,
            num_train_epochs=job.num_epochs,
            max_grad_norm=0.0,
            save_strategy="no",
            logging_strategy="no" if setting == "off" else "steps",
            disable_tqdm=setting == "off",
            prediction_loss_only=do == "validate",
        )
        trainer = transformers_classes()[0](job, args=arguments)
        if do == "train":
            trainer.train()
        elif do == "validate":
            trainer.evaluate()
        else:
            trainer.predict(test_dataset=None)


# ---- skorch


def with_skorch(setting: str, do: str, job: Job) -> None:
    """A `NeuralNet`; "bar" has its default callbacks, which score and print each epoch, and a bar."""
    import skorch.callbacks

    class OnOurLoader(skorch.NeuralNet):  # type: ignore[misc]
        def get_iterator(self, dataset: Any, training: bool = False) -> Any:
            return job.loader()

        def get_loss(self, y_pred: Tensor, y_true: Tensor, *arguments: Any, **options: Any) -> Tensor:
            return job.work.loss(y_pred, y_true)

    class Watch(skorch.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, net: Any, **options: Any) -> None:
            job.watch.start()

        def on_train_end(self, net: Any, **options: Any) -> None:
            job.watch.stop()

    watch = ("watch", Watch())
    net = OnOurLoader(
        job.model,
        criterion=nn.Identity,
        optimizer=torch.optim.SGD,
        lr=job.work.learning_rate,
        optimizer__momentum=job.work.momentum,
        max_epochs=job.num_epochs,
        train_split=None,
        callbacks=[watch] if setting == "off" else [("bar", skorch.callbacks.ProgressBar()), watch],
        verbose=int(setting != "off"),
    )
    net.initialize()
    if setting == "off":
        net.callbacks_ = [watch]
    dataset = job.loader().dataset
    if do == "train":
        net.partial_fit(dataset)
        return
    job.watch.start()
    if do == "validate":
        net.history.new_epoch()
        net.run_single_epoch(job.loader(), training=False, prefix="valid", step_fn=net.validation_step)
    else:
        list(net.forward_iter(dataset, training=False))
    job.watch.stop()


# ---- Keras on torch


def with_keras(setting: str, do: str, job: Job) -> None:
    """`Model.fit` around the same torch module; "bar": verbose, as is its default."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    class Watch(keras.callbacks.Callback):  # type: ignore[misc]
        def start(self, logs: Any = None) -> None:
            job.watch.start()

        def stop(self, logs: Any = None) -> None:
            job.watch.stop()

        on_train_begin = on_test_begin = on_predict_begin = start
        on_train_end = on_test_end = on_predict_end = stop

    model = keras.Sequential([keras.layers.TorchModuleWrapper(job.model)])
    model.compile(
        optimizer=keras.optimizers.SGD(job.work.learning_rate, momentum=job.work.momentum),
        loss=lambda targets, outputs: job.work.loss(outputs, targets.long()),  # it makes floats of them
    )
    loader, options = job.loader(), {"verbose": int(setting == "bar"), "callbacks": [Watch()]}
    if do == "train":
        model.fit(loader, epochs=job.num_epochs, **options)
    elif do == "validate":
        model.evaluate(loader, **options)
    else:
        model.predict(loader, **options)
