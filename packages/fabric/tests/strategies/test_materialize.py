import pytest
import torch
from torch import nn

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.strategies.materialize import Materializer, warn_without_values, without_memory

CPU = torch.device("cpu")


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))


def on_meta():
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), Own())


def test_values_are_those_of_a_module_made_with_memory():
    module = on_meta()
    parts = without_memory(module)
    assert parts == [module[0], module[1], module[3]]
    torch.manual_seed(1)
    materializer = Materializer(CPU)
    materializer.fill(parts)
    with pytest.warns(UserWarning, match=r"Parameters of Own were made on the meta device.*reset_parameters\(\)"):
        materializer.warn()
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    for name, value in plain.state_dict().items():
        assert torch.equal(module.state_dict()[name], value)
    assert without_memory(module) == []


def test_a_shared_parameter_stays_one_over_several_calls():
    with torch.device("meta"):
        first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    materializer = Materializer(CPU)
    materializer.fill([first])
    materializer.fill([second])
    assert second.weight is first.weight
    assert not first.weight.is_meta


def test_frozen_parameters_stay_frozen():
    module = on_meta().requires_grad_(False)
    Materializer(CPU).fill(without_memory(module))
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_an_initialiser_of_the_users_own_is_called_instead():
    def init(part):
        part.to_empty(device=CPU, recurse=False)
        for parameter in part.parameters(recurse=False):
            nn.init.constant_(parameter, 7.0)

    module = on_meta()
    Materializer(CPU, init).fill(without_memory(module))
    assert all(bool((parameter == 7).all()) for parameter in module.parameters())
    with pytest.raises(ConfigurationError, match=r"left \['weight', 'bias'\] of Linear on the meta device"):
        Materializer(CPU, lambda part: None).fill(without_memory(on_meta()))


def test_attention_of_torch_has_values(recwarn):
    with torch.device("meta"):
        module = nn.MultiheadAttention(4, 2)
    materializer = Materializer(CPU)
    materializer.fill(without_memory(module))
    materializer.warn()
    assert not recwarn
    assert bool((module.in_proj_bias == 0).all())


def test_nothing_is_said_where_all_have_values(recwarn):
    warn_without_values(set())
    assert not recwarn
