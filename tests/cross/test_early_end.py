"""A run ends early when a metric, a clock or a hook says so; and at the same place if it was cut in two."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer import Callback, LightningModule, Trainer
from fulmen.trainer.callbacks import EarlyStopping, EarlyStoppingReason, MetricNotLoggedError, ModelCheckpoint, Timer


class Net(LightningModule):
    """Its validation loss is scripted: one value for each validation."""

    def __init__(self, losses: tuple[float, ...] = (1.0,)) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.losses = losses
        self.steps = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.steps += 1
        loss: Tensor = self.layer(batch[0]).sum()
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        validations = self.trainer.fit_loop.counts.batch.total // self.trainer.val_check_batch - 1
        if not self.trainer.sanity_checking:
            self.log("val_loss", self.losses[min(int(validations), len(self.losses) - 1)])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(batches: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(batches, 4)), batch_size=1)


def fit(
    folder: Path, module: Net, *callbacks: Callback, epochs: int = 8, ckpt_path: Any = None, **flags: Any
) -> Trainer:
    off: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        off["enable_checkpointing"] = False
    trainer = Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), max_epochs=epochs, **off, **flags
    )
    trainer.fit(module, loader(2), loader(1), ckpt_path=ckpt_path)
    return trainer


# ---- a metric


def epochs_until_stop(losses: list[float], patience: int, epochs: int) -> int:
    """How many epochs run: the stop comes with the `patience`-th loss in a row that is no better than the best."""
    best, waited = float("inf"), 0
    for epoch, loss in enumerate(losses[:epochs], 1):
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited >= patience:
            return epoch
    return epochs


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(losses=st.lists(st.sampled_from([1.0, 2.0, 3.0]), min_size=5, max_size=5), patience=st.integers(1, 3))
def test_it_stops_when_patience_is_exhausted(losses: list[float], patience: int, tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=patience)
    trainer = fit(tmp_path, Net(tuple(losses)), stopping, epochs=5)
    assert trainer.current_epoch == epochs_until_stop(losses, patience, 5)
    stopped = stopping.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
    assert trainer.should_stop == stopped
    assert stopping.stopped_epoch == (trainer.current_epoch - 1 if stopped else 0)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_run_in_two_parts_stops_where_the_whole_one_does(cut: int, tmp_path: Path) -> None:
    losses = (1.0, 2.0, 3.0, 4.0)  # patience=3 is exhausted after the fourth
    whole = fit(tmp_path, Net(losses), EarlyStopping("val_loss"))
    fit(tmp_path, Net(losses), EarlyStopping("val_loss"), ModelCheckpoint(tmp_path, filename="c"), epochs=cut)
    stopping = EarlyStopping("val_loss")
    resumed = fit(tmp_path, Net(losses), stopping, ckpt_path=tmp_path / "c.ckpt")
    assert (resumed.current_epoch, resumed.global_step) == (whole.current_epoch, whole.global_step) == (4, 8)
    assert float(stopping.best_score) == 1.0
    assert stopping.stopped_epoch == 3


def test_validation_inside_an_epoch_stops_inside_it(tmp_path: Path) -> None:
    module = Net((1.0, 2.0, 3.0))
    trainer = fit(tmp_path, module, EarlyStopping("val_loss", patience=2), val_check_interval=1)
    # Validated after each batch: the third time, in the middle of the second epoch, is the second without a gain.
    assert (module.steps, trainer.global_step) == (3, 3)


def test_the_minimum_of_epochs_is_trained_first(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Net((1.0, 2.0)), EarlyStopping("val_loss", patience=1), min_epochs=5)
    assert trainer.current_epoch == 5


def test_a_metric_that_is_not_finite_stops_at_once(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=9)
    assert fit(tmp_path, Net((1.0, float("nan"))), stopping).current_epoch == 2
    assert stopping.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC


def test_a_metric_that_nobody_logs_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(MetricNotLoggedError, match=r"monitor='loss'.*'val_loss'"):
        fit(tmp_path, Net(), EarlyStopping("loss"))
    assert fit(tmp_path, Net(), EarlyStopping("loss", strict=False), epochs=2).current_epoch == 2


# ---- a clock


@pytest.mark.parametrize(("interval", "steps"), [("step", 1), ("epoch", 2)])
def test_a_timer_ends_after_a_step_or_an_epoch(interval: str, steps: int, tmp_path: Path) -> None:
    module = Net()
    trainer = fit(tmp_path, module, Timer(timedelta(microseconds=1), interval=interval))
    assert module.steps == steps
    assert trainer.should_stop
    assert trainer.state.status == "finished"


def test_max_time_is_a_timer(tmp_path: Path) -> None:
    module = Net()
    trainer = fit(tmp_path, module, max_time={"microseconds": 1})
    assert module.steps == 1
    assert any(isinstance(callback, Timer) for callback in trainer.callbacks)


def test_a_resumed_run_has_the_time_that_is_left(tmp_path: Path) -> None:
    timer = Timer(timedelta(days=1))
    fit(tmp_path, Net(), timer, ModelCheckpoint(tmp_path, filename="c"), epochs=1)
    saved_s = torch.load(tmp_path / "c.ckpt", weights_only=True)["callbacks"]["Timer"]["time_elapsed"]["train"]
    assert 0 < saved_s <= timer.time_elapsed()
    plenty, none_left, module = Timer(timedelta(days=1)), Timer(timedelta(seconds=saved_s / 2)), Net()
    assert fit(tmp_path, Net(), plenty, ckpt_path=tmp_path / "c.ckpt", epochs=2).current_epoch == 2
    assert plenty.time_elapsed() > saved_s
    fit(tmp_path, module, none_left, ckpt_path=tmp_path / "c.ckpt", epochs=2)
    assert module.steps == 0


# ---- a hook


def test_should_stop_can_be_set_anywhere_and_is_forgotten_by_the_next_fit(tmp_path: Path) -> None:
    class StopAfter(Callback):
        steps = 3

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == self.steps

    module, stop = Net(), StopAfter()
    trainer = fit(tmp_path, module, stop)
    assert (trainer.global_step, trainer.should_stop) == (3, True)
    stop.steps = -1
    trainer.fit(module, loader(2), loader(1))
    assert trainer.current_epoch == 8
