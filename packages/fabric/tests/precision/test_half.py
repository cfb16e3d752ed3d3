import pytest
import torch
from torch import nn

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.fabric import Fabric
from fulmen.fabric.precision.fsdp import FSDPPrecision
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


@pytest.mark.parametrize("kind", [HalfPrecision, FSDPPrecision])
def test_float16_does_not_train_on_the_cpu(kind):
    with pytest.raises(ConfigurationError, match=r"^fit\(\) cannot train.* precision='bf16-true'"):
        kind("16-true").check_training("cpu", "fit()")
    kind("16-true").check_training("cuda", "fit()")
    kind("bf16-true").check_training("cpu", "fit()")


def test_fabric_evaluates_in_float16_on_the_cpu_and_takes_no_optimizer():
    fabric, module = Fabric(accelerator="cpu", devices=1, precision="16-true"), nn.Linear(3, 1)
    optimizer = torch.optim.Adam(module.parameters())
    with pytest.raises(ConfigurationError, match=r"fabric\.setup\(module, optimizer\) cannot train"):
        fabric.setup(module, optimizer)
    assert module.weight.dtype == torch.float32, "nothing was changed"
    model = fabric.setup(module)
    with pytest.raises(ConfigurationError, match=r"fabric\.setup_optimizers\(optimizer\) cannot train"):
        fabric.setup_optimizers(optimizer)
    assert model.weight.dtype == torch.float16
    assert model(torch.ones(2, 3)).isfinite().all()


def test_why_float16_does_not_train_on_the_cpu():
    """When this fails, torch has become better, and the refusal can go."""
    module = nn.Linear(4, 2, dtype=torch.float16)
    optimizer = torch.optim.Adam(module.parameters())
    inputs = torch.tensor([[1.0, 0.5, 0.0, 0.0]], dtype=torch.float16)  # half of the gradients are zero
    module(inputs).square().sum().backward()
    optimizer.step()
    assert module.weight.isnan().any()
