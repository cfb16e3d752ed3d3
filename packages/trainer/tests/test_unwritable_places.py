"""Whoever writes says so before the first step when the place cannot be written."""

import pytest
import torch
from torch.utils.data import DataLoader

from fulmen.trainer.callbacks.early_stopping import EarlyStopping
from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.trainer.callbacks.monitored import MetricNotLoggedError
from fulmen.trainer.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.loggers.csv import CSVLogger
from fulmen.trainer.profilers.advanced import AdvancedProfiler
from fulmen.trainer.profilers.pytorch import PyTorchProfiler
from fulmen.trainer.profilers.simple import SimpleProfiler
from fulmen.trainer.trainer import Trainer


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.num_steps = 0

    def training_step(self, batch, batch_idx):
        self.num_steps += 1
        loss = self.layer(batch).pow(2).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(net, **flags):
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(**{**quiet, "max_epochs": 2, **flags})
    data = DataLoader(torch.randn(6, 4))
    trainer.fit(net, data, data)


PLACES = {
    "CSVLogger(save_dir=": lambda place: {"logger": CSVLogger(place)},
    "CSVLogger(save_dir= ": lambda place: {
        "logger": CSVLogger(place, version="given"),
        "enable_checkpointing": False,
    },
    "OnExceptionCheckpoint(dirpath=": lambda place: {"callbacks": OnExceptionCheckpoint(place)},
    "SimpleProfiler(dirpath=": lambda place: {"profiler": SimpleProfiler(place, "report")},
    "AdvancedProfiler(dirpath=": lambda place: {"profiler": AdvancedProfiler(place, "report")},
    "PyTorchProfiler(dirpath=": lambda place: {"profiler": PyTorchProfiler(place)},
}


@pytest.mark.parametrize("who", PLACES)
def test_a_place_that_cannot_be_written_is_said_at_once_with_its_argument(who, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    place, net = str(tmp_path / "file" / "folder"), Net()
    with pytest.raises(ConfigurationError) as caught:
        fit(net, **PLACES[who](place), default_root_dir=tmp_path)
    assert f"{who.strip()}{place!r}) names a place that cannot be written. The system says: Not a directory" in str(
        caught.value
    )
    assert net.num_steps == 0
    assert "Traceback" not in capfd.readouterr().err  # nothing else fails because of it


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("watcher", [ModelCheckpoint, EarlyStopping])
def test_a_metric_that_nobody_logs_is_said_after_the_first_epoch_with_those_that_are_there(watcher, tmp_path):
    net = Net()
    with pytest.raises(MetricNotLoggedError, match=r"'val_los'.*Logged so far: 'train_loss', 'val_loss'"):
        fit(net, callbacks=watcher(monitor="val_los"), default_root_dir=tmp_path)
    assert net.num_steps == 6


@pytest.mark.parametrize("watcher", [ModelCheckpoint, EarlyStopping])
def test_a_mode_that_is_none_is_said_at_once(watcher):
    with pytest.raises(ConfigurationError, match=r"mode='best'\).*Pass mode='min' or mode='max'"):
        watcher(monitor="val_loss", mode="best")


@pytest.mark.parametrize(
    ("flags", "fix"),
    [
        ({"profiler": SimpleProfiler}, r"a class, not an object.*Pass SimpleProfiler\(\.\.\.\)"),
        ({"logger": CSVLogger}, r"Pass CSVLogger\(\.\.\.\), an object"),
        ({"callbacks": [EarlyStopping]}, r"a class, not an object.*Pass EarlyStopping\(\.\.\.\)"),
    ],
)
def test_a_class_in_place_of_an_object_is_said_at_once(flags, fix):
    with pytest.raises(ArgumentTypeError, match=fix):
        Trainer(accelerator="cpu", **flags)
