import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.trainer.core.parameters import (
    FLOAT32_EPSILON,
    GradClipAlgorithmType,
    find_shared_parameters,
    grad_norm,
    recursive_detach,
    set_shared_parameters,
)
from fulmen.trainer.errors import ConfigurationError


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.middle = nn.ModuleList([nn.Linear(3, 3), self.first])
        self.last = nn.Linear(3, 3, bias=False)
        self.last.weight = self.middle[0].weight


def test_shared_parameters_are_found_by_all_their_names():
    assert find_shared_parameters(Tied()) == [
        ["first.weight", "middle.1.weight"],
        ["first.bias", "middle.1.bias"],
        ["middle.0.weight", "last.weight"],
    ]
    assert find_shared_parameters(nn.Linear(2, 2)) == []


def test_what_was_shared_can_be_shared_again():
    tied = Tied()
    shared = find_shared_parameters(tied)
    tied.last.weight = nn.Parameter(tied.last.weight.detach().clone())
    assert len(find_shared_parameters(tied)) == 2
    assert set_shared_parameters(tied, shared) is tied
    assert find_shared_parameters(tied) == shared
    with pytest.raises(ConfigurationError, match=r"'last\.bias'"):
        set_shared_parameters(tied, [["first.bias", "last.bias"]])


@given(st.sampled_from([1, 2, 2.5, "inf", float("inf")]), st.sampled_from(["/", "."]))
def test_norms_are_those_of_all_numbers(p, separator):
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    net(torch.ones(1, 3)).sum().backward()
    net[1].bias.grad = None
    norms = grad_norm(net, p, group_separator=separator)
    flat = torch.cat([parameter.grad.flatten() for parameter in net.parameters() if parameter.grad is not None])
    kind = f"grad_{float(p)}_norm"
    assert list(norms) == [f"{kind}{separator}{name}" for name in ("0.weight", "0.bias", "1.weight")] + [
        f"{kind}_total"
    ]
    assert norms[f"{kind}_total"] == pytest.approx(float(flat.double().norm(float(p))))
    assert norms[f"{kind}{separator}0.bias"] == pytest.approx(float(net[0].bias.grad.double().norm(float(p))))


def test_without_gradients_there_is_no_norm_and_zero_is_no_norm():
    assert grad_norm(nn.Linear(1, 1), 2) == {}
    with pytest.raises(ConfigurationError, match="norm_type=0"):
        grad_norm(nn.Linear(1, 1), 0)


def test_a_nest_is_detached():
    tensor = torch.ones(1, requires_grad=True)
    found = recursive_detach({"a": [tensor * 2], "b": 3}, to_cpu=True)
    assert not found["a"][0].requires_grad
    assert found["b"] == 3


def test_the_ways_to_bound_gradients():
    assert GradClipAlgorithmType.supported_types() == ["value", "norm"]
    assert GradClipAlgorithmType.supported_type("norm")
    assert not GradClipAlgorithmType.supported_type("max")
    assert 1 + FLOAT32_EPSILON > 1
