from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.fabric.precision.mixed import MixedPrecision
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ConfigurationError


class Returning(BoringModel):
    """Its step returns what it is told to, made from the loss."""

    def __init__(self, make):
        super().__init__()
        self.make, self.heard = make, []

    def training_step(self, batch, batch_idx):
        return self.make(self.layer(batch).sum())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.heard.append(outputs)


def fitted(quick, module, batches=1, **flags):
    trainer = quick(limit_val_batches=0, **flags)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer.fit(module, DataLoader(torch.ones(batches, 32)))
    moved = any(not torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
    return trainer, moved


@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (lambda loss: loss, ["loss"]),
        (lambda loss: {"loss": loss, "beside": loss, "text": "t"}, ["loss", "beside", "text"]),
        (lambda loss: OrderedDict(loss=loss), ["loss"]),
    ],
)
def test_a_step_returns_the_loss_alone_or_among_others(make, keys, quick):
    module = Returning(make)
    _, moved = fitted(quick, module)
    assert moved
    [outputs] = module.heard
    assert list(outputs) == keys
    assert not outputs["loss"].requires_grad  # the graph of the step is not kept alive


class Counting(BoringModel):
    def training_step(self, batch, batch_idx):
        self.log("batches", 1.0, on_epoch=True, on_step=False, reduce_fx="sum")
        return super().training_step(batch, batch_idx)


class SteppingItself(Counting):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step(closure=optimizer_closure)


@pytest.mark.parametrize(("module", "precision"), [(Counting, "64-true"), (SteppingItself, None)])
def test_what_a_step_logs_inside_of_optimizer_step_is_of_the_same_epoch_value(module, precision, quick):
    trainer, _ = fitted(quick, module(), batches=4, accumulate_grad_batches=2, precision=precision)
    assert trainer.callback_metrics["batches"] == 4


@pytest.mark.parametrize("make", [lambda loss: None, lambda loss: {"loss": None}])
def test_a_step_may_skip_the_batch(make, quick):
    module = Returning(make)
    trainer, moved = fitted(quick, module, batches=2)
    assert not moved
    assert trainer.global_step == 2  # the step is counted, as it is in the reference


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda loss: 3.0, "returned a float"),
        (lambda loss: [loss], "returned a list"),
        (lambda loss: {"losses": loss}, r"a dict with the keys \['losses'\]"),
    ],
)
def test_anything_else_is_refused(make, says, quick):
    with pytest.raises(ConfigurationError, match=rf"Returning\.training_step\(\) {says}|{says}"):
        fitted(quick, Returning(make))


@pytest.mark.parametrize("window", [1, 2, 4])
def test_outputs_are_told_as_a_dict_with_the_loss_of_a_full_window(window, quick):
    module = Returning(lambda loss: {"loss": loss * 0 + 12, "x": None, "losses": loss})
    fitted(quick, module, batches=5, accumulate_grad_batches=window)
    assert [outputs["loss"].item() for outputs in module.heard] == [12 / window] * 5  # of the short last one too
    assert all(outputs["x"] is None and not outputs["losses"].requires_grad for outputs in module.heard)


def test_a_batch_without_a_loss_is_told_of_without_outputs(quick):
    module = Returning(lambda loss: None)
    fitted(quick, module, batches=2, accumulate_grad_batches=2)
    assert module.heard == [{}, {}]


class Scalar(BoringModel):
    """One weight; the loss is weight times batch."""

    def __init__(self, optimizer=torch.optim.SGD):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.kind, self.gradients = optimizer, []

    def training_step(self, batch, batch_idx):
        return self.weight * batch.sum()

    def on_before_optimizer_step(self, optimizer):
        self.gradients.append(self.weight.grad.item())

    def configure_optimizers(self):
        return self.kind([self.weight], lr=0.1)


def test_a_window_steps_on_the_mean_of_its_batches_also_if_it_is_short(quick):
    module = Scalar()
    quick(accumulate_grad_batches=3, limit_val_batches=0).fit(module, DataLoader(torch.tensor([1.0, 2, 3, 10, 20])))
    assert module.gradients == [2.0, 15.0]


def test_how_many_batches_accumulate_may_change_while_a_run_goes_on(quick):
    class Changing(Scalar):
        def on_train_epoch_start(self):
            self.trainer.accumulate_grad_batches = self.trainer.current_epoch + 1

    module = Changing()
    quick(max_epochs=2, limit_val_batches=0).fit(module, DataLoader(torch.tensor([2.0, 4.0])))
    assert module.gradients == [2.0, 4.0, 3.0]


def test_an_optimizer_that_calls_its_closure_often_gets_one_that_it_may_call(quick):
    class Often(Scalar):
        calls = 0

        def training_step(self, batch, batch_idx):
            self.calls += 1
            return (self.weight - batch.sum()) ** 2

    module = Often(torch.optim.LBFGS)
    trainer, _ = fitted(quick, module)
    assert module.calls > 1
    assert trainer.global_step == 1


@pytest.mark.parametrize("hook", ["backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping"])
def test_what_the_module_overrides_is_called_and_changes_nothing_by_itself(hook, quick):
    calls = []

    def overriding(self, *args, **kwargs):
        calls.append(hook)
        return getattr(super(kind, self), hook)(*args, **kwargs)

    kind = type("Overriding", (Scalar,), {hook: overriding})
    plain, module = Scalar(), kind()
    fitted(quick, plain, batches=3)
    fitted(quick, module, batches=3)
    assert calls == [hook] * 3
    assert torch.equal(plain.weight, module.weight)


def test_without_an_optimizer_the_loss_is_computed_and_nothing_changes(quick):
    class Without(Scalar):
        def configure_optimizers(self):
            return None

        def on_after_backward(self):
            self.gradients.append(self.weight.grad.item())

    module = Without()
    with pytest.warns(UserWarning, match="runs without an optimizer"):
        fitted(quick, module, batches=2)
    assert module.weight == 0
    assert module.gradients


def test_a_scaler_leaves_out_a_step_that_would_break_the_weights(quick):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    module = Scalar()
    trainer = quick(plugins=[MixedPrecision("16-mixed", device="cpu", scaler=scaler)], limit_val_batches=0)
    trainer.fit(module, DataLoader(torch.tensor([1.0, float("inf"), 1.0])))
    assert module.weight.item() == pytest.approx(-0.2)
    assert scaler.get_scale() == 2.0**9
    assert trainer.scaler is scaler
