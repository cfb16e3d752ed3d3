import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import StopRun
from fulmen.tuner.lr_suggestion import steepest_descent, swept_rates
from fulmen.tuner.lr_sweep import LRFinder
from fulmen.tuner.tuner import Tuner


class Curve(LightningModule):
    """Its loss is written in a table: one row for each step, whatever is learned."""

    def __init__(self, losses, groups=(1.0,)):
        super().__init__()
        self.lr = 1.0
        self.losses = losses
        self.groups = groups
        self.weights = torch.nn.ParameterList([torch.zeros(1) for _ in groups])
        self.used = []
        self.step_number = -1

    def training_step(self, batch, batch_idx):
        self.step_number += 1
        return sum(weight.sum() * 0.0 for weight in self.weights) + self.losses[self.step_number]

    def on_before_optimizer_step(self, optimizer):
        self.used.append([group["lr"] for group in optimizer.param_groups])
        Curve.last_used = list(self.used)  # the list itself is put back

    def configure_optimizers(self):
        groups = [
            {"params": [weight], "lr": self.lr * part} for weight, part in zip(self.weights, self.groups, strict=True)
        ]
        optimizer = torch.optim.SGD(groups, lr=self.lr)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1), "interval": "step"}]

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(7)))


def swept(make_trainer, losses, **options):
    flags = {name: options.pop(name) for name in ("accumulate_grad_batches",) if name in options}
    options = {"num_training": len(losses), "early_stop_threshold": None} | options
    return Tuner(make_trainer(**flags)).lr_find(Curve(losses), update_attr=False, **options)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    losses=st.lists(st.floats(0.125, 9.0, width=32), min_size=1, max_size=20),
    mode=st.sampled_from(["linear", "exponential"]),
)
def test_every_step_is_noted_with_its_own_rate(make_trainer, losses, mode):
    finder = swept(make_trainer, losses, mode=mode, min_lr=0.01, max_lr=10.0)
    rates = swept_rates(0.01, 10.0, len(losses), is_linear=mode == "linear")
    assert finder.results["lr"] == rates
    assert [rate for [rate] in Curve.last_used] == rates
    assert finder.results["raw_loss"] == losses
    assert all(min(losses) - 1e-5 <= loss <= max(losses) + 1e-5 for loss in finder.results["loss"])
    assert (finder.mode, finder.lr_min, finder.lr_max, finder.num_training) == (mode, 0.01, 10.0, len(losses))


def test_of_accumulated_batches_the_mean_counts(make_trainer):
    finder = swept(make_trainer, [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0], accumulate_grad_batches=2, num_training=4)
    # Seven batches: the last window of the epoch is short.
    assert finder.results["raw_loss"] == [2.0, 6.0, 10.0, 13.0]


def test_groups_keep_their_ratio_to_the_first(make_trainer):
    Tuner(make_trainer()).lr_find(Curve([1.0] * 5, groups=(1.0, 0.1)), num_training=5, update_attr=False)
    assert [second / first for first, second in Curve.last_used] == pytest.approx([0.1] * 5)


def test_it_ends_when_the_loss_diverges(make_trainer):
    finder = swept(make_trainer, [1.0] * 10 + [1000.0] * 20, early_stop_threshold=4.0)
    assert len(finder.results["lr"]) == 11


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_it_ends_when_the_loss_is_no_number_any_more(make_trainer, broken):
    losses = [3.0] * 15 + [2.0, 1.0] + [broken] * 10
    finder = swept(make_trainer, losses, early_stop_threshold=4.0)
    assert finder.results["raw_loss"] == losses[:17]
    assert finder.suggestion() in finder.results["lr"]
    whole = swept(make_trainer, losses, early_stop_threshold=None)
    assert len(whole.results["loss"]) == len(losses)
    assert whole.suggestion() in whole.results["lr"][:17]


@given(st.lists(st.floats(0.0, 10.0), max_size=40), st.integers(0, 15), st.integers(0, 5))
def test_the_suggestion_is_the_rate_at_the_steepest_place(losses, skip_begin, skip_end):
    finder = LRFinder("exponential", 1e-3, 1.0, len(losses))
    finder.results = {"lr": [10.0**step for step in range(len(losses))], "loss": losses}
    index = steepest_descent(losses, skip_begin, skip_end)
    if index is None:
        with pytest.warns(UserWarning, match=r"No learning rate is suggested\."):
            assert finder.suggestion(skip_begin, skip_end) is None
    else:
        assert finder.suggestion(skip_begin, skip_end) == finder.results["lr"][index]


def test_bad_questions():
    with pytest.raises(ConfigurationError, match=r"suggestion\(skip_begin=-1\)"):
        LRFinder("linear", 0.1, 1.0, 5).suggestion(skip_begin=-1)


def test_nothing_is_set_where_nothing_is_suggested(make_trainer):
    model = Curve([float(step) for step in range(1, 31)])
    with pytest.warns(UserWarning, match="falls nowhere"):
        Tuner(make_trainer()).lr_find(model, num_training=30, early_stop_threshold=None)
    assert model.lr == 1.0


def test_a_module_that_steps_by_itself(kit, make_trainer):
    class Manual(kit.Model):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer, scheduler = self.optimizers(), self.lr_schedulers()
            loss = self.step(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            scheduler.step()
            return loss

    finder = Tuner(make_trainer()).lr_find(Manual(), num_training=20, max_lr=10.0)
    assert len(finder.results["lr"]) == 20
    assert finder.results["lr"] == swept_rates(1e-8, 10.0, 20, is_linear=False)


def test_a_module_that_never_steps_ends(kit, make_trainer):
    class Idle(kit.Model):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            return None

    with pytest.raises(ConfigurationError, match="no optimizer stepped"):
        Tuner(make_trainer()).lr_find(Idle(), num_training=20)


def test_the_module_may_ask_for_its_schedulers_which_change_nothing(kit, make_trainer):
    class Asks(kit.Model):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
            # More steps than it knows of would be an error.
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr, total_steps=5)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        def training_step(self, batch, batch_idx):
            assert self.lr_schedulers().total_steps == 5
            return super().training_step(batch, batch_idx)

    finder = Tuner(make_trainer()).lr_find(Asks(), num_training=20, early_stop_threshold=None)
    assert finder.results["lr"] == swept_rates(1e-8, 1.0, 20, is_linear=False)


def test_a_module_may_end_its_trial(kit, make_trainer):
    class Enough(kit.Model):
        def training_step(self, batch, batch_idx):
            if len(self.notes) == 7:
                raise StopRun
            return super().training_step(batch, batch_idx)

    assert len(Tuner(make_trainer()).lr_find(Enough(), update_attr=False).results["lr"]) == 7
    assert Tuner(make_trainer()).scale_batch_size(Enough(), max_val=16, steps_per_trial=10) == 16


def test_an_optimizer_that_calls_its_closure_often(kit, make_trainer):
    finder = Tuner(make_trainer()).lr_find(kit.Model(optimizer="LBFGS"), num_training=6, max_lr=0.1)
    assert finder.results["lr"] == swept_rates(1e-8, 0.1, 6, is_linear=False)
