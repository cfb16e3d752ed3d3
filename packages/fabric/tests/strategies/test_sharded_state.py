"""What is said here of whole parameters, test_sharded.py says of those that are split over processes."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.fabric.errors import CheckpointError, CheckpointKeyError, ConfigurationError
from fulmen.fabric.strategies.sharded_state import (
    ParameterBook,
    empty_optimizer_state,
    is_by_name,
    load_module_state,
    load_optimizer_state,
    named_parameters,
    optimizer_state_by_name,
    parameters_of,
)

NAMES = ["a", "b", "c", "d", "e"]


class Five(nn.Module):
    def __init__(self):
        super().__init__()
        for name in NAMES:
            setattr(self, name, nn.Parameter(torch.randn(2)))


def stepped(module, groups):
    optimizer = torch.optim.Adam(
        [{"params": [getattr(module, name) for name in group], "lr": 0.1 + i} for i, group in enumerate(groups)]
    )
    for parameter in module.parameters():
        parameter.grad = torch.randn(2)
    optimizer.step()
    return optimizer


def book_of(module):
    book = ParameterBook()
    book.record(named_parameters(module), module)
    return book


orders = st.permutations(NAMES)


@given(orders, orders, st.integers(1, 4))
def test_state_by_name_finds_its_parameters_in_any_order(saved_in, loaded_in, cut):
    saved = Five()
    optimizer = stepped(saved, [saved_in[:cut], saved_in[cut:]])
    state = optimizer_state_by_name(optimizer, book_of(saved).names(optimizer))
    assert is_by_name(state)
    module = Five()
    # The groups hold the same parameters, each in another order.
    groups = [[name for name in loaded_in if name in group] for group in (saved_in[:cut], saved_in[cut:])]
    other = stepped(module, groups)
    load_optimizer_state(other, state, lambda: book_of(module).names(other))
    for name in NAMES:
        for key, value in optimizer.state[getattr(saved, name)].items():
            assert torch.equal(other.state[getattr(module, name)][key], value)
    assert [group["lr"] for group in other.param_groups] == [0.1, 1.1]


@given(orders)
def test_state_by_number_loads_as_torch_loads_it(order):
    module, other = Five(), Five()
    optimizer, loaded = stepped(module, [order]), stepped(other, [order])
    state = optimizer.state_dict()
    assert not is_by_name(state)
    load_optimizer_state(loaded, state, lambda: pytest.fail("no names are needed"))
    for one, another in zip(parameters_of(optimizer), parameters_of(loaded), strict=True):
        assert torch.equal(optimizer.state[one]["exp_avg"], loaded.state[another]["exp_avg"])
        assert optimizer.state[one]["exp_avg"] is not loaded.state[another]["exp_avg"]


def test_a_group_that_was_not_saved_is_named():
    module = Five()
    state = optimizer_state_by_name(one := stepped(module, [["a"]]), book_of(module).names(one))
    other = stepped(module, [["a"], ["b", "c"]])
    with pytest.raises(CheckpointKeyError, match=r"group 1 of Adam, of the parameters 'b', 'c'\. It has these: 'a'"):
        load_optimizer_state(other, state, lambda: book_of(module).names(other))


def test_parameters_without_a_name_of_their_own_are_refused():
    module, other = Five(), Five()
    book = book_of(module)
    with pytest.raises(ConfigurationError, match=r"A parameter of SGD, of shape \(2,\), is in no module"):
        book.names(torch.optim.SGD(other.parameters()))
    book.record(named_parameters(other), other)
    with pytest.raises(ConfigurationError, match="is the second one named 'a'"):
        book.names(torch.optim.SGD([*module.parameters(), *other.parameters()]))
    assert not book.knows(nn.Parameter(torch.ones(1)))


def test_optimizers_follow_parameters_that_were_replaced():
    module = Five()
    before = named_parameters(module)
    optimizer = stepped(module, [NAMES])
    average = optimizer.state[module.a]["exp_avg"]
    for name in NAMES:
        setattr(module, name, nn.Parameter(torch.zeros(2)))
    book = ParameterBook()
    book.record(before, module)
    book.follow(optimizer)
    assert [id(parameter) for parameter in parameters_of(optimizer)] == [id(getattr(module, name)) for name in NAMES]
    assert torch.equal(optimizer.state[module.a]["exp_avg"], average)
    assert len(optimizer.state) == len(NAMES)
    book.follow(optimizer)  # a second time there is nothing to do
    assert book.names(optimizer) == NAMES


def test_a_shared_parameter_keeps_its_first_name_and_must_stay_shared():
    module = Five()
    module.b = module.a
    before = named_parameters(module)
    book = book_of(module)
    assert book.names(torch.optim.SGD([module.b])) == ["a"]
    module.b = nn.Parameter(torch.zeros(2))
    with pytest.raises(ConfigurationError, match="parameters 'a', 'b' of Five were one, and are two"):
        book.record(before, module)


def test_the_book_keeps_no_parameter_alive():
    import gc
    import weakref

    module = Five()
    book = book_of(module)
    reference = weakref.ref(module.a)
    del module
    gc.collect()
    assert reference() is None
    assert book is not None


def test_modules_load_through_their_own_hooks():
    heard = []
    module = nn.Linear(2, 1)
    module.register_load_state_dict_post_hook(lambda module, keys: heard.append(module.weight.tolist()))
    load_module_state(module, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
    assert heard == [[[1.0, 1.0]]]
    with pytest.raises(RuntimeError, match="Missing key"):
        load_module_state(module, {"weight": torch.ones(1, 2)})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        load_module_state(module, {**module.state_dict(), "other": torch.ones(1)})
    load_module_state(module, {"weight": torch.zeros(1, 2), "other": torch.ones(1)}, strict=False)
    assert module.weight.tolist() == [[0.0, 0.0]]
    with pytest.raises(CheckpointError, match="'weight' has the shape"):
        load_module_state(module, {"weight": torch.ones(3, 3)}, strict=False)


class Described:
    """What `torch.distributed.checkpoint` says of a tensor."""

    def __init__(self, *size):
        self.properties = SimpleNamespace(dtype=torch.float64)
        self.size = torch.Size(size)
        self.chunks = []


def test_what_is_to_be_filled_follows_from_what_a_folder_holds():
    weight = nn.Parameter(torch.ones(2, 3))
    state = empty_optimizer_state(
        [
            (("state", "weight", "step"), Described()),
            (("state", "weight", "exp_avg"), Described(2, 3)),
            (("state", "weight", "nothing"), None),
            (("state", "weight", "deep", "er"), Described(2, 3)),
            (("state", "other", "step"), Described()),
            (("param_groups", 0, "lr"), None),
            (("param_groups", 0, "params"), None),
            (("param_groups", 1, "lr"), None),
            (("extra",), None),
        ],
        {"weight": weight},
    )
    values = state["state"].pop("weight")
    assert state == {
        "state": {},
        "param_groups": [{"lr": None, "params": None}, {"lr": None}],
        "extra": None,
    }
    assert (values["step"].shape, values["exp_avg"].shape) == ((), (2, 3))
    assert values["exp_avg"].dtype == torch.float64
    assert (values["nothing"], values["deep"]) == (None, None)
