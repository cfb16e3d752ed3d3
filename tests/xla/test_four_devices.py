"""For real: one process that computes on four XLA devices. Only `nox -s xla` runs it, with CPU_NUM_DEVICES=4."""

import os

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric import Fabric
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.strategies import XLAFSDPStrategy, XLAStrategy
from fulmen.trainer import LightningModule, Trainer
from fulmen.trainer.strategies import XLAStrategy as BoundXLAStrategy

xla = pytest.importorskip("torch_xla")
metrics = pytest.importorskip("torch_xla.debug.metrics")
pytestmark = pytest.mark.skipif(os.environ.get("CPU_NUM_DEVICES") != "4", reason="needs CPU_NUM_DEVICES=4")
if os.environ.get("CPU_NUM_DEVICES") == "4":
    pytest.importorskip("torch_xla.runtime").use_spmd()
    torch.zeros(
        1, device=xla.device()
    ).cpu()  # before the first backward on the CPU, which counts the devices that there are
KINDS = [XLAStrategy, XLAFSDPStrategy]


def layout(tensor):
    return xla._XLAC._get_xla_sharding_spec(tensor)


def net():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))


def samples(num=60):  # the last batch is smaller, and not divided by four
    torch.manual_seed(2)
    return TensorDataset(torch.randn(num, 8), torch.randn(num, 1))


def train(strategy, accelerator="tpu", *, seen=None):
    fabric = Fabric(accelerator=accelerator, strategy=strategy, devices="auto" if accelerator == "tpu" else 1)
    fabric.launch()
    module = net()
    model, optimizer = fabric.setup(module, torch.optim.Adam(module.parameters(), lr=0.01))
    losses = []
    for _ in range(3):
        for x, y in fabric.setup_dataloaders(DataLoader(samples(), batch_size=16)):
            if seen is not None:
                seen.append((layout(x), (metrics.metric_data("CompileTime") or [0])[0]))
            loss = (model(x) - y).square().mean()
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=0.5, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    return [loss.item() for loss in losses], fabric, model, optimizer


@pytest.fixture(scope="module")
def expected():
    return train("auto", "cpu")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_are_those_of_the_cpu_and_batches_are_divided(kind, expected):
    seen = []
    losses, fabric, *_ = train(kind(spmd=True), seen=seen)
    assert losses == pytest.approx(expected, abs=1e-4)
    assert {spec for spec, _ in seen} == {"{devices=[4,1]0,1,2,3}"}
    assert seen[-1][1] == seen[7][1]  # the first two epochs met each shape, with and without state of the optimizer
    assert (fabric.world_size, fabric.strategy.mesh.num_devices) == (1, 4)


def test_parameters_and_the_state_of_optimizers_lie_on_every_device_or_in_parts():
    *_, optimizer = train(XLAStrategy(spmd=True))
    assert {layout(parameter) for parameter in optimizer.param_groups[0]["params"]} == {"{replicated}"}
    *_, optimizer = train(XLAFSDPStrategy(spmd=True))
    weight = optimizer.param_groups[0]["params"][0]
    assert layout(weight) == "{devices=[4,1]0,1,2,3}"  # (16, 8), along its longer axis
    assert layout(optimizer.state[weight]["exp_avg"]) == layout(weight)
    assert layout(optimizer.param_groups[0]["params"][3]) == "{replicated}"  # one number


def test_a_file_of_four_devices_is_an_ordinary_one(tmp_path):
    _, fabric, model, optimizer = train(XLAFSDPStrategy(spmd=True))
    fabric.save(tmp_path / "saved.ckpt", {"model": model, "optimizer": optimizer})
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    fresh = net()
    fresh.load_state_dict(saved["model"])
    x = samples().tensors[0]
    assert torch.allclose(fresh(x), model(x.to(fabric.device)).cpu(), atol=1e-5)
    _, again, other, other_optimizer = train(XLAFSDPStrategy(spmd=True))
    again.load(tmp_path / "saved.ckpt", {"model": other, "optimizer": other_optimizer})
    weight = other_optimizer.param_groups[0]["params"][0]
    assert torch.equal(weight.cpu(), saved["model"]["0.weight"])
    assert layout(weight) == "{devices=[4,1]0,1,2,3}"


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net()

    def training_step(self, batch, batch_idx):
        loss = (self.net(batch[0]) - batch[1]).square().mean()
        self.log("loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", (self.net(batch[0]) - batch[1]).square().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fit(folder, **flags):
    trainer = Trainer(
        max_epochs=2,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **flags,
    )
    module = Net()
    loader = DataLoader(samples(), batch_size=16)
    trainer.fit(module, loader, loader)
    return trainer, module


@pytest.mark.parametrize("strategy", [lambda: BoundXLAStrategy(spmd=True), lambda: "xla_fsdp"])
def test_the_trainer_trains_as_on_the_cpu(strategy, tmp_path):
    trainer, module = fit(tmp_path / "xla", accelerator="tpu", devices=4, strategy=strategy())
    other, expected = fit(tmp_path / "cpu", accelerator="cpu", devices=1)
    assert torch.allclose(module.net[0].weight, expected.net[0].weight, atol=1e-4)
    for name, value in other.callback_metrics.items():
        assert trainer.callback_metrics[name].item() == pytest.approx(value.item(), abs=1e-4), name
    saved = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert torch.equal(saved["state_dict"]["net.0.weight"], module.net[0].weight)


def test_what_cannot_run_here_is_refused_before_it_begins():
    with pytest.raises(ConfigurationError, match=r"devices=4 cannot run where PJRT_DEVICE=CPU.*spmd=True"):
        Fabric(accelerator="tpu", strategy="xla", devices=4).launch()
    with pytest.raises(ConfigurationError, match="devices=2 would leave some of the 4 devices"):
        Fabric(accelerator="tpu", strategy=XLAStrategy(spmd=True), devices=2).launch()
