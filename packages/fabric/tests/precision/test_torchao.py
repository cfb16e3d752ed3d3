import sys

import pytest
import torch
from torch import nn

from fulmen.fabric import Fabric
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, MissingPackageError
from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.precision.torchao import TorchAOPrecision

needs_torchao = pytest.mark.skipif(not is_installed("torchao"), reason="torchao is not installed")


def make_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))


def train(precision, num_steps=60):
    """The losses, and what was trained."""
    fabric = Fabric(accelerator="cpu", devices=1, plugins=precision)
    net = make_net()
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.3))
    torch.manual_seed(2)
    inputs = torch.randn(64, 16)
    targets = inputs[:, :3].relu()
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs).float(), targets)
        fabric.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses, fabric, model


@needs_torchao
@pytest.mark.parametrize("emulate", [None, True])
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float8_learns_nearly_as_well(recipe, dtype, emulate):
    whole, _, _ = train(None)
    losses, _, model = train(TorchAOPrecision("float8", dtype, recipe, emulate))
    kinds = [type(part).__name__ for part in model.module]
    assert kinds == ["Float8Linear", "ReLU", "Float8Linear", "ReLU", "Linear"]  # three is no multiple of 16
    assert losses[-1] < 0.3 * losses[0]
    assert losses[-1] < 2 * whole[-1]
    assert losses != whole


@needs_torchao
def test_int8_weights_learn_are_saved_and_loaded(tmp_path):
    losses, fabric, model = train(TorchAOPrecision("int8", torch.float32))
    assert losses[-1] < 0.5 * losses[0]
    assert model.module[0].weight.int_data.dtype == torch.int8
    fabric.save(tmp_path / "saved.ckpt", {"model": model})
    _, fabric, other = train(TorchAOPrecision("int8", torch.float32), num_steps=1)
    inputs = torch.ones(2, 16)
    assert not torch.equal(other(inputs), model(inputs))
    fabric.load(tmp_path / "saved.ckpt", {"model": other})
    assert torch.equal(other(inputs), model(inputs))


@needs_torchao
def test_layers_that_are_named_stay_as_they_are():
    precision = TorchAOPrecision(dtype=torch.float32, ignore_modules={"0"})
    net = precision.convert_module(make_net())
    assert [type(part).__name__ for part in net][:3] == ["Linear", "ReLU", "Float8Linear"]
    assert precision.convert_module(net) is net  # once


@needs_torchao
def test_what_would_change_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="found no layer to exchange in Sequential"):
        TorchAOPrecision().convert_module(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(ConfigurationError, match="names 'hed'"):
        TorchAOPrecision(ignore_modules=["hed"]).convert_module(make_net())


@needs_torchao
def test_strategies_that_cannot_send_its_weights_are_refused():
    with pytest.raises(ConfigurationError, match="TorchAOPrecision with DDPStrategy, which copies"):
        Fabric(accelerator="cpu", devices=2, strategy="ddp", plugins=TorchAOPrecision("int8"))
    with pytest.raises(ArgumentTypeError, match="Pass FSDPPrecision\\('bf16-mixed'\\)"):
        Fabric(accelerator="cpu", devices=2, strategy="fsdp", plugins=TorchAOPrecision())
    assert Fabric(accelerator="cpu", devices=2, strategy="ddp", plugins=TorchAOPrecision()).strategy.precision


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"mode": "int4"}, ConfigurationError, "mode='int4'"),
        ({"recipe": "best"}, ConfigurationError, "recipe='best'"),
        ({"dtype": torch.float16}, ConfigurationError, r"dtype=torch\.float16"),
        ({"mode": "int8", "emulate": True}, ConfigurationError, "has arguments for float8"),
        ({"ignore_modules": "head"}, ArgumentTypeError, "is a text"),
    ],
)
def test_bad_arguments_are_refused(arguments, kind, words):
    with pytest.raises(kind, match=words):
        TorchAOPrecision(**arguments)


def test_without_the_package_the_line_of_pip_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingPackageError, match="python -m pip install torchao"):
        TorchAOPrecision()
