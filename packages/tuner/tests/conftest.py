"""Small models, a memory of a known size, and a look at everything that a Trainer is."""

import gc
import os
import random
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.trainer import Trainer

# A busy machine is no failure.
settings.register_profile("fulmen", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fulmen")
# What is garbage at a fork is the parent's: a child that collects a store waits for its thread, which it does not have.
os.register_at_fork(after_in_child=gc.freeze)


@pytest.fixture(autouse=True, scope="session")
def _little_garbage():
    """A search collects garbage after every failure; it need not walk through pytest and hypothesis each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _same_numbers():
    """What a short sweep over few noisy batches suggests depends on the seed."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_windows(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")


class Points(Dataset):
    """Points, and whether their sum is positive."""

    def __init__(self, length=48):
        self.x = torch.randn(length, 8, generator=torch.Generator().manual_seed(3))
        self.y = (self.x.sum(1) > 0).long()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def _real():
    try:
        torch.empty(2**62, dtype=torch.uint8)
    except RuntimeError as error:
        return error


FULL = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 15.77 GiB"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN workspace": RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."
    ),
    "MPS": RuntimeError(
        "MPS backend out of memory (MPS allocated: 9.06 GB, max allowed: 9.07 GB). Tried to allocate 1 MB"
    ),
    "machine": _real(),
    "Python": MemoryError(),
}


class Memory:
    """Holds so many samples at once; then it fails as the real ones do."""

    def __init__(self, limit):
        self.limit = limit
        self.asked = []

    def take(self, size):
        self.asked.append(size)
        if size > self.limit:
            raise list(FULL.values())[size % len(FULL)].with_traceback(None)


class Model(LightningModule):
    def __init__(self, lr=1e-3, batch_size=4, memory=None, optimizer="Adam"):
        super().__init__()
        self.save_hyperparameters("lr")
        self.lr = lr
        self.batch_size = batch_size
        self.memory = memory
        self.optimizer = optimizer
        self.net = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))
        self.register_buffer("norms", torch.zeros(2), persistent=False)
        self.register_buffer("steps", torch.zeros(1))
        self.notes = []

    def step(self, batch):
        x, y = batch
        if self.memory is not None:
            self.memory.take(len(x))
        return nn.functional.cross_entropy(self.net(x).float(), y)

    def training_step(self, batch, batch_idx):
        loss = self.step(batch)
        self.norms += 1
        self.steps.add_(1)
        self.notes.append(batch_idx)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(batch))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.step(batch))

    def predict_step(self, batch, batch_idx):
        return self.step(batch)

    def configure_optimizers(self):
        optimizer = getattr(torch.optim, self.optimizer)(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    def configure_callbacks(self):
        return [Alarm()]

    def loader(self, **options):
        return DataLoader(Points(), batch_size=self.batch_size, **options)

    def train_dataloader(self):
        return self.loader(shuffle=True)

    val_dataloader = test_dataloader = predict_dataloader = loader


class Alarm(Callback):
    """Must not run in a trial."""

    heard = 0

    def on_train_batch_end(self, *_):
        Alarm.heard += 1

    def setup(self, *_, **__):
        Alarm.heard += 1


class Data(LightningDataModule):
    def __init__(self, batch_size=4):
        super().__init__()
        self.save_hyperparameters()
        self.generator = torch.Generator().manual_seed(5)

    def setup(self, stage):
        self.points = Points()

    def loader(self):
        return DataLoader(self.points, batch_size=self.hparams.batch_size)

    def train_dataloader(self):
        return DataLoader(self.points, batch_size=self.hparams.batch_size, shuffle=True, generator=self.generator)

    val_dataloader = test_dataloader = predict_dataloader = loader


@pytest.fixture(scope="session")
def kit():
    """The classes and functions of this file."""
    return SimpleNamespace(
        Model=Model, Data=Data, Memory=Memory, FULL=FULL, Points=Points, Alarm=Alarm, everything=everything
    )


@pytest.fixture
def make_trainer(tmp_path):
    def make(**flags):
        defaults = {
            "accelerator": "cpu",
            "default_root_dir": tmp_path,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": 1,
        }
        trainer = Trainer(**(defaults | flags))
        assert trainer.strategy.launcher is None or trainer.num_devices > 1  # found out when first asked, and kept
        return trainer

    return make


_PARTS = (nn.Module, torch.optim.Optimizer, DataLoader, Sampler, LightningDataModule, Callback)


def look(value, known=None):
    """Everything that can be reached from `value`: types, identities, numbers, bits."""
    known = {} if known is None else known
    if isinstance(value, (int, float, str, bytes, type(None), Path, torch.dtype, torch.device)):
        return repr(value)
    if id(value) in known:
        return "seen", id(value)
    known[id(value)] = value
    if isinstance(value, torch.Tensor):
        grad = value.grad if value.is_leaf else None
        return id(value), value.detach().tolist(), value.dtype, value.requires_grad, look(grad, known)
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, dict):
        return id(value), [(look(key, known), look(item, known)) for key, item in value.items()]
    if isinstance(value, (list, tuple, deque, set)):
        return type(value), [look(item, known) for item in value]
    parts = isinstance(value, _PARTS) or type(value).__module__.startswith("fulmen.")
    if not parts or isinstance(value, type):
        return id(value)
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    slotted = [(name, look(getattr(value, name, None), known)) for name in slots]
    # Hooks are compiled functions: new ones of the same make are no trace.
    attributes = {
        name: item
        for name, item in getattr(value, "__dict__", {}).items()
        if not callable(item) or isinstance(item, nn.Module)
    }
    return id(value), type(value), slotted, [(name, look(item, known)) for name, item in attributes.items()]


def everything(*owners, root):
    """All that a tuner must leave as it is."""
    files = {path.relative_to(root): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
    rng = (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
    return {"owners": look(list(owners)), "rng": rng, "files": files, "alarm": Alarm.heard}
