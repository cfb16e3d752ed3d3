"""What a fit would take: asked of a Trainer, for machines that need not exist."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy as FabricModelParallel
from fulmen.fabric.strategies.pipeline.cuts import Pipeline
from fulmen.trainer import LightningModule, Trainer
from fulmen.trainer.demos import BoringDataModule, BoringModel
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.strategies import FSDPStrategy, ModelParallelStrategy


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.big = None

    def configure_model(self):
        if self.big is None:
            self.big = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))

    def training_step(self, batch, batch_idx):
        loss = self.big(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def trainer(**flags):
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, **flags)


def loader(num_samples=40, batch_size=4):
    return DataLoader(TensorDataset(torch.rand(num_samples, 16)), batch_size=batch_size)


NUMBERS = 16 * 64 + 64 + 64 * 16 + 16


def test_a_module_of_configure_model_is_planned_and_not_made():
    net = Net()
    forecast = trainer(devices=2, num_nodes=2, strategy="fsdp", accumulate_grad_batches=2).plan(net, loader())
    assert net.big is None
    assert forecast.num_parameters == NUMBERS
    assert forecast.memory_bytes["parameters"] == NUMBERS  # a quarter, of four bytes each
    assert forecast.memory_bytes["optimizer state"] == 2 * NUMBERS + 4 * 4
    assert forecast.steps_per_epoch == 2  # ten samples each, three batches, by two
    assert not dist.is_initialized()


def test_it_can_be_asked_for_machines_that_are_not_there():
    alone = trainer(devices=1)
    forecast = alone.plan(Net(), loader(), devices=8, num_nodes=16)
    assert (forecast.strategy, forecast.world_size) == ("DDPStrategy", 128)
    assert (alone.num_devices, alone.num_nodes) == (1, 1)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true", "64-true", "32-true"])
def test_every_precision_can_be_planned(precision):
    forecast = trainer(devices=2, strategy="ddp", precision=precision).plan(Net(), loader())
    size = {"bf16-true": 2, "64-true": 8}.get(precision, 4)
    assert forecast.memory_bytes["parameters"] == NUMBERS * size


def test_strategies_of_the_trainer_are_planned_and_stay_new():
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=2)
    with pytest.raises(ConfigurationError):  # nothing of the module is split
        trainer(devices=4, strategy=strategy).plan(Net(), loader())
    fsdp = FSDPStrategy(auto_wrap_policy={nn.Linear})
    planned = trainer(devices=4, strategy=fsdp)
    forecast = planned.plan(Net(), loader())
    assert forecast.mesh == {"shard": 4}
    assert planned.plan(Net(), loader()) == forecast
    assert not isinstance(fsdp.fabric_strategy, FabricModelParallel)


class Sequences(LightningModule):
    def __init__(self, parts):
        super().__init__()
        self.parts, self.body = parts, nn.Sequential(Attention(), Attention())

    def training_step(self, batch, batch_idx):
        x = self.trainer.strategy.part_of_sequence(batch) if self.parts else batch
        loss = self.body(x).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.over = nn.Linear(16, 16)

    def forward(self, x):
        y = self.over(x).unflatten(-1, (4, 4)).transpose(1, 2)
        return x + nn.functional.scaled_dot_product_attention(y, y, y).transpose(1, 2).flatten(2)


def test_a_step_may_ask_for_its_part_of_a_sequence_on_machines_that_are_not_there():
    strategy = ModelParallelStrategy(plan={"body.*": "ring"}, data_parallel_size=8, context_parallel_size=4)
    asks = trainer(devices=2, strategy=strategy)  # on a laptop
    batches = DataLoader(torch.rand(8, 12, 16), batch_size=2)
    forecast = asks.plan(Sequences(parts=True), batches, devices=8)
    (sent,) = [one for one in forecast.traffic if one.axis == "context_parallel"]
    assert (sent.operation, sent.num_processes) == ("send", 4)
    fabric_strategy = asks.strategy.fabric_strategy
    assert (len(fabric_strategy.parallel_devices), fabric_strategy.num_nodes) == (2, 1)


@pytest.mark.filterwarnings("error:.*in no run:UserWarning")
def test_stages_are_planned_with_what_they_keep():
    # All that is named there is in a table of 80 columns.
    strategy = ModelParallelStrategy(pipeline=Pipeline(["body.1"], 4, "GPipe"))
    net = Sequences(parts=False)
    forecast = trainer(devices=2, strategy=strategy).plan(net, DataLoader(torch.rand(8, 12, 16), batch_size=8))
    assert forecast.memory_bytes["activations"] > forecast.memory_bytes["received"] == 8 * 12 * 16 * 4
    assert {one.operation for one in forecast.traffic} == {"send activations", "receive gradients"}
    assert max(map(len, str(forecast).splitlines())) <= 80


def test_clipping_by_norm_is_planned():
    def operations(**flags):
        forecast = trainer(devices=2, strategy="fsdp", **flags).plan(Net(), loader())
        return {one.operation for one in forecast.traffic}

    assert operations(gradient_clip_val=1.0) == {"all_gather", "reduce_scatter", "all_reduce"}
    assert operations(gradient_clip_val=1.0, gradient_clip_algorithm="value") == {"all_gather", "reduce_scatter"}


def test_a_plan_changes_nothing_and_a_fit_can_follow(tmp_path):
    net, run = BoringModel(), trainer(max_steps=2, default_root_dir=tmp_path, limit_val_batches=0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run.plan(net, datamodule=BoringDataModule())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    run.fit(net)
    assert run.global_step == 2
    assert run.plan(net).num_parameters == 66  # also of a module that has been run
    assert net.trainer is run


def test_without_data_there_is_memory_and_no_step():
    class NoData(Net):
        pass

    forecast = trainer(devices=2, strategy="ddp").plan(NoData())
    assert set(forecast.memory_bytes) >= {"parameters", "gradients", "optimizer state"}
    assert "activations" not in forecast.memory_bytes
    assert forecast.steps_per_epoch is None


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"Trainer\.plan"):
        trainer().plan(nn.Linear(2, 2))

    class Skips(Net):
        def training_step(self, batch, batch_idx):
            return None

    with pytest.raises(ConfigurationError, match=r"Skips.training_step\(\) returned None"):
        trainer().plan(Skips(), loader())

    with pytest.raises(ConfigurationError, match=r"no batch in the training dataloader list"):
        trainer().plan(Net(), [])
