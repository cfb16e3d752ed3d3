import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from fulmen.trainer.core.needs import LRSchedulerConfig
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.optimization.configure import SeveralOptimizersError, configured

MODULE = BoringModel()
MANUAL = BoringModel()
MANUAL.automatic_optimization = False


def sgd():
    return SGD(MODULE.parameters(), lr=0.1)


def forms(optimizer, scheduler):
    """Every way to write one optimizer with one scheduler."""
    entry = {"scheduler": scheduler}
    return [
        ([optimizer], [scheduler]),
        ([optimizer], [entry]),
        ([optimizer], scheduler),
        ([optimizer], entry),
        ([optimizer], [LRSchedulerConfig(scheduler)]),
        {"optimizer": optimizer, "lr_scheduler": scheduler},
        {"optimizer": optimizer, "lr_scheduler": entry},
        [{"optimizer": optimizer, "lr_scheduler": scheduler}],
        [{"optimizer": optimizer, "lr_scheduler": entry}],
    ]


def test_every_form_says_the_same():
    optimizer = sgd()
    scheduler = StepLR(optimizer, 1)
    for returned in forms(optimizer, scheduler):
        assert configured(MODULE, returned) == ([optimizer], [LRSchedulerConfig(scheduler)])


def test_an_optimizer_may_stand_alone():
    optimizer = sgd()
    for returned in (optimizer, [optimizer], (optimizer,), {"optimizer": optimizer}, ([optimizer], [])):
        assert configured(MODULE, returned) == ([optimizer], [])


class Stands:
    """For an optimizer, without being one."""

    def __init__(self, optimizer):
        self.inside = optimizer
        self.param_groups, self.state, self.defaults = optimizer.param_groups, optimizer.state, optimizer.defaults

    def step(self, closure=None):
        return self.inside.step(closure)

    def zero_grad(self, set_to_none=True):
        self.inside.zero_grad(set_to_none)

    def state_dict(self):
        return self.inside.state_dict()

    def load_state_dict(self, state_dict):
        self.inside.load_state_dict(state_dict)


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: [one], lambda one: {"optimizer": one}])
def test_what_does_all_that_an_optimizer_does_may_stand_for_one(wrap, quick, tmp_path):
    class Trained(BoringModel):
        def __init__(self, make):
            super().__init__()
            torch.manual_seed(0)
            self.layer.reset_parameters()
            self.make = make

        def configure_optimizers(self):
            return self.make(torch.optim.Adam(self.parameters(), lr=0.1))

    weights = []
    for make in (lambda one: one, lambda one: wrap(Stands(one))):
        module = Trained(make)
        first, then = quick(limit_train_batches=2), quick(limit_train_batches=2, max_epochs=2)
        first.fit(module)
        first.save_checkpoint(tmp_path / "a.ckpt")
        module = Trained(make)
        then.fit(module, ckpt_path=tmp_path / "a.ckpt")
        assert then.global_step == 4
        weights.append(module.layer.weight.detach())
    assert torch.equal(*weights)


def test_without_an_optimizer_the_fit_runs_and_says_so():
    with pytest.warns(UserWarning, match="returned None, so this fit runs without an optimizer"):
        assert configured(MODULE, None) == ([], [])


def test_the_monitor_may_stand_beside_the_scheduler():
    optimizer = sgd()
    scheduler = ReduceLROnPlateau(optimizer)
    expected = LRSchedulerConfig(scheduler, reduce_on_plateau=True, monitor="loss")
    beside = {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "loss"}
    inside = {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}
    for returned in (beside, inside, [beside], [inside]):
        assert configured(MODULE, returned)[1] == [expected]


@given(st.integers(2, 4))
def test_several_optimizers_are_for_manual_optimization(count):
    optimizers = [sgd() for _ in range(count)]
    assert configured(MANUAL, optimizers)[0] == optimizers
    with pytest.raises(SeveralOptimizersError, match=rf"returned {count} optimizers, and optimization is automatic"):
        configured(MODULE, optimizers)


class NoScheduler:
    """Steps, and cannot be saved."""


class OwnScheduler:
    def state_dict(self): ...
    def load_state_dict(self, state): ...


@pytest.mark.parametrize(
    ("returned", "kind", "says"),
    [
        (3, ConfigurationError, "returned 3"),
        ("sgd", ConfigurationError, "returned 'sgd'"),
        ([], ConfigurationError, r"returned \[\]"),
        (([], []), ConfigurationError, r"returned \(\[\], \[\]\)"),
        ({}, ConfigurationError, "key 'optimizer' holds no torch optimizer"),
        ({"optimizer": [sgd()]}, ConfigurationError, "key 'optimizer' holds no torch optimizer"),
        ({"optimizer": sgd(), "lr_scheduler": {}}, ConfigurationError, "without the key 'scheduler'"),
        ((one := [sgd()], [ReduceLROnPlateau(one[0])]), ConfigurationError, "without a monitor"),
        ((one, [{"scheduler": StepLR(one[0], 1), "interval": "batch"}]), ConfigurationError, "interval='batch'"),
        ((one, [{"scheduler": StepLR(one[0], 1), "frequency": 0}]), ConfigurationError, "frequency=0"),
        ((one, [{"scheduler": StepLR(one[0], 1), "frequency": True}]), ConfigurationError, "frequency=True"),
        ((one, [StepLR(sgd(), 1)]), ConfigurationError, "over an optimizer that it did not return"),
        ((one, [NoScheduler()]), ArgumentTypeError, "no state_dict and load_state_dict"),
        ((one, [OwnScheduler()]), ConfigurationError, "which is no torch scheduler"),
    ],
)
def test_what_cannot_be_read_is_refused(returned, kind, says):
    with pytest.raises(kind, match=says) as caught:
        configured(MODULE, returned)
    assert len(str(caught.value)) < 500


def test_what_has_no_effect_is_warned_about():
    optimizer = sgd()
    with pytest.warns(RuntimeWarning, match=r"unknown keys \['frequencies'\]"):
        configured(MODULE, ([optimizer], [{"scheduler": StepLR(optimizer, 1), "frequencies": 2}]))
    with pytest.warns(RuntimeWarning, match="Write interval='step'"):
        configured(MODULE, ([optimizer], [{"scheduler": OneCycleLR(optimizer, 0.1, 9)}]))


def test_a_scheduler_of_ones_own_needs_only_to_be_stepped():
    class Stepping(BoringModel):
        def lr_scheduler_step(self, scheduler, metric): ...

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, [config] = configured(Stepping(), ([sgd()], [OwnScheduler()]))
    assert isinstance(config.scheduler, OwnScheduler)
    assert torch.is_grad_enabled()
