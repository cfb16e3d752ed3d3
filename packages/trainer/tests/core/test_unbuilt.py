import copy
import pickle

import pytest
import torch
from torch import nn

from fulmen.trainer import LightningModule
from fulmen.trainer.core.unbuilt import was_initialised
from fulmen.trainer.errors import MisconfigurationException


def assign_layer(module):
    module.layer = nn.Linear(1, 1)


def assign_parameter(module):
    module.layer = nn.Parameter(torch.zeros(1))


def register_buffer(module):
    module.register_buffer("layer", torch.zeros(1))


def register_parameter(module):
    module.register_parameter("layer", nn.Parameter(torch.zeros(1)))


def register_module(module):
    module.add_module("layer", nn.Linear(1, 1))


ASSIGNMENTS = [assign_layer, assign_parameter, register_buffer, register_parameter, register_module]


def module_of(*before, init=True):
    class Classifier(LightningModule):
        def __init__(self):
            for step in before:
                step(self)
            if init:
                super().__init__()

    return Classifier


@pytest.mark.parametrize("assign", ASSIGNMENTS)
@pytest.mark.parametrize("init", [True, False])
def test_what_is_assigned_before_the_init_of_the_base_class_is_refused_and_the_class_named(assign, init):
    with pytest.raises(MisconfigurationException, match=r"Classifier\.__init__ assigned self\.layer = \w+\(\.\.\.\)"):
        module_of(assign, init=init)()


@pytest.mark.parametrize("assign", ASSIGNMENTS)
def test_after_it_all_can_be_assigned(assign):
    module = module_of()()
    assign(module)
    assert set(module.state_dict()) & {"layer", "layer.weight"}


def test_plain_values_may_come_before_it():
    module = module_of(lambda module: module.__setattr__("width", 3), lambda module: setattr(module, "rows", [1]))()
    assert (module.width, module.rows) == (3, [1])
    assert was_initialised(module)


def test_a_module_without_it_is_known():
    assert not was_initialised(module_of(init=False)())
    assert not was_initialised(object.__new__(nn.Linear))
    assert was_initialised(nn.Linear(1, 1))


class Plain(LightningModule):
    def __init__(self, width=2):
        super().__init__()
        self.layer = nn.Linear(width, 1)


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_is_as_built_as_the_original(clone):
    module = clone(Plain(3))
    module.other = nn.Linear(1, 1)
    assert was_initialised(module)
    assert set(module.state_dict()) == {"layer.weight", "layer.bias", "other.weight", "other.bias"}


class KeepsArguments:
    """As the mixins of model hubs do."""

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        self.given = (args, kwargs)
        return self


@pytest.mark.parametrize("bases", [(Plain, KeepsArguments), (KeepsArguments, Plain)])
def test_a_mixin_that_makes_the_object_gets_the_arguments(bases):
    module = type("Mixed", bases, {})(width=5)
    assert module.given == ((), {"width": 5})
    assert module.layer.in_features == 5
