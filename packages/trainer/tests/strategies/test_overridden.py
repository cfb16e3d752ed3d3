"""What users override in a strategy of their own is what a run calls."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.fabric.accelerators.cpu import CPUAccelerator
from fulmen.fabric.precision.base import Precision
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies.ddp import DDPStrategy
from fulmen.trainer.strategies.single_device import SingleDeviceStrategy


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data():
    return DataLoader(torch.ones(2, 2))


class Own(SingleDeviceStrategy):
    """Notes what is called, and steps twice as far."""

    def __init__(self):
        super().__init__("cpu")
        self.calls = []

    def setup(self, trainer):
        self.calls.append(f"setup {trainer.state.fn}")
        super().setup(trainer)

    def setup_optimizers(self, trainer):
        super().setup_optimizers(trainer)
        self.calls.append(f"setup_optimizers {len(trainer.optimizers)}")
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] *= 2


def test_setup_and_setup_optimizers_are_called_with_the_trainer(quick):
    strategy, net = Own(), Net()
    before = net.layer.bias.item()
    trainer = quick(strategy=strategy)
    trainer.fit(net, data())
    assert strategy.calls == ["setup fit", "setup_optimizers 1"]
    assert net.layer.bias.item() == pytest.approx(before - 2 * 0.2)
    trainer.validate(net, data(), verbose=False)
    assert strategy.calls[2:] == ["setup validate"]


class OwnDDP(DDPStrategy):
    def __init__(self):
        super().__init__(start_method="fork")
        self.calls = []

    def set_world_ranks(self):
        self.calls.append("set_world_ranks")
        super().set_world_ranks()

    def setup_distributed(self):
        self.calls.append("setup_distributed")
        super().setup_distributed()

    def configure_ddp(self):
        self.calls.append(f"configure_ddp {self.determine_ddp_device_ids()}")
        super().configure_ddp()


class TellsCalls(Net):
    def on_train_end(self):
        self.layer.bias.data.fill_(len(self.trainer.strategy.calls))
        assert self.trainer.strategy.calls == ["setup_distributed", "set_world_ranks", "configure_ddp None"]


def test_each_step_of_joining_the_processes_can_be_overridden(quick):
    strategy, net = OwnDDP(), TellsCalls()
    assert strategy.num_nodes == 1
    trainer = quick(strategy=strategy, devices=2)
    assert strategy.num_processes == 2
    assert strategy.process_group_backend == "gloo"
    trainer.fit(net, data())
    assert net.layer.bias.item() == 3  # it comes home from the other process


class OwnAccelerator(CPUAccelerator):
    def setup(self, trainer):
        self.prepared_for = str(trainer.state.fn)


def test_an_accelerator_may_prepare_itself(quick):
    accelerator = OwnAccelerator()
    quick(accelerator=accelerator).fit(Net(), data())
    assert accelerator.prepared_for == "fit"


class Contexts(Precision):
    def train_step_context(self):
        raise AssertionError


class Clips(Precision):
    def clip_gradients(self, optimizer, clip_val=0, gradient_clip_algorithm="norm"):
        raise AssertionError


class Steps(Precision):
    def optimizer_step(self, optimizer, model, closure, **kwargs):
        raise AssertionError


class Derives(Precision):
    def backward(self, tensor, model, optimizer, *args, **kwargs):
        raise AssertionError


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        (Contexts, r"train_step_context\(\).*forward_context"),
        (Clips, r"clip_gradients\(\).*configure_gradient_clipping"),
        (Steps, r"optimizer_step\(\) that wants 'model'"),
        (Derives, r"backward\(\) that wants 'optimizer'"),
    ],
)
def test_a_precision_with_methods_that_nobody_calls_is_refused(precision, words, quick):
    with pytest.raises(ConfigurationError, match=words):
        quick(plugins=[precision()])
    with pytest.raises(ConfigurationError, match=words):
        quick(strategy=SingleDeviceStrategy("cpu", precision_plugin=precision()))
