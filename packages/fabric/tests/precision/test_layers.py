from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.fabric.precision.layers import exchange_layers, exchanging_layers


class Other(nn.Module):
    """In the place of a linear layer, with its parameters."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight


def exchange(layer: nn.Module) -> nn.Module | None:
    return Other(layer) if type(layer) is nn.Linear else None


leaf = st.sampled_from([nn.ReLU, lambda: nn.Linear(1, 1), lambda: nn.LayerNorm(1)]).map(lambda make: make())
tree = st.recursive(
    leaf,
    lambda children: (
        st.lists(children, min_size=1, max_size=3).map(lambda parts: nn.Sequential(*parts))
        | st.lists(children, min_size=1, max_size=2).map(nn.ModuleList)
        | children.map(lambda part: nn.ModuleDict({"x": part}))
    ),
    max_leaves=6,
)


@given(tree, st.booleans())
def test_all_layers_and_only_those_are_exchanged_in_place(module: nn.Module, training: bool) -> None:
    module.train(training)
    before = dict(module.named_modules())
    after = dict(exchange_layers(module, exchange).named_modules())
    assert list(after) == list(before)
    for name, old in before.items():
        if type(old) is nn.Linear:
            assert isinstance(after[name], Other)
            assert after[name].weight is old.weight
        else:
            assert after[name] is old
        assert after[name].training == training


def test_a_layer_in_two_places_stays_one() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    module.append(module[0])
    exchange_layers(module, exchange)
    assert isinstance(module[0], Other)
    assert module[0] is module[2]


def test_layers_that_share_a_weight_stay() -> None:
    module = nn.ModuleDict({"embed": nn.Embedding(3, 2), "head": nn.Linear(2, 3), "free": nn.Linear(2, 2)})
    module["head"].weight = module["embed"].weight
    exchange_layers(module, exchange)
    assert type(module["head"]) is nn.Linear
    assert isinstance(module["free"], Other)


def test_names_can_be_kept() -> None:
    module = nn.ModuleDict({"a": nn.Sequential(nn.Linear(1, 1)), "b": nn.Linear(1, 1)})
    exchange_layers(module, exchange, is_kept=lambda name: name == "a.0")
    assert type(module["a"][0]) is nn.Linear
    assert isinstance(module["b"], Other)


def test_each_old_layer_is_let_go_before_the_next_is_made() -> None:
    alive: list[int] = []

    class Counted(nn.Linear):
        num_alive = 0

        def __init__(self) -> None:
            super().__init__(1, 1)
            Counted.num_alive += 1

        def __del__(self) -> None:
            Counted.num_alive -= 1

    def count(layer: nn.Module) -> nn.Module | None:
        if not isinstance(layer, Counted):
            return None
        alive.append(Counted.num_alive)
        return nn.Identity()

    exchange_layers(nn.Sequential(*[Counted() for _ in range(4)]), count)
    assert alive == [4, 3, 2, 1]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.direct = nn.Linear(2, 2)
        self.nothing = None
        self.parts = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.add_module("added", nn.Linear(2, 2))


def test_while_a_module_is_made() -> None:
    with exchanging_layers(exchange):
        made = Net()
    assert [type(m) for m in (made.direct, made.parts[0], made.added)] == [Other] * 3
    assert type(Net().direct) is nn.Linear


def test_it_ends_with_an_error_too() -> None:
    def fail_inside() -> None:
        with exchanging_layers(exchange):
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail_inside()
    assert type(Net().direct) is nn.Linear
    assert torch.nn.Linear is nn.Linear
