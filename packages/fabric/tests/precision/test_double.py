import torch
from torch import nn

from fulmen.fabric.precision.double import DoublePrecision


def test_a_step_is_that_of_a_module_made_in_float64():
    precision = DoublePrecision()
    torch.manual_seed(0)
    module = precision.convert_module(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))
    twin = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    twin.load_state_dict(module.state_dict())
    inputs = torch.randn(5, 3)
    with precision.forward_context():
        loss = module(precision.convert_input(inputs)).square().mean()
    precision.backward(loss, module)
    twin(inputs.double()).square().mean().backward()
    for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        assert ours.dtype == torch.float64
        assert torch.equal(ours.grad, theirs.grad)
    assert precision.convert_output(loss).dtype == torch.float32
    assert (precision.precision, precision.compute_dtype) == ("64-true", torch.float64)


def test_complex_parameters_stay_complex():
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    assert DoublePrecision().convert_module(module).weight.is_complex()
