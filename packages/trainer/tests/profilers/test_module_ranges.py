import pytest
import torch
from torch import nn

from fulmen.trainer.profilers import RegisterRecordFunction


class Fails(nn.Module):
    def forward(self, x):
        raise ValueError("of the layer")


def test_calls_of_layers_are_ranges_while_it_is_entered():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        with RegisterRecordFunction(model):
            model(torch.ones(1, 2))
        model(torch.ones(1, 2))
    ranges = [event.name for event in profiler.events() if event.name.startswith("[pl]")]
    assert sorted(ranges) == [
        "[pl][module]torch.nn.modules.activation.ReLU: 1",
        "[pl][module]torch.nn.modules.linear.Linear: 0",
    ]


def test_a_call_that_fails_ends_its_range():
    model = nn.Sequential(Fails())
    watch = RegisterRecordFunction(model)
    with pytest.raises(ValueError, match="of the layer"), watch:
        model(torch.ones(1))
    assert not watch._ranges
    assert not model[0]._forward_pre_hooks
