import pytest
import torch
from torch import nn

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.precision.half import HalfPrecision

DTYPES = {"16-true": torch.float16, "bf16-true": torch.bfloat16}


@pytest.mark.parametrize("name", DTYPES)
def test_a_step_in_16_bits(name):
    precision, dtype = HalfPrecision(name), DTYPES[name]
    assert (precision.precision, precision.dtype, precision.compute_dtype) == (name, dtype, dtype)
    assert not precision.scales_loss
    module = precision.convert_module(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)))
    assert {tensor.dtype for tensor in module.state_dict().values()} == {dtype}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with precision.forward_context():
        made_inside = torch.ones(1)
        loss = module(precision.convert_input(torch.randn(5, 3))).square().mean()
    assert made_inside.dtype == loss.dtype == dtype
    precision.backward(loss, module)
    assert {parameter.grad.dtype for parameter in module.parameters()} == {dtype}
    before = [parameter.detach().clone() for parameter in module.parameters()]
    precision.optimizer_step(optimizer)
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


def test_it_is_float16_unless_told_otherwise():
    assert HalfPrecision().precision == "16-true"
    with pytest.raises(ConfigurationError, match=r"HalfPrecision\(precision='16'\)"):
        HalfPrecision("16")
