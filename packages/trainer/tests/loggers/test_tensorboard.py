"""Event files of runs, read back by TensorBoard's own reader: facts of reference/logging_layout.yaml."""

import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.fabric.loggers.tensorboard import TensorBoardLogger as FabricTensorBoardLogger
from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.loggers import Logger, TensorBoardLogger

reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(root):
    """Folder below `root` to what its event files hold."""
    found = {}
    for path in sorted(Path(root).rglob("events.out.tfevents.*")):
        events = reader.EventAccumulator(str(path.parent))
        events.Reload()
        found[str(path.parent.relative_to(root))] = events
    return found


def scalars(events):
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def other_files(root):
    paths = (path for path in Path(root).rglob("*") if path.is_file() and "tfevents" not in path.name)
    return sorted(str(path.relative_to(root)) for path in paths)


class Small(LightningModule):
    def __init__(self, width=3):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return torch.relu(self.layer(x))

    def training_step(self, batch, _):
        loss = self.layer(batch).mean()
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, _):
        self.log("val/loss", self.layer(batch).mean() * 0 + 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches(count=2):
    return DataLoader(torch.ones(count, 2), batch_size=1)


def test_what_a_fit_writes(quick, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    trainer = quick(logger=logger, max_epochs=2, log_every_n_steps=1, enable_checkpointing=True)
    trainer.fit(Small(), batches(), batches())
    assert trainer.log_dir == str(tmp_path / "lightning_logs/version_0")
    run = "lightning_logs/version_0"
    assert other_files(tmp_path) == [f"{run}/checkpoints/epoch=1-step=4.ckpt", f"{run}/hparams.yaml"]
    assert (tmp_path / run / "hparams.yaml").read_text() == "width: 3\n"
    ((folder, events),) = read(tmp_path).items()
    assert folder == run
    assert {tag: [step for step, _ in rows] for tag, rows in scalars(events).items()} == {
        "hp_metric": [0],
        "train_loss_step": [0, 1, 2, 3],
        "epoch": [0, 1, 1, 1, 2, 3, 3, 3],
        "val/loss": [1, 3],
        "train_loss_epoch": [1, 3],
    }
    assert scalars(events)["val/loss"] == [(1, 1.0), (3, 1.0)]
    assert scalars(events)["epoch"] == [(0, 0), (1, 0), (1, 0), (1, 0), (2, 1), (3, 1), (3, 1), (3, 1)]


def test_rows_are_on_the_disk_at_each_checkpoint_and_after_a_failure(quick, tmp_path):
    seen = {}

    class Looks(Small):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                self.trainer.save_checkpoint(tmp_path / "any.ckpt")
                seen["at the checkpoint"] = [step for step, _ in scalars(read(tmp_path)[run])["train_loss_step"]]
            if batch_idx == 5:
                raise RuntimeError("of the model")
            return super().training_step(batch, batch_idx)

    run = "lightning_logs/version_0"
    logger = TensorBoardLogger(tmp_path, flush_secs=10_000)
    with pytest.raises(RuntimeError, match="of the model"):
        quick(logger=logger, log_every_n_steps=1).fit(Looks(), batches(8))
    assert seen == {"at the checkpoint": [0, 1, 2]}
    assert [step for step, _ in scalars(read(tmp_path)[run])["train_loss_step"]] == [0, 1, 2, 3, 4]


def test_two_runs_have_two_folders(quick, tmp_path):
    for _ in range(2):
        quick(logger=TensorBoardLogger(tmp_path), max_steps=1).validate(Small(), batches(), verbose=False)
    assert sorted(read(tmp_path)) == ["lightning_logs/version_0", "lightning_logs/version_1"]


def test_every_option(tmp_path):
    logger = TensorBoardLogger(
        tmp_path, name="n", version="v", sub_dir="s", prefix="pre", default_hp_metric=False, filename_suffix=".x"
    )
    logger.log_hyperparams({"a": 1, "b": {"c": [1, 2]}}, {"hm": 0.25})
    logger.log_metrics({"m": 2.0, "group": {"x": 1, "y": torch.tensor(2)}}, step=3)
    logger.finalize("success")
    places = (logger.name, logger.version, logger.root_dir, logger.log_dir, logger.save_dir, logger.sub_dir)
    assert places == ("n", "v", f"{tmp_path}/n", f"{tmp_path}/n/v/s", str(tmp_path), "s")
    assert other_files(tmp_path) == ["n/v/s/hparams.yaml"]
    assert (tmp_path / "n/v/s/hparams.yaml").read_text() == "a: 1\nb:\n  c:\n  - 1\n  - 2\n"
    assert all(path.name.endswith(".x") for path in (tmp_path / "n/v/s").glob("events*"))
    assert {folder: scalars(events) for folder, events in read(tmp_path).items()} == {
        "n/v/s": {"pre-hm": [(0, 0.25)], "pre-m": [(3, 2.0)]},
        "n/v/s/pre-group_x": {"pre-group": [(3, 1.0)]},
        "n/v/s/pre-group_y": {"pre-group": [(3, 2.0)]},
    }


@pytest.mark.parametrize(
    ("kwargs", "folder", "version", "name"),
    [
        ({"name": None}, "version_0", 0, ""),
        ({"name": ""}, "version_0", 0, ""),
        ({"version": 4}, "lightning_logs/version_4", 4, "lightning_logs"),
        ({"version": "abc"}, "lightning_logs/abc", "abc", "lightning_logs"),
    ],
)
def test_names_and_versions(kwargs, folder, version, name, tmp_path):
    logger = TensorBoardLogger(tmp_path, **kwargs)
    logger.log_metrics({"m": 1.0}, step=0)
    logger.save()
    assert list(read(tmp_path)) == [folder]
    assert other_files(tmp_path) == [f"{folder}/hparams.yaml"]
    assert (tmp_path / folder / "hparams.yaml").read_text() == "{}\n"
    assert (logger.version, logger.name) == (version, name)


def test_hyperparameters_add_up_and_are_on_disk_at_once(tmp_path):
    logger = TensorBoardLogger(tmp_path, version=0)
    logger.log_hyperparams({"a": 1})
    logger.log_hyperparams(Namespace(b=2))
    assert (tmp_path / "lightning_logs/version_0/hparams.yaml").read_text() == "a: 1\nb: 2\n"
    assert logger.hparams == {"a": 1, "b": 2}


def test_without_anything_to_log_nothing_is_written(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.save()
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")  # torch.utils.tensorboard knows no other way
def test_the_graph_of_a_run(quick, tmp_path):
    module = Small()
    module.example_input_array = torch.ones(1, 2)
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    quick(logger=logger).fit(module, batches())
    (events,) = read(tmp_path).values()
    assert events.Tags()["graph"]
    assert any("relu" in node.op for node in events.Graph().node)
    assert module.trainer is not None


def test_no_graph_unless_asked_for(quick, tmp_path):
    module = Small()
    module.example_input_array = torch.ones(1, 2)
    quick(logger=TensorBoardLogger(tmp_path)).fit(module, batches())
    assert not any(events.Tags()["graph"] for events in read(tmp_path).values())


def test_a_graph_needs_an_example(quick, tmp_path):
    with pytest.warns(UserWarning, match="The graph of this Small is not logged.*example_input_array"):
        quick(logger=TensorBoardLogger(tmp_path, log_graph=True)).fit(Small(), batches())


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_a_graph_that_cannot_be_traced(tmp_path):
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    with pytest.raises(ConfigurationError, match=r"log_graph=True\) cannot show the graph of this Small"):
        logger.log_graph(Small(), torch.ones(1, 7))


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"m": 1.0}, step=0)
    logger.log_graph(Small(), torch.ones(1, 2))
    logger.experiment.add_scalar("a", 1)
    logger.save()
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_it_goes_to_other_processes(tmp_path):
    logger = TensorBoardLogger(tmp_path, version=3)
    logger.log_hyperparams({"a": 1})
    twin = pickle.loads(pickle.dumps(logger))
    assert (twin.log_dir, twin.hparams) == (logger.log_dir, {"a": 1})
    logger.finalize("success")


def test_it_is_both_loggers(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    assert isinstance(logger, Logger)
    assert isinstance(logger, FabricTensorBoardLogger)
    assert logger.after_save_checkpoint(None) is None
