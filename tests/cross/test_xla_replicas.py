"""Replicas on XLA devices train as one process does. torch_xla stands in for itself only where it talks to devices."""

import os
from contextlib import nullcontext

import pytest
import torch

from fulmen.fabric import Fabric
from fulmen.fabric.accelerators import XLAAccelerator
from fulmen.fabric.launchers.xla import XLALauncher
from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.strategies import XLAStrategy
from fulmen.trainer import LightningModule, Trainer
from tests.support.fake_xla import forget_fake_xla, write_fake_xla

pytestmark = pytest.mark.skipif(is_installed("torch_xla"), reason="torch_xla is installed")


class OnCPU(XLAAccelerator):
    """Takes the devices of the fake."""

    def setup_device(self, device):
        assert device.type == "cpu"


@pytest.fixture(scope="module", autouse=True)
def _torch_xla(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fake")
    write_fake_xla(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        for name in ("PJRT_DEVICE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        yield
    forget_fake_xla()


def _net(seed):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    return net.double().eval()  # of a batch norm in training, each replica would see its own statistics


def _batches():
    torch.manual_seed(7)
    return torch.randn(6, 8, 3, dtype=torch.float64)


def _train(model, optimizer, batches, backward, without_sync, clip):
    for index, batch in enumerate(batches):
        with without_sync(index % 2 == 0):
            backward(model(batch).square().mean() / 2)
        if index % 2:
            clip()
            optimizer.step()
            optimizer.zero_grad()


def _work(fabric, folder):
    import torch_xla.core.xla_model as xm

    rank, strategy = fabric.global_rank, fabric.strategy
    answers = {"rank": (rank, fabric.local_rank, fabric.node_rank, fabric.world_size, os.environ["RANK"])}
    answers["share"] = strategy.distributed_sampler_kwargs
    mine = torch.tensor([1.0, 2.0]) * (rank + 1)
    answers["reduced"] = {
        op: fabric.all_reduce(mine, reduce_op=op).tolist() for op in ("sum", "mean", "max", "product")
    }
    answers["gathered"] = fabric.all_gather(mine).tolist()
    answers["objects"] = (fabric.broadcast({"from": rank}, src=1), strategy.gather_objects(rank))
    answers["votes"] = [strategy.reduce_boolean_decision(rank == 0, all=every) for every in (True, False)]
    store = strategy.shared_store()
    store.set(f"of{rank}", str(rank))
    answers["store"] = store.get(f"of{1 - rank}").decode()
    net = _net(seed=rank)  # the second replica begins with other weights
    model, optimizer = fabric.setup(net, torch.optim.Adam(net.parameters(), lr=0.1))
    before = xm.num_reductions
    _train(
        model,
        optimizer,
        _batches()[:, rank::2],
        fabric.backward,
        lambda enabled: fabric.no_backward_sync(model, enabled),
        lambda: fabric.clip_gradients(model, optimizer, max_norm=0.05),
    )
    answers["num_reductions"] = xm.num_reductions - before
    fabric.save(folder / "saved.ckpt", {"model": model, "optimizer": optimizer})
    answers["weights"] = {name: value.clone() for name, value in net.state_dict().items()}
    everybody = strategy.gather_objects(answers)
    strategy.teardown()
    assert not any(parameter._post_accumulate_grad_hooks for parameter in net.parameters())
    return everybody


@pytest.fixture(scope="module")
def told(tmp_path_factory, _torch_xla):
    folder = tmp_path_factory.mktemp("replicas")
    fabric = Fabric(accelerator=OnCPU(), strategy="xla", devices=2)
    assert isinstance(fabric.strategy, XLAStrategy)
    assert isinstance(fabric.strategy.launcher, XLALauncher)
    return fabric.launch(_work, folder), folder


def test_each_process_knows_its_place(told):
    for rank, answers in enumerate(told[0]):
        assert answers["rank"] == (rank, rank, 0, 2, str(rank))
        assert answers["share"] == {"num_replicas": 2, "rank": rank}


def test_values_of_all_processes_become_one(told):
    for rank, answers in enumerate(told[0]):
        assert answers["reduced"] == {"sum": [3, 6], "mean": [1.5, 3], "max": [2, 4], "product": [2, 8]}
        assert answers["gathered"] == [[1, 2], [2, 4]]
        assert answers["objects"] == ({"from": 1}, [0, 1])
        assert answers["votes"] == [False, True]
        assert answers["store"] == str(1 - rank)


def test_replicas_train_as_one_process_does(told):
    (first, second), folder = told
    net = _net(seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    _train(
        net,
        optimizer,
        _batches(),
        torch.Tensor.backward,
        nullcontext,
        lambda: torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05),
    )
    for name, value in net.state_dict().items():
        assert torch.allclose(first["weights"][name], value, rtol=0, atol=1e-9), name
        assert torch.equal(first["weights"][name], second["weights"][name]), name
    # Three steps of two batches each: gradients are exchanged once per step, all of them together.
    assert first["num_reductions"] == 3
    saved = torch.load(folder / "saved.ckpt", weights_only=True)
    assert torch.equal(saved["model"]["0.weight"], first["weights"]["0.weight"])


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Linear(2, 1, dtype=torch.float64)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("loss", loss, on_epoch=True, on_step=False, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", self.layer(batch).mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def _fit(folder, batch_size, **flags):
    torch.manual_seed(5)
    data = torch.randn(16, 2, dtype=torch.float64)
    loader = torch.utils.data.DataLoader(data, batch_size=batch_size)
    module = Line()
    weight = module.layer.weight
    trainer = Trainer(
        max_epochs=2,
        gradient_clip_val=0.5,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **flags,
    )
    trainer.fit(module, loader, loader)
    assert module.layer.weight is weight
    return trainer, module


def test_the_trainer_runs_replicas(tmp_path):
    alone, expected = _fit(tmp_path / "alone", 4, accelerator="cpu")
    trainer, module = _fit(tmp_path / "two", 2, accelerator=OnCPU(), strategy="xla", devices=2)
    assert torch.allclose(module.layer.weight, expected.layer.weight, rtol=0, atol=1e-9)
    assert trainer.global_step == alone.global_step == 8
    for name, value in alone.callback_metrics.items():
        assert torch.allclose(trainer.callback_metrics[name].double(), value.double(), rtol=0, atol=1e-6), name
    saved = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert torch.equal(saved["state_dict"]["layer.weight"], module.layer.weight)
