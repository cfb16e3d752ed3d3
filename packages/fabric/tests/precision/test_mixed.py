import pytest
import torch
from torch import nn

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.precision.half import HalfPrecision
from fulmen.fabric.precision.mixed import MixedPrecision


def _train(precision: MixedPrecision, num_modules: int = 1):
    modules = [nn.Linear(2, 1, bias=False) for _ in range(num_modules)]
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in modules]
    return modules, optimizers


def _backward(precision, module, value=1.0):
    with precision.forward_context():
        loss = module(torch.full((1, 2), value)).sum()
    # Halved: float16 holds at most 65504, and the scale starts at 65536.
    precision.backward(loss.float() * 0.5, module)


def test_only_float16_scales():
    assert MixedPrecision("16-mixed", "cpu").scales_loss
    assert not MixedPrecision("bf16-mixed", "cpu").scales_loss
    assert MixedPrecision("bf16-mixed", "cpu").state_dict() == {}


@pytest.mark.parametrize("make", [lambda: MixedPrecision("16", "cpu"), lambda: HalfPrecision("16")])
def test_unknown_names_are_refused(make):
    with pytest.raises(ConfigurationError, match="'16'"):
        make()


def test_a_scaler_is_made_when_it_is_used(monkeypatch):
    # Making one for CUDA asks the driver, and processes that are forked later could not use it.
    monkeypatch.setattr("fulmen.fabric.precision.mixed.GradScaler", lambda device: f"scaler for {device}")
    precision = MixedPrecision("16-mixed", "cuda")
    assert precision._scaler is None
    assert precision.scaler == "scaler for cuda"
    assert MixedPrecision("bf16-mixed", "cuda").scaler is None


def test_bf16_takes_no_scaler():
    with pytest.raises(ConfigurationError, match="Leave the scaler out"):
        MixedPrecision("bf16-mixed", "cpu", torch.amp.GradScaler("cpu"))


def test_gradients_are_scaled_until_they_are_unscaled_and_that_may_be_asked_twice():
    precision = MixedPrecision("16-mixed", "cpu")
    (module,), (optimizer,) = _train(precision)
    _backward(precision, module)
    assert torch.all(module.weight.grad == 32768.0)
    precision.unscale_gradients(optimizer)
    precision.unscale_gradients(optimizer)
    assert torch.all(module.weight.grad == 0.5)
    before = module.weight.detach().clone()
    precision.optimizer_step(optimizer)
    assert torch.allclose(module.weight, before - 0.05)


def test_a_step_with_infinite_gradients_is_left_out_and_the_scale_halved():
    precision = MixedPrecision("16-mixed", "cpu")
    (module,), (optimizer,) = _train(precision)
    _backward(precision, module, float("inf"))
    before = module.weight.detach().clone()
    precision.optimizer_step(optimizer)
    assert torch.equal(module.weight, before)
    assert precision.scaler.get_scale() == 32768.0
    other = MixedPrecision("16-mixed", "cpu")
    other.load_state_dict(precision.state_dict())
    assert other.scaler.get_scale() == 32768.0


def test_two_optimizers_may_both_unscale_before_either_steps():
    precision = MixedPrecision("16-mixed", "cpu")
    modules, optimizers = _train(precision, 2)
    for _ in range(2):
        before = [module.weight.detach().clone() for module in modules]
        for module, optimizer in zip(modules, optimizers, strict=True):
            optimizer.zero_grad()
            _backward(precision, module)
            precision.unscale_gradients(optimizer)
        for optimizer in optimizers:
            precision.optimizer_step(optimizer)
        for module, weight in zip(modules, before, strict=True):
            assert torch.allclose(module.weight, weight - 0.05)


def test_an_optimizer_that_unscaled_and_never_stepped_holds_nobody_up():
    precision = MixedPrecision("16-mixed", "cpu")
    modules, optimizers = _train(precision, 2)
    for _ in range(3):
        for module in modules:
            module.zero_grad()
            _backward(precision, module)
        precision.unscale_gradients(optimizers[1])
        precision.unscale_gradients(optimizers[0])
        assert all(torch.all(module.weight.grad == 0.5) for module in modules)
        precision.optimizer_step(optimizers[0])


def test_closures_are_refused_with_a_scaler_only():
    module = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(ArgumentTypeError, match="closure"):
        MixedPrecision("16-mixed", "cpu").optimizer_step(optimizer, closure=lambda: 1.0)
    with pytest.raises(ArgumentTypeError, match="LBFGS"):
        MixedPrecision("16-mixed", "cpu").optimizer_step(torch.optim.LBFGS(module.parameters()))
    assert MixedPrecision("bf16-mixed", "cpu").optimizer_step(optimizer, closure=lambda: 2.0) == 2.0


def test_fused_optimizers_cannot_be_clipped_with_a_scaler():
    optimizer = torch.optim.AdamW(nn.Linear(2, 1).parameters(), fused=True)
    with pytest.raises(ConfigurationError, match="fused=False"):
        MixedPrecision("16-mixed", "cpu").unscale_gradients(optimizer)
