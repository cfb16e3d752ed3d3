from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.callbacks.weight_averaging import (
    EMAWeightAveraging,
    Tensors,
    WeightAveraging,
    exchanged,
    swap_content,
)
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.demos import BoringModel


class Model(BoringModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Sequential(nn.Linear(32, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def train_dataloader(self):
        torch.manual_seed(2)
        return torch.utils.data.DataLoader(torch.randn(24, 32), batch_size=4, shuffle=True)

    def val_dataloader(self):
        torch.manual_seed(3)
        return torch.utils.data.DataLoader(torch.randn(8, 32), batch_size=4)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Watch(Callback):
    """What is trained after every step, and what is validated with."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.trained.append(weights(pl_module))

    def on_validation_batch_end(self, trainer, pl_module, *_):
        self.validated.append(weights(pl_module))


@given(
    st.integers(0, 5),
    st.none() | st.integers(0, 9),
    st.none() | st.integers(0, 9),
    st.integers(0, 20),
)
def test_when_an_ema_is_updated(every, first_step, first_epoch, index):
    if every == 0 and first_epoch is None:
        return
    average = EMAWeightAveraging(
        update_every_n_steps=every, update_starting_at_step=first_step, update_starting_at_epoch=first_epoch
    )
    by_step = every > 0 and index % every == 0 and index >= (first_step or 0)
    assert average.should_update(step_idx=index) == by_step
    assert average.should_update(epoch_idx=index) == (first_epoch is not None and index >= first_epoch)
    assert not average.should_update()


def test_swapped_twice_is_as_before():
    one, other = Model(), Tensors(deepcopy(Model()))
    other.requires_grad_(False)
    other.parameter0.add_(1.0)
    before = weights(one)
    swap_content(one, other)
    assert torch.equal(one.layer[0].weight, before["layer.0.weight"] + 1.0)
    with exchanged(one, other):
        inside = one.state_dict()
    assert same(inside, before)
    swap_content(one, other)
    assert same(weights(one), before)


def test_the_mean_of_all_steps_is_validated_and_left(quick):
    watch, module = Watch(), Model()
    trainer = quick(callbacks=[watch, WeightAveraging(use_buffers=False)], max_epochs=2)
    trainer.fit(module)
    name = "layer.0.weight"
    for epoch in range(2):
        mean = torch.stack([step[name] for step in watch.trained[: 6 * (epoch + 1)]]).mean(0)
        torch.testing.assert_close(watch.validated[2 * epoch + 1][name], mean)
    assert same(watch.validated[-1], weights(module))
    assert not torch.equal(watch.trained[-1][name], module.layer[0].weight)
    # Buffers are only copied.
    assert torch.equal(watch.validated[-1]["layer.1.running_mean"], watch.trained[-1]["layer.1.running_mean"])


def test_an_ema_of_every_second_step(quick):
    watch, module = Watch(), Model()
    trainer = quick(callbacks=[watch, EMAWeightAveraging(decay=0.9, update_every_n_steps=2, update_starting_at_step=1)])
    trainer.fit(module)
    name, expected = "layer.3.weight", None
    for index in (2, 4):
        new = watch.trained[index][name]
        expected = new if expected is None else 0.9 * expected + 0.1 * new
    torch.testing.assert_close(module.layer[3].weight.detach(), expected)


def test_nothing_averaged_yet_leaves_the_weights(quick):
    watch, module = Watch(), Model()
    quick(callbacks=[watch, EMAWeightAveraging(update_starting_at_step=100)]).fit(module)
    assert same(weights(module), watch.trained[-1])
    assert same(watch.validated[-1], watch.trained[-1])


def test_accumulated_batches_are_one_step(quick, tmp_path):
    trainer = quick(callbacks=WeightAveraging(), accumulate_grad_batches=3)
    trainer.fit(Model())
    trainer.save_checkpoint(tmp_path / "there.ckpt")
    assert int(torch.load(tmp_path / "there.ckpt")["averaging_state"]["n_averaged"]) == 2


class Saves(Callback):
    """Saves when `_save` is called for the `at`th time."""

    def __init__(self, path, at=1):
        self.path, self.at, self.count = path, at, 0

    def _save(self, trainer):
        self.count += 1
        if self.count == self.at:
            trainer.save_checkpoint(self.path)


class SaveAfterStep(Saves):
    def __init__(self, path):
        super().__init__(path, at=5)

    def on_train_batch_end(self, trainer, *_):
        self._save(trainer)


class SaveInValidation(Saves):
    def on_validation_batch_start(self, trainer, *_):
        self._save(trainer)


class SaveAtEnd(Saves):
    def on_train_end(self, trainer, *_):
        self._save(trainer)


def averages():
    return [WeightAveraging(), EMAWeightAveraging(decay=0.8, update_every_n_steps=2, update_starting_at_epoch=0)]


@pytest.mark.parametrize("average", [0, 1])
@pytest.mark.parametrize("saves_first", [True, False])
@pytest.mark.parametrize("saving", [SaveAfterStep, SaveInValidation, SaveAtEnd])
def test_resumes_exactly(quick, tmp_path, saving, saves_first, average):
    path = tmp_path / "there.ckpt"
    whole = Model()
    whole_run = quick(callbacks=averages()[average], max_epochs=3, val_check_interval=3)
    torch.manual_seed(7)
    whole_run.fit(whole)
    cut = [saving(path), averages()[average]]
    epochs = 1 if saving is SaveAtEnd else 3
    torch.manual_seed(7)
    quick(callbacks=cut if saves_first else cut[::-1], max_epochs=epochs, val_check_interval=3).fit(Model())
    again, watch = Model(), Watch()
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    resumed_run = quick(callbacks=[averages()[average], watch], max_epochs=3, val_check_interval=3)
    resumed_run.fit(again, ckpt_path=path)
    assert same(weights(again), weights(whole))
    one, other = tmp_path / "one.ckpt", tmp_path / "other.ckpt"
    whole_run.save_checkpoint(one)
    resumed_run.save_checkpoint(other)
    one, other = torch.load(one), torch.load(other)
    assert same(one["current_model_state"], other["current_model_state"])
    assert not same(one["current_model_state"], one["state_dict"])
    assert same(one["state_dict"], other["state_dict"])
    assert one["averaging_state"] == other["averaging_state"]
    assert one["callbacks"][type(averages()[average]).__name__] == {"latest_update_step": 18 - average}


def test_what_is_saved_inside_a_validation(quick, tmp_path):
    path, watch = tmp_path / "there.ckpt", Watch()
    quick(callbacks=[watch, WeightAveraging(), SaveInValidation(path)]).fit(Model())
    saved = torch.load(path)
    assert same(saved["current_model_state"], watch.trained[-1])
    assert same(saved["state_dict"], watch.validated[-1])
    assert not same(saved["state_dict"], saved["current_model_state"])


class FailInValidation(Callback):
    def on_validation_batch_end(self, *_):
        raise RuntimeError("of the test")


def test_a_validation_that_breaks_off_leaves_what_is_trained(quick):
    watch, module = Watch(), Model()
    with pytest.raises(RuntimeError, match="of the test"):
        quick(callbacks=[watch, WeightAveraging(), FailInValidation()]).fit(module)
    assert same(weights(module), watch.trained[-1])


def test_a_checkpoint_is_tested_with_its_average(quick, tmp_path):
    path = tmp_path / "there.ckpt"
    module = Model()
    trainer = quick(callbacks=WeightAveraging())
    trainer.fit(module)
    expected = weights(module)
    trainer.save_checkpoint(path)
    other = Model()
    trainer.validate(other, ckpt_path=path)
    assert same(weights(other), expected)


def test_a_checkpoint_without_an_average(quick, tmp_path):
    path = tmp_path / "there.ckpt"
    plain = quick()
    plain.fit(Model())
    plain.save_checkpoint(path)
    module, watch = Model(), Watch()
    with pytest.warns(UserWarning, match="saved without WeightAveraging"):
        quick(callbacks=[watch, WeightAveraging()], max_epochs=2).fit(module, ckpt_path=path)
    assert not same(weights(module), watch.trained[-1])


def test_two_averages(quick):
    with pytest.raises(RuntimeError, match="both average the weights"):
        quick(callbacks=[EMAWeightAveraging(), WeightAveraging()]).fit(Model())


class SaveBoth(Callback):
    """Saves the whole and the weights alone at the same moments: after a step, in a validation, after the fit."""

    def __init__(self, folder):
        self.folder, self.whens = folder, []

    def _save(self, trainer, when):
        self.whens.append(when)
        trainer.save_checkpoint(self.folder / f"{when}.ckpt")
        trainer.save_checkpoint(self.folder / f"{when}-weights.ckpt", weights_only=True)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._save(trainer, f"step{batch_idx}")

    def on_validation_batch_end(self, trainer, *_):
        self._save(trainer, "validation")

    def on_fit_end(self, trainer, *_):
        self._save(trainer, "end")


def test_weights_alone_are_the_average_as_in_whole_checkpoints(quick, tmp_path):
    save, watch = SaveBoth(tmp_path), Watch()
    quick(callbacks=[EMAWeightAveraging(decay=0.5, update_starting_at_step=2), watch, save]).fit(Model())
    assert {"step0", "step5", "validation", "end"} <= set(save.whens)
    for when in save.whens:
        whole, alone = (torch.load(tmp_path / name) for name in (f"{when}.ckpt", f"{when}-weights.ckpt"))
        assert same(whole["state_dict"], alone["state_dict"]), when
        assert not {"current_model_state", "averaging_state", "callbacks"} & alone.keys()
        assert same(alone["state_dict"], whole["current_model_state"]) == (when in ("step0", "step1", "step2")), when


@pytest.mark.parametrize("make", [WeightAveraging, lambda: EMAWeightAveraging(decay=0.7)])
def test_a_fit_goes_on_from_what_was_saved_after_the_one_before(quick, tmp_path, make):
    whole, part, again = Model(), Model(), Model()
    torch.manual_seed(7)
    quick(callbacks=[make()], max_epochs=3).fit(whole)
    torch.manual_seed(7)
    trainer = quick(callbacks=[make()], max_epochs=2)
    trainer.fit(part)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert same(torch.load(tmp_path / "after.ckpt")["state_dict"], part.state_dict())
    torch.manual_seed(8)
    quick(callbacks=[make()], max_epochs=3).fit(again, ckpt_path=tmp_path / "after.ckpt")
    assert same(again.state_dict(), whole.state_dict())


@pytest.mark.parametrize(
    ("kind", "arguments", "quoted"),
    [
        (WeightAveraging, {"foo": 1}, "foo="),
        (WeightAveraging, {"avg_fn": max, "multi_avg_fn": max}, "avg_fn"),
        (WeightAveraging, {"avg_fn": 3}, "avg_fn=3"),
        (WeightAveraging, {"device": "toaster"}, "device='toaster'"),
        (EMAWeightAveraging, {"decay": 1.5}, "decay=1.5"),
        (EMAWeightAveraging, {"decay": "a"}, "decay='a'"),
        (EMAWeightAveraging, {"avg_fn": max}, "avg_fn="),
        (EMAWeightAveraging, {"update_every_n_steps": -1}, "update_every_n_steps=-1"),
        (EMAWeightAveraging, {"update_every_n_steps": 0}, "update_every_n_steps=0"),
        (EMAWeightAveraging, {"update_every_n_steps": None}, "update_every_n_steps=None"),
        (EMAWeightAveraging, {"update_starting_at_step": 1.5}, "update_starting_at_step=1.5"),
    ],
)
def test_bad_arguments(kind, arguments, quoted):
    with pytest.raises(MisconfigurationException, match=quoted):
        kind(**arguments)
