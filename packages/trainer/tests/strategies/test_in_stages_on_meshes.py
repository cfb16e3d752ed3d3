"""Stages beside every other axis, in four real processes: clipped, accumulated, logged and resumed as in one."""

import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric.strategies.pipeline.cuts import Pipeline
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.strategies.model_parallel import ModelParallelStrategy
from fulmen.trainer.trainer import Trainer

pytestmark = pytest.mark.timeout(300)  # on a busy machine

PROCESSES, SAMPLES, BATCH, WINDOW = 4, 44, 12, 2
TWO, FOUR = ["blocks.1"], ["blocks.1", "blocks.2", "blocks.3"]
TENSORS = {"blocks.*.up": "column", "blocks.*.down": "row"}
MESHES = {
    "data": {"pipeline": Pipeline(TWO, 2), "data_parallel_size": 2},
    "replicas": {
        "pipeline": Pipeline(FOUR, 4, "ZBVZeroBubble"),
        "plan": {"blocks.*": "shard"},
        "replicate_size": 2,
        "data_parallel_size": 1,
    },
    "tensors": {
        "pipeline": Pipeline(FOUR, 4, "InterleavedZeroBubble"),
        "plan": TENSORS,
        "tensor_parallel_size": 2,
        "data_parallel_size": 1,
    },
    "contexts": {
        "pipeline": Pipeline(TWO, 2, "GPipe"),
        "plan": {"blocks.*": "ring"},
        "data_parallel_size": 2,
        "context_parallel_size": 2,
    },
}
# A mesh, and the one that has saved.
RESUMED = [
    ("data", "data"),
    ("replicas", "data"),
    ("tensors", "replicas"),
    ("contexts", "tensors"),
    ("data", "contexts"),
]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.up, self.down = nn.Linear(4, 12), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 2)).transpose(1, 3).unbind(2)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.down(torch.tanh(self.up(x)))


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.count = torchmetrics.SumMetric()
        self.double()

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    def training_step(self, batch, batch_idx):
        x, y = self.part_of(batch)
        loss = nn.functional.mse_loss(self(x), y)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        self.count(float(x.shape[0] * x.shape[1]))  # of a sequence, each process has its part
        self.log("count", self.count, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = self.part_of(batch)
        self.log("val", nn.functional.mse_loss(self(x), y), sync_dist=True, batch_size=len(x))

    def part_of(self, batch):
        strategy = self.trainer.strategy
        return strategy.part_of_sequence(batch) if isinstance(strategy, ModelParallelStrategy) else batch

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Watch(Callback):
    def __init__(self, path):
        self.path, self.logged = path, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.path is not None and (trainer.current_epoch, batch_idx) == (1, 1):  # inside of an epoch
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, pl_module):
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def data(num_shares):
    x = torch.randn(SAMPLES, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return DataLoader(TensorDataset(x, x.sin()), batch_size=BATCH // num_shares)


def fitted(folder, mesh, *, save=None, ckpt_path=None):
    strategy, num_shares = "auto", 1
    if mesh is not None:
        strategy = ModelParallelStrategy(**({"tensor_parallel_size": 1} | MESHES[mesh]))
        num_shares = 2 if mesh in ("data", "replicas") else 1
    watch, module = Watch(save), Net()
    trainer = Trainer(
        accelerator="cpu",
        devices=1 if mesh is None else PROCESSES,
        strategy=strategy,
        callbacks=[watch],
        max_epochs=2,
        accumulate_grad_batches=WINDOW,
        gradient_clip_val=0.1,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data(num_shares), data(num_shares), ckpt_path=ckpt_path)
    state = trainer.strategy.lightning_module_state_dict() if mesh is None else whole(trainer, module)
    return {"logged": watch.logged, "steps": trainer.global_step, "weights": state}


def whole(trainer, module):
    fabric_strategy = trainer.strategy.fabric_strategy
    held = {name: value for name, value in module.state_dict().items() if fabric_strategy.holds(module, name)}
    return {name: getattr(value, "full_tensor", value.detach)().clone() for name, value in held.items()}


def run_all(folder, rank):
    seen = {mesh: fitted(folder, mesh, save=folder / f"{mesh}.ckpt") for mesh in MESHES}
    for mesh, saved in RESUMED:
        seen[mesh, saved] = fitted(folder, mesh, ckpt_path=folder / f"{saved}.ckpt")
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory, in_processes):
    import torch.distributed.fsdp
    import torch.distributed.pipelining
    import torch.distributed.tensor.parallel  # noqa: F401  # once, before the fork

    folder = tmp_path_factory.mktemp("meshes")
    return [*in_processes(run_all, folder, PROCESSES), fitted(folder, None)]


@pytest.mark.parametrize("name", [*MESHES, *RESUMED])
def test_it_trains_logs_and_goes_on_as_in_one_process(seen, name):
    *found, plain = seen
    assert {key for one in found for key in one[name]["weights"]} == set(plain["weights"])
    for one in found:
        assert one[name]["steps"] == plain["steps"] == 4
        for key, value in one[name]["weights"].items():
            torch.testing.assert_close(value, plain["weights"][key], rtol=0, atol=1e-9)
        logged = one[name]["logged"]
        for values, expected in zip(logged, plain["logged"][-len(logged) :], strict=True):
            if name in RESUMED and "contexts" in name:  # the mean weighs what was before otherwise
                values, expected = ({**both, "loss": 0.0} for both in (values, expected))
            assert values == pytest.approx(expected, abs=1e-6)
