import random
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.demos import BoringModel, RandomDataset
from fulmen.trainer.loggers.csv import CSVLogger
from fulmen.trainer.rehearsal import rehearsing, trial_of
from fulmen.trainer.stages import EntryPoint, Status
from fulmen.trainer.trainer import Trainer


class Model(BoringModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 2))
        self.epochs_ended = 0

    def training_step(self, batch, batch_idx):
        loss = self.step(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def on_train_epoch_end(self):
        self.epochs_ended += 1

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    def train_dataloader(self):
        return DataLoader(RandomDataset(32, 12), batch_size=2, shuffle=True)


class Rehearses(Callback):
    """Rehearses at one hook, and leaves the rehearsal in one way."""

    def __init__(self, hook=None, how="ends", **changes):
        self.how, self.changes = how, changes
        self.told = []
        if hook is not None:
            setattr(self, hook, self.rehearse)

    def rehearse(self, trainer, module, *_):
        expected = pytest.raises(ZeroDivisionError) if self.how == "raises" else nullcontext()
        with expected, rehearsing(trainer, max_epochs=2, **self.changes) as trial:
            assert module.trainer is trial is not trainer
            trial.invented = trial.should_stop = self.how == "stops"
            if self.how != "does nothing":
                trial.fit_loop.run()
            if self.how == "raises":
                raise ZeroDivisionError
            self.told.append((trial.global_step, dict(trial.callback_metrics)))
        assert not hasattr(trainer, "invented")
        assert module.trainer is trainer

    # Hooks are looked up on the class.
    def on_fit_start(self, *_): ...
    def on_train_epoch_start(self, *_): ...
    def on_validation_epoch_end(self, *_): ...
    def on_train_batch_end(self, *_): ...


def fitted(root, *, precision="32-true", accumulate=1, rehearses=None):
    torch.manual_seed(0)
    random.seed(0)
    model = Model()
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=root,
        max_epochs=2,
        precision=precision,
        accumulate_grad_batches=accumulate,
        logger=CSVLogger(root, flush_logs_every_n_steps=1),
        log_every_n_steps=1,
        callbacks=[rehearses or Rehearses()],
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=2,
    )
    trainer.fit(model)
    return trainer, model


def seen_of(trainer, model):
    moments = [state for group in trainer.optimizers for state in group.state_dict()["state"].values()]
    return {
        "weights": {name: value.tolist() for name, value in model.state_dict().items()},
        "optimizer": [{name: value.tolist() for name, value in moment.items()} for moment in moments],
        "rates": [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups],
        "rng": (torch.get_rng_state().tolist(), random.getstate()),
        "steps": (trainer.global_step, trainer.current_epoch, trainer.state.status, trainer.should_stop),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "rows": (Path(trainer.log_dir) / "metrics.csv").read_text(),
        "epochs": model.epochs_ended,
        "files": sorted(name.name for name in Path(trainer.log_dir).rglob("*")),
    }


HOOKS = ["on_fit_start", "on_train_epoch_start", "on_train_batch_end", "on_validation_epoch_end"]


@settings(max_examples=12, deadline=None)
@given(
    hook=st.sampled_from(HOOKS),
    how=st.sampled_from(["ends", "raises", "stops", "does nothing"]),
    precision=st.sampled_from(["32-true", "bf16-mixed", "16-mixed"]),
    accumulate=st.sampled_from([1, 2]),
)
def test_a_fit_with_rehearsals_inside_is_the_fit_without_them(tmp_path_factory, hook, how, precision, accumulate):
    plain = fitted(tmp_path_factory.mktemp("plain"), precision=precision, accumulate=accumulate)
    callback = Rehearses(hook, how)
    rehearsed = fitted(
        tmp_path_factory.mktemp("rehearsed"), precision=precision, accumulate=accumulate, rehearses=callback
    )
    assert seen_of(*plain) == seen_of(*rehearsed)
    assert callback.told or how == "raises"


def test_a_trial_is_at_the_beginning_of_everything(tmp_path):
    callback = Rehearses("on_train_batch_end", accumulate_grad_batches=2)
    trainer, _ = fitted(tmp_path, rehearses=callback)
    assert {steps for steps, _ in callback.told} == {6}  # two epochs of six batches, two to a step
    assert all("loss_epoch" in metrics for _, metrics in callback.told)
    assert trainer.accumulate_grad_batches == 1


def test_a_trial_has_no_callbacks_and_loggers_that_do_nothing(tmp_path):
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[Rehearses()])
    mine = Callback()
    trial = trial_of(trainer, callbacks=[mine], max_steps=7)
    assert trial.callbacks == [mine]
    assert trial.max_steps == 7
    assert len(trial.loggers) == len(trainer.loggers) == 1
    trial.logger.log_metrics({"a": 1.0}, step=0)
    trial.limit_val_batches = 3
    trial.invented = True
    assert (trainer.limit_val_batches, hasattr(trainer, "invented")) == (1.0, False)
    assert list(tmp_path.iterdir()) == []


def test_a_trial_can_be_fitted_like_any_trainer(tmp_path):
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, max_epochs=1)
    trial_of(trainer, limit_val_batches=0).fit(Model())
    assert (trainer.global_step, trainer.state.status, trainer.lightning_module) == (0, Status.INITIALIZING, None)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_setting_is_an_error():
    with pytest.raises(AttributeError):
        trial_of(Trainer(accelerator="cpu", logger=False), no_such_flag=1)


def test_evaluations_can_be_rehearsed_too(tmp_path):
    told = []

    class Rehearsing(Callback):
        def on_validation_start(self, trainer, module):
            with rehearsing(trainer, limit_val_batches=3) as trial:
                assert trial.state.fn is EntryPoint.VALIDATE
                trial.validate_loop.run()
                told.append(trial.num_val_batches)

    class Counting(Model):
        num_steps = 0

        def validation_step(self, batch, batch_idx):
            self.num_steps += 1
            self.log("x", float(self.num_steps))

    model = Counting()
    [results] = Trainer(
        accelerator="cpu", logger=False, callbacks=[Rehearsing()], limit_val_batches=4, enable_progress_bar=False
    ).validate(model, verbose=False)
    assert told == [[3]]
    assert (model.num_steps, results) == (4, {"x": 2.5})
    assert isinstance(model, LightningModule)


def test_who_rehearses_alone_hears_signals_when_it_is_over(quick):
    class Listens(Callback):
        def on_fit_start(self, trainer, module):
            with rehearsing(trainer, alone=True, max_steps=2) as trial:
                place = trainer.context.signals.place
                trial.fit_loop.run()
                assert trial.global_step == 2
                assert trial.context.signals is not trainer.context.signals
            assert trainer.context.signals.place == place
            with rehearsing(trainer) as trial:
                assert trial.context.signals is trainer.context.signals

    quick(callbacks=[Listens()]).fit(Model())
