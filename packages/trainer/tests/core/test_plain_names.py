"""Parts that went through `torch.compile`, inside a module: no checkpoint shows it, and every checkpoint loads."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.trainer.core.module import LightningModule

NAMES = ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias", "head.weight", "head.bias"]


class Net(LightningModule):
    """With its body compiled by `__init__`, by `configure_model`, or not at all."""

    def __init__(self, compiled=None):
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
        self.head = nn.Linear(2, 1)
        self.compile_body("init")

    def compile_body(self, where):
        if self.hparams.compiled == where:
            self.body = torch.compile(self.body, backend="eager")

    def configure_model(self):
        self.compile_body("configure_model")

    def training_step(self, batch, batch_idx):
        return self.head(self.body(batch)).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(torch.arange(12.0).view(4, 3) / 12, batch_size=2)


WAYS = [None, "init", "configure_model"]


def with_wrappers(state):
    return {name.replace("body.", "body._orig_mod."): value for name, value in state.items()}


@pytest.mark.parametrize("saved", WAYS)
@pytest.mark.parametrize("loaded", WAYS)
def test_a_checkpoint_loads_whatever_is_compiled_on_either_side(saved, loaded, quick, tmp_path):
    trainer = quick(max_epochs=1)
    net = Net(saved)
    trainer.fit(net)
    path, old = tmp_path / "new.ckpt", tmp_path / "old.ckpt"
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path)
    assert list(checkpoint["state_dict"]) == list(net.state_dict()) == NAMES
    torch.save({**checkpoint, "state_dict": with_wrappers(checkpoint["state_dict"])}, old)
    for file in (path, old):
        again = Net.load_from_checkpoint(file, compiled=loaded)
        assert_same(again, net)
        resumed = Net(loaded)
        trainer = quick(max_epochs=1)
        trainer.fit(resumed, ckpt_path=file)
        assert trainer.global_step == 2
        assert_same(resumed, net)


def assert_same(one, other):
    assert list(one.state_dict()) == list(other.state_dict())
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("around", [lambda net: nn.ModuleDict({"net": net}), copy.deepcopy, nn.Sequential])
def test_it_is_so_wherever_the_module_stands(around):
    one, other, plain = around(Net("init")), around(Net("init")), around(Net())
    assert list(one.state_dict()) == list(plain.state_dict())
    for state in (plain.state_dict(), with_wrappers(plain.state_dict()), plain.state_dict(prefix="")):
        other.load_state_dict(state)
        assert_same(other, plain)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**plain.state_dict(), "nobody": torch.ones(1)})


def test_the_prefix_of_the_caller_stays():
    assert list(Net("init").state_dict(prefix="a.")) == [f"a.{name}" for name in NAMES]
