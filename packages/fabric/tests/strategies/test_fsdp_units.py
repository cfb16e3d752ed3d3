import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.fabric.errors import ArgumentTypeError
from fulmen.fabric.strategies.fsdp_units import check_policy, choose, recompute


class Leaf(nn.Linear):
    pass


def trees():
    leaves = st.builds(lambda size: Leaf(size, 1), st.integers(1, 4)) | st.builds(nn.ReLU)
    return st.recursive(leaves, lambda parts: st.lists(parts, max_size=3).map(lambda found: nn.Sequential(*found)))


def numel(module):
    return sum(parameter.numel() for parameter in module.parameters())


@given(trees(), st.integers(1, 12))
def test_units_by_size_are_no_smaller_than_asked_and_inner_ones_come_first(root, least):
    def policy(module, recurse, nonwrapped_numel):
        return nonwrapped_numel >= least

    chosen = choose(root, policy)
    places = {part: place for place, part in enumerate(chosen)}
    assert len(places) == len(chosen)
    for part in chosen:
        inner = [one for one in chosen if one is not part and one in set(part.modules())]
        assert all(places[one] < places[part] for one in inner)
        outermost = [
            one for one in inner if not any(one in set(other.modules()) for other in inner if other is not one)
        ]
        assert numel(part) - sum(map(numel, outermost)) >= least
    assert bool(chosen) == (numel(root) >= least)


@given(trees())
def test_units_by_class_are_all_of_that_class_and_nothing_else(root):
    expected = {part for part in root.modules() if isinstance(part, Leaf)}
    chosen = choose(root, {Leaf})
    assert len(chosen) == len(expected)
    assert set(chosen) == expected


def test_torch_gives_policies_that_are_asked_the_same_way():
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy, always_wrap_policy, transformer_auto_wrap_policy

    root = nn.Sequential(nn.Sequential(Leaf(2, 2), nn.Linear(2, 2)), nn.ReLU())
    assert choose(root, ModuleWrapPolicy({Leaf})) == [root[0][0]]
    assert choose(root, always_wrap_policy) == [root[0][0], root[0][1], root[0], root]
    from functools import partial

    policy = partial(transformer_auto_wrap_policy, transformer_layer_cls={nn.Linear})
    assert choose(root, policy) == [root[0][0], root[0][1]]


def test_what_has_no_parameters_or_no_forward_is_no_unit():
    root = nn.ModuleDict({"list": nn.ModuleList([nn.Linear(1, 1)]), "empty": nn.ReLU()})
    assert choose(root, {nn.ModuleList, nn.ReLU, nn.ModuleDict, nn.Linear}) == [root["list"][0]]
    assert choose(root, None) == []


def test_a_part_that_stands_twice_is_chosen_once():
    shared = Leaf(1, 1)
    root = nn.Sequential(shared, shared)
    assert choose(root, {Leaf}) == [shared]
    assert choose(root, lambda module, recurse, nonwrapped_numel: isinstance(module, Leaf) or recurse) == [shared]


@pytest.mark.parametrize("policy", [3, "Block", [3], {torch.Tensor}, nn.Linear])
def test_what_is_no_policy_is_refused(policy):
    with pytest.raises(ArgumentTypeError, match=r"FSDPStrategy\(auto_wrap_policy=.*Pass a set of module classes"):
        check_policy("auto_wrap_policy", policy)


def test_policies_pass():
    for policy in (None, {nn.Linear}, [nn.Linear], lambda **_: True):
        check_policy("auto_wrap_policy", policy)


def test_recomputing_parts_run_again_in_backward_and_give_the_same_gradients():
    ran = []
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    root[0].register_forward_hook(lambda *_: ran.append(0))
    x = torch.ones(3, 2)
    root(x).sum().backward()
    expected = [parameter.grad.clone() for parameter in root.parameters()]
    names = list(root.state_dict())
    root.zero_grad()
    recompute([root])
    root(x).sum().backward()
    assert len(ran) == 3
    assert list(root.state_dict()) == names
    for parameter, gradient in zip(root.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
