import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.demos import BoringModel, ManualOptimBoringModel

DATA = torch.randn(24, 32, generator=torch.Generator().manual_seed(5))


class Model(BoringModel):
    def __init__(self, *, norm=True, interval=None):
        super().__init__()
        torch.manual_seed(1)
        middle = nn.BatchNorm1d(4) if norm else nn.Identity()
        self.layer = nn.Sequential(nn.Linear(32, 4), middle, nn.Linear(4, 2))
        self.interval = interval

    def training_step(self, batch, batch_idx):
        loss = self.loss(self(batch))
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if self.interval is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.interval}}

    def train_dataloader(self):
        return torch.utils.data.DataLoader(DATA, batch_size=4, shuffle=True)

    val_dataloader = None


class Watch(Callback):
    def __init__(self):
        self.ends, self.rates = [], []

    def on_train_epoch_end(self, trainer, pl_module):
        self.ends.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return all(torch.equal(one[name], other[name]) for name in one)


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=9))
def test_the_average_is_the_mean(values):
    count, average = torch.tensor(0), nn.Linear(1, 1, bias=False)
    for value in values:
        module = nn.Linear(1, 1, bias=False)
        nn.init.constant_(module.weight, value)
        StochasticWeightAveraging.update_parameters(average, module, count, StochasticWeightAveraging.avg_fn)
    assert int(count) == len(values)
    assert average.weight.item() == pytest.approx(sum(values) / len(values), abs=1e-4)


@pytest.mark.parametrize("interval", [None, "epoch", "step"])
def test_the_last_epochs_are_averaged_at_their_learning_rate(quick, interval):
    watch, module = Watch(), Model(norm=False, interval=interval)
    swa = StochasticWeightAveraging(0.02, swa_epoch_start=0.6, annealing_epochs=2, annealing_strategy="linear")
    trainer = quick(callbacks=[watch, swa], max_epochs=6)
    if interval == "step":
        with pytest.warns(UserWarning, match="replaces the schedulers"):
            trainer.fit(module)
    else:
        trainer.fit(module)
    assert (swa.swa_start, swa.swa_end, int(swa.n_averaged)) == (2, 5, 4)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, torch.stack([end[name] for end in watch.ends[2:]]).mean(0))
    first = watch.rates[2]
    assert watch.rates[2:] == pytest.approx([first, (first + 0.02) / 2, 0.02, 0.02])
    if interval is None:
        assert first == 0.1


@pytest.mark.filterwarnings("error:Model.log was called")
def test_batch_norms_get_the_means_of_the_average(quick, rows):
    module = Model()
    trainer = quick(callbacks=StochasticWeightAveraging(0.05, 1), max_epochs=2, logger=rows, log_every_n_steps=1)
    trainer.fit(module)
    with torch.no_grad():
        hidden = module.layer[0](DATA)
    norm = module.layer[1]
    torch.testing.assert_close(norm.running_mean, hidden.mean(0))
    assert (norm.momentum, int(norm.num_batches_tracked)) == (0.1, 6)
    assert trainer.global_step == 12
    assert sum("loss_step" in values or "loss" in values for _, values in rows.rows) == 12


def test_frozen_batch_norms_stay(quick):
    class Frozen(Model):
        def on_train_epoch_start(self):
            self.layer[1].eval()

    module = Frozen()
    quick(callbacks=StochasticWeightAveraging(0.05, 1), max_epochs=2).fit(module)
    assert torch.equal(module.layer[1].running_mean, torch.zeros(4))


def test_no_epoch_reached(quick):
    watch, module = Watch(), Model()
    quick(callbacks=[watch, StochasticWeightAveraging(0.05, 5)], max_epochs=2).fit(module)
    assert torch.equal(watch.ends[-1]["layer.0.weight"], module.layer[0].weight)


class SaveAfterBatch(Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


class SaveAfterEpoch(SaveAfterBatch):
    def on_train_batch_end(self, *_): ...

    def on_train_epoch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def swa():
    return StochasticWeightAveraging([0.02], swa_epoch_start=0.5, annealing_epochs=2)


@pytest.mark.parametrize("interval", [None, "step", "epoch"])
@pytest.mark.parametrize("saves_first", [True, False])
@pytest.mark.parametrize(("saves", "step"), [(SaveAfterBatch, 3), (SaveAfterBatch, 15), (SaveAfterEpoch, 12)])
@pytest.mark.filterwarnings("ignore:StochasticWeightAveraging replaces")
def test_resumes_exactly(quick, tmp_path, saves, step, saves_first, interval):
    path = tmp_path / "there.ckpt"
    save, whole = saves(path, step), Model(interval=interval)
    torch.manual_seed(7)
    quick(callbacks=[save, swa()] if saves_first else [swa(), save], max_epochs=4).fit(whole)
    again, average, watch = Model(interval=interval), swa(), Watch()
    quick(callbacks=[average, watch], max_epochs=4).fit(again, ckpt_path=path)
    assert same(again, whole)
    assert int(average.n_averaged) == 3


class OwnOrder(Model):
    """Its loader draws from a generator of its own, which an extra pass over the data would move on."""

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(4)
        return torch.utils.data.DataLoader(DATA, batch_size=4, shuffle=True, generator=generator)


@pytest.mark.parametrize("kind", [Model, OwnOrder])
def test_a_fit_goes_on_from_what_was_saved_after_the_one_before(quick, tmp_path, kind):
    path = tmp_path / "after.ckpt"
    whole, part, again = kind(), kind(), kind()
    torch.manual_seed(7)
    quick(callbacks=[StochasticWeightAveraging(0.02, 2, 2)], max_epochs=5).fit(whole)
    torch.manual_seed(7)
    trainer = quick(callbacks=[StochasticWeightAveraging(0.02, 2, 2)], max_epochs=3)
    trainer.fit(part)
    trainer.save_checkpoint(path)
    saved = torch.load(path)
    assert all(torch.equal(saved["state_dict"][name], value) for name, value in part.state_dict().items())
    torch.manual_seed(8)
    quick(callbacks=[StochasticWeightAveraging(0.02, 2, 2)], max_epochs=5).fit(again, ckpt_path=path)
    assert same(again, whole)


def test_what_a_checkpoint_holds(quick, tmp_path):
    path = tmp_path / "there.ckpt"
    quick(callbacks=[swa(), SaveAfterEpoch(path, 24)], max_epochs=4).fit(Model())
    state = torch.load(path)["callbacks"]["StochasticWeightAveraging"]
    assert list(state) == ["n_averaged", "latest_update_epoch", "scheduler_state", "average_model_state"]
    assert (state["n_averaged"], state["latest_update_epoch"]) == (3, 3)
    assert list(state["average_model_state"]) == list(Model().state_dict())


@pytest.mark.parametrize(
    "arguments",
    [
        {"swa_lrs": -1.0},
        {"swa_lrs": 1},
        {"swa_lrs": []},
        {"swa_lrs": [0.1, 1]},
        {"swa_epoch_start": 0},
        {"swa_epoch_start": 1.5},
        {"swa_epoch_start": math.nan},
        {"annealing_epochs": -1},
        {"annealing_strategy": "foo"},
        {"avg_fn": 3},
        {"device": 3},
        {"device": "toaster"},
    ],
)
def test_bad_arguments(arguments):
    [name] = arguments
    with pytest.raises(MisconfigurationException, match=f"{name}="):
        StochasticWeightAveraging(**{"swa_lrs": 0.1, **arguments})


class TwoOptimizers(ManualOptimBoringModel):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]


@pytest.mark.parametrize(
    ("module", "arguments", "flags", "said"),
    [
        (TwoOptimizers, {}, {}, "2 optimizers"),
        (ManualOptimBoringModel, {}, {}, "automatic_optimization=False"),
        (Model, {}, {"max_epochs": -1, "max_steps": 3}, "share of max_epochs"),
        (Model, {"swa_lrs": [0.1, 0.1]}, {}, "1 parameter groups"),
    ],
)
def test_it_cannot_be_done(quick, module, arguments, flags, said):
    swa = StochasticWeightAveraging(**{"swa_lrs": 0.1, **arguments})
    with pytest.raises(MisconfigurationException, match=said):
        quick(callbacks=swa, **flags).fit(module())
