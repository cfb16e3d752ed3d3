"""The files of the CSV logger: facts of reference/logging_layout.yaml."""

import argparse
import csv
import shutil
from pathlib import Path

import pytest
import torch

from fulmen.fabric.loggers.csv import CSVLogger as FabricCSVLogger
from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.trainer.loggers.base import Logger
from fulmen.trainer.loggers.csv import CSVLogger


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def table(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_layout_of_a_run(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"width": 3})
    for epoch in range(2):
        for batch in range(2):
            logger.log_metrics({"train_loss_step": 0.25, "val/acc_t": 0.5, "epoch": epoch}, step=2 * epoch + batch)
            logger.save()
        logger.log_metrics({"val_loss": 1.0, "val/loss": 1.0, "epoch": epoch}, step=2 * epoch + 1)
        logger.log_metrics({"train_loss_epoch": torch.tensor(0.25), "epoch": epoch}, step=2 * epoch + 1)
    logger.finalize("success")
    assert files(tmp_path) == ["lightning_logs/version_0/hparams.yaml", "lightning_logs/version_0/metrics.csv"]
    header, *rows = table(tmp_path / "lightning_logs/version_0/metrics.csv")
    assert header == ["epoch", "step", "train_loss_epoch", "train_loss_step", "val/acc_t", "val/loss", "val_loss"]
    x = "0.25"
    assert rows == [
        ["0", "0", "", x, "0.5", "", ""],
        ["0", "1", "", x, "0.5", "", ""],
        ["0", "1", "", "", "", "1.0", "1.0"],
        ["0", "1", x, "", "", "", ""],
        ["1", "2", "", x, "0.5", "", ""],
        ["1", "3", "", x, "0.5", "", ""],
        ["1", "3", "", "", "", "1.0", "1.0"],
        ["1", "3", x, "", "", "", ""],
    ]
    assert (tmp_path / "lightning_logs/version_0/hparams.yaml").read_text() == "width: 3\n"


def test_prefix_and_a_version_that_is_text(tmp_path):
    logger = CSVLogger(tmp_path, name="n", version="v", prefix="pre")
    logger.log_hyperparams({"a": 1, "b": {"c": 2}})
    logger.log_metrics({"m": 1.0}, step=0)
    logger.save()
    logger.log_metrics({"m": 2.0, "k": 3}, step=5)
    logger.log_metrics({"z": 1})
    logger.save()
    assert files(tmp_path) == ["n/v/hparams.yaml", "n/v/metrics.csv"]
    assert table(tmp_path / "n/v/metrics.csv") == [
        ["pre-k", "pre-m", "pre-z", "step"],
        ["", "1.0", "", "0"],
        ["3", "2.0", "", "5"],
        ["", "", "1", "0"],
    ]
    assert (tmp_path / "n/v/hparams.yaml").read_text() == "a: 1\nb:\n  c: 2\n"
    places = (logger.name, logger.version, logger.root_dir, logger.log_dir, logger.save_dir)
    assert places == ("n", "v", f"{tmp_path}/n", f"{tmp_path}/n/v", str(tmp_path))


@pytest.mark.parametrize(
    ("kwargs", "file", "version", "name"),
    [
        ({"name": ""}, "version_0/metrics.csv", 0, ""),
        ({"name": None}, "version_0/metrics.csv", 0, ""),
        ({"name": "n", "version": 7}, "n/version_7/metrics.csv", 7, "n"),
    ],
)
def test_names_and_versions(kwargs, file, version, name, tmp_path):
    logger = CSVLogger(tmp_path, **kwargs)
    logger.log_metrics({"m": 1.0}, step=0)
    logger.save()
    assert files(tmp_path) == [file]
    assert (logger.version, logger.name) == (version, name)


@pytest.mark.parametrize(("params", "text"), [(None, "{}\n"), ({}, "{}\n"), (argparse.Namespace(lr=0.1), "lr: 0.1\n")])
def test_hyperparameters_are_on_disk_at_once(params, text, tmp_path):
    CSVLogger(tmp_path, version=0).log_hyperparams(params)
    assert (tmp_path / "lightning_logs/version_0/hparams.yaml").read_text() == text


def test_hyperparameters_add_up(tmp_path):
    logger = CSVLogger(tmp_path, version=0)
    logger.log_hyperparams({"a": 1})
    logger.log_hyperparams({"b": 2})
    assert (tmp_path / "lightning_logs/version_0/hparams.yaml").read_text() == "a: 1\nb: 2\n"


def test_a_folder_that_is_removed_is_there_again_with_both_files(tmp_path):
    logger = CSVLogger(tmp_path, version="v", flush_logs_every_n_steps=1)
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"loss": 0.5}, 0)
    shutil.rmtree(tmp_path)
    with pytest.warns(UserWarning, match="Nothing of it is lost"):
        logger.log_metrics({"loss": 0.25}, 1)
    folder = Path(logger.log_dir)
    assert (folder / "hparams.yaml").read_text() == "a: 1\n"
    assert (folder / "metrics.csv").read_text().split() == ["loss,step", "0.5,0", "0.25,1"]
    logger.finalize("success")


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"m": 1.0}, step=0)
    logger.save()
    logger.experiment.anything("at all")
    assert files(tmp_path) == []


def test_it_is_both_loggers(tmp_path):
    logger = CSVLogger(tmp_path)
    assert isinstance(logger, Logger)
    assert isinstance(logger, FabricCSVLogger)
    assert logger.after_save_checkpoint(None) is None
    assert not logger.opens_first
