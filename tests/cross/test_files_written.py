"""A run writes the files of the reference: the same folders, names, rows and links, and keeps the same ones."""

import csv
import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer import Callback, LightningModule, Trainer
from fulmen.trainer.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from fulmen.trainer.loggers import CSVLogger

REFERENCE: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "data" / "logging_layout.yaml").read_text())

# Where a run of ours differs on purpose: (case, file there) -> file here, if any.
TENSORBOARD = "events.out.tfevents.<time>.<host>.<pid>.<n>"
DEVIATIONS: dict[Any, str | None] = {
    # The default logger writes CSV, which needs no further package; the reference takes TensorBoard where it finds it.
    TENSORBOARD: "metrics.csv",
    # TensorBoard's folder there has an empty one; CSV folders have one only if there are hyperparameters, there too.
    ("trainer_no_checkpointing_no_hparams", "hparams.yaml"): None,
}
# How many epochs a case runs, where it does not run three.
EPOCHS = {
    "ckpt_default_name_existing_two_runs": 1,
    "ckpt_save_last_two_runs": 1,
    "ckpt_val_check_half": 1,
    "ckpt_val_check_half_monitor": 1,
    "ckpt_filename_unformatted_brace_metric_epoch_step": 1,
    "ckpt_weights_only": 1,
    "ckpt_no_validation": 2,
    "ckpt_train_time_interval": 1,
    "ckpt_train_time_interval_long": 1,
    "ckpt_nan_monitor": 2,
}
LAST_TRAIN_LOSS = -4.168360710144043  # as measured, after six steps


class Net(LightningModule):
    """Logs what it is told to; fails where it is told to."""

    def __init__(self, width: int = 3, losses: tuple[float, ...] = (3.0, 1.0, 2.0), fails: Any = None) -> None:
        super().__init__()
        if width:
            self.save_hyperparameters("width")
        self.layer = nn.Linear(4, 1)
        self.losses, self.fails = losses, fails

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.fails == "training" and batch_idx == 1:
            raise self.error
        self.log("train_loss", torch.tensor(LAST_TRAIN_LOSS + 5 - self.global_step), on_step=True, on_epoch=True)
        loss: Tensor = self.layer(batch[0]).sum()
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        if self.fails == "validation":
            raise self.error
        loss = self.losses[self.current_epoch]
        self.log_dict({"val_loss": loss, "val/loss": loss})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    error: BaseException = RuntimeError("of the test")


def loader(batches: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(batches, 4)), batch_size=1)


def make_trainer(folder: Path, *callbacks: Callback, **flags: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **(defaults | flags))


def fit(trainer: Trainer, module: LightningModule | None = None, *, validates: bool = True) -> None:
    trainer.fit(module or Net(), loader(2), loader(1) if validates else None)


def files(folder: Path) -> list[str]:
    """Relative paths of all files; links with what they point to."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_dir():
            target = f" -> {os.readlink(path)}" if path.is_symlink() else ""
            found.append(path.relative_to(folder).as_posix() + target)
    return sorted(found)


def expected_files(case: str) -> list[str]:
    expected = set()
    for path in REFERENCE[case]["files"]:
        folder, slash, name = path.rpartition("/")
        name = DEVIATIONS.get((case, name), DEVIATIONS.get(name, name))
        if name is not None:
            expected.add(folder + slash + name)
    return sorted(expected)


# ---- what ModelCheckpoint keeps


def described(callback: ModelCheckpoint, folder: Path) -> dict[str, Any]:
    """What the reference tells of the callback after the fit."""

    def name(path: str) -> str:
        return os.path.relpath(path, folder) if path else ""

    return {
        "best_model_path": name(callback.best_model_path),
        "last_model_path": name(callback.last_model_path),
        "best_model_score": None if callback.best_model_score is None else callback.best_model_score.item(),
        "kth_best_model_path": name(callback.kth_best_model_path),
        "best_k_models": {name(path): score.item() for path, score in callback.best_k_models.items()},
    }


KEPT = [case for case, facts in REFERENCE.items() if case.startswith("ckpt_") and "best_k_models" in facts]


def arguments_of(case: str) -> dict[str, Any]:
    """The arguments of the callback: a setting is written as Python arguments."""
    setting = REFERENCE[case]["setting"]
    return {} if setting == "all defaults" else eval(f"dict({setting})", {"datetime": datetime})


@pytest.mark.filterwarnings("ignore:The checkpoint folder")
@pytest.mark.parametrize("case", KEPT)
def test_the_kept_checkpoints_and_their_ranking(case: str, tmp_path: Path) -> None:
    if "_existing" in case and "two_runs" not in case:
        (tmp_path / "model.ckpt").touch()
    for _ in range(2 if case.endswith("two_runs") else 1):
        callback = ModelCheckpoint(dirpath=tmp_path, **arguments_of(case))
        interval = 0.5 if "val_check_half" in case else None
        trainer = make_trainer(
            tmp_path, callback, logger=False, max_epochs=EPOCHS.get(case, 3), val_check_interval=interval
        )
        losses = (float("nan"), 2.0) if case == "ckpt_nan_monitor" else (3.0, 1.0, 2.0)
        fit(trainer, Net(losses=losses), validates=case != "ckpt_no_validation")
    facts = REFERENCE[case]
    assert files(tmp_path) == expected_files(case)
    measured = described(callback, tmp_path)
    assert measured == {name: facts[name] for name in measured}


def test_class_attributes_name_the_files(tmp_path: Path) -> None:
    class Other(ModelCheckpoint):
        CHECKPOINT_NAME_LAST = "{epoch}-last"
        CHECKPOINT_JOIN_CHAR = "_"
        CHECKPOINT_EQUALS_CHAR = "~"
        FILE_EXTENSION = ".pt"

    named = Other(dirpath=tmp_path, filename="{epoch}-{step}", save_last=True)
    unnamed = Other(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1)
    fit(make_trainer(tmp_path, named, unnamed, logger=False))
    assert files(tmp_path) == expected_files("ckpt_class_attributes")


@pytest.mark.parametrize(
    ("case", "error", "reaches_the_caller"),
    [
        ("ckpt_save_on_exception", RuntimeError("of the test"), RuntimeError),
        ("ckpt_save_on_keyboard_interrupt", KeyboardInterrupt(), SystemExit),
    ],
)
def test_save_on_exception(
    case: str, error: BaseException, reaches_the_caller: type[BaseException], tmp_path: Path
) -> None:
    module = Net(fails="training")
    module.error = error
    with pytest.raises(reaches_the_caller):
        fit(make_trainer(tmp_path, ModelCheckpoint(dirpath=tmp_path, save_on_exception=True), logger=False), module)
    assert files(tmp_path) == expected_files(case)
    assert reaches_the_caller.__name__ == REFERENCE[case]["raises"]


def test_on_exception_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="of the test"):
        fit(make_trainer(tmp_path, OnExceptionCheckpoint(tmp_path), logger=False), Net(fails="validation"))
    assert files(tmp_path) == expected_files("on_exception_checkpoint")


# ---- where a run writes

Case = Callable[[Path], object]


def defaults_two_runs(folder: Path) -> None:
    for version in range(2):
        trainer = make_trainer(folder)
        fit(trainer)
        run = folder / "lightning_logs" / f"version_{version}"
        assert isinstance(trainer.logger, CSVLogger)
        assert trainer.log_dir == str(run)
        assert isinstance(trainer.checkpoint_callback, ModelCheckpoint)
        assert trainer.checkpoint_callback.best_model_path == str(run / "checkpoints" / "epoch=0-step=2.ckpt")


def two_callbacks(folder: Path) -> None:
    fit(make_trainer(folder, ModelCheckpoint(), ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)))


def saved_by_hand(folder: Path) -> None:
    trainer = make_trainer(folder)
    fit(trainer)
    trainer.save_checkpoint(folder / "a" / "b.ckpt")


RUNS: dict[str, Case] = {
    "trainer_defaults_two_runs": defaults_two_runs,
    "trainer_logger_false": lambda folder: fit(make_trainer(folder, logger=False)),
    "trainer_csv_logger": lambda folder: fit(make_trainer(folder, logger=CSVLogger(folder))),
    "trainer_no_checkpointing_no_hparams": lambda folder: fit(
        make_trainer(folder, enable_checkpointing=False), Net(width=0)
    ),
    "fast_dev_run": lambda folder: fit(make_trainer(folder, fast_dev_run=True)),
    "validate_only": lambda folder: make_trainer(folder).validate(Net(), loader(1), verbose=False),
    "barebones": lambda folder: fit(
        make_trainer(
            folder, barebones=True, enable_progress_bar=None, enable_model_summary=None, num_sanity_val_steps=None
        )
    ),
    "ckpt_two_callbacks_default_dir": two_callbacks,
    "save_checkpoint_makes_folders": saved_by_hand,
}


@pytest.mark.parametrize("case", RUNS)
def test_the_files_of_a_run(case: str, tmp_path: Path) -> None:
    RUNS[case](tmp_path)
    assert files(tmp_path) == expected_files(case)


def test_the_rows_of_a_fit(tmp_path: Path) -> None:
    class Logging(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.log("val/acc_t", 0.5)
            return super().training_step(batch, batch_idx)

    case = "csv_metrics_of_a_fit"
    trainer = make_trainer(tmp_path, max_epochs=2, log_every_n_steps=1)
    fit(trainer, Logging(losses=(1.0, 1.0)))
    assert files(tmp_path) == expected_files(case)
    run = tmp_path / "lightning_logs" / "version_0"
    with open(run / "metrics.csv", newline="") as file:
        header, *rows = csv.reader(file)
    shown = [["x" if len(value) > 4 else value for value in row] for row in rows]
    assert {"header": header, "rows": shown} == REFERENCE[case]["metrics.csv"]
    assert (run / "hparams.yaml").read_text() == REFERENCE[case]["hparams.yaml"]


def test_every_measured_case_is_held_here() -> None:
    held = {*KEPT, *RUNS, "ckpt_class_attributes", "csv_metrics_of_a_fit", "on_exception_checkpoint"}
    held |= {"ckpt_save_on_exception", "ckpt_save_on_keyboard_interrupt"}
    assert set(REFERENCE) == held
