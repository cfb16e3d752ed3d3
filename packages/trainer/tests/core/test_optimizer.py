import copy
import pickle
from contextlib import contextmanager

import pytest
import torch

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.core.optimizer import LightningOptimizer, do_nothing_closure


@pytest.fixture
def layer():
    return torch.nn.Linear(2, 1)


@pytest.fixture(params=["SGD", "Adam", "LBFGS"])
def optimizer(request, layer):
    return getattr(torch.optim, request.param)(layer.parameters(), lr=0.1)


def test_it_is_the_optimizer_in_every_way_but_step(optimizer):
    wrapped = LightningOptimizer(optimizer)
    assert isinstance(wrapped, type(optimizer))
    assert isinstance(wrapped, LightningOptimizer)
    assert type(wrapped).__name__ == f"Lightning{type(optimizer).__name__}"
    assert wrapped.optimizer is optimizer
    assert wrapped.param_groups is optimizer.param_groups
    assert wrapped.state is optimizer.state
    assert wrapped.defaults is optimizer.defaults


def test_setting_reaches_the_optimizer(optimizer):
    wrapped = LightningOptimizer(optimizer)
    wrapped.note = 3
    assert optimizer.note == 3
    del wrapped.note
    assert not hasattr(optimizer, "note")
    with pytest.raises(AttributeError):
        wrapped.nothing  # noqa: B018


def test_state_is_loaded_into_the_optimizer(layer):
    first, second = (torch.optim.Adam(layer.parameters(), lr=lr) for lr in (0.1, 0.2))
    layer(torch.ones(1, 2)).sum().backward()
    first.step()
    wrapped = LightningOptimizer(second)
    wrapped.load_state_dict(LightningOptimizer(first).state_dict())
    assert second.param_groups[0]["lr"] == 0.1
    assert len(second.state) == 2
    wrapped.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    assert len(second.param_groups) == 2
    wrapped.zero_grad()
    assert layer.weight.grad is None


def test_step_goes_through_the_run(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    wrapped = LightningOptimizer(optimizer)
    calls = []
    wrapped.bind(lambda *call: calls.append(call) or "done")
    assert wrapped.step() == "done"
    wrapped.step(do_nothing_closure, extra=1)
    assert calls == [(optimizer, None, {}), (optimizer, do_nothing_closure, {"extra": 1})]
    with pytest.raises(MisconfigurationException, match=r"closure=3"):
        wrapped.step(closure=3)


def test_without_a_run_it_steps_by_itself(optimizer, layer):
    wrapped = LightningOptimizer(optimizer)
    before = layer.weight.detach().clone()

    def closure():
        wrapped.zero_grad()
        loss = layer(torch.ones(1, 2)).pow(2).sum()
        loss.backward()
        return loss

    assert wrapped.step(closure) > 0
    assert not torch.equal(before, layer.weight)


@pytest.mark.parametrize("bound", [False, True])
def test_a_scheduler_may_be_given_the_wrapped_one(layer, bound):
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    wrapped = LightningOptimizer(optimizer)
    if bound:
        wrapped.bind(lambda optimizer, closure, kwargs: optimizer.step())
    scheduler = torch.optim.lr_scheduler.StepLR(wrapped, step_size=1, gamma=0.5)
    wrapped.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_toggle_model_and_sync(layer):
    entered = []

    @contextmanager
    def note(what):
        entered.append(("in", what))
        yield
        entered.append(("out", what))

    class Module:
        def toggled_optimizer(self, optimizer):
            return note(optimizer)

    wrapped = LightningOptimizer(torch.optim.SGD(layer.parameters(), lr=0.1))
    with wrapped.toggle_model(sync_grad=False):
        pass
    wrapped.bind(None, module=Module(), skip_gradient_sync=note)
    with wrapped.toggle_model(sync_grad=False):
        assert entered == [("in", True), ("in", wrapped)]
    assert entered[2:] == [("out", wrapped), ("out", True)]
    entered.clear()
    with pytest.raises(ZeroDivisionError), wrapped.toggle_model():
        raise ZeroDivisionError
    assert entered == [("in", wrapped)]


def test_copies_are_whole_and_in_no_run(optimizer):
    wrapped = LightningOptimizer(optimizer)
    wrapped.bind(lambda *call: pytest.fail("still bound"))
    for other in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert type(other) is type(wrapped)
        assert other.optimizer is not optimizer
        assert other.param_groups[0]["lr"] == 0.1
        assert other._stepper is None
