"""What is wrong is answered at once: an error of ours in three sentences, before any work, and no file is left."""

import re
import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fulmen.trainer import Callback, LightningModule, Trainer
from fulmen.trainer.callbacks import ModelCheckpoint
from fulmen.trainer.demos import BoringModel, RandomDataset
from fulmen.trainer.errors import (
    ArgumentTypeError,
    CheckpointDamagedError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigurationError,
    MisconfigurationException,
)


class WithoutStep(LightningModule):
    def configure_optimizers(self) -> Any: ...

    def train_dataloader(self) -> Any:
        return loader()


class WithoutOptimizers(LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor: ...

    def train_dataloader(self) -> Any:
        return loader()


class WithoutData(LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor: ...

    def configure_optimizers(self) -> Any: ...


class WithoutSuper(LightningModule):
    def __init__(self) -> None: ...


class Worked(Callback):
    """Work has begun: the data is prepared, and the first hook runs."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        raise AssertionError("work has begun")


class Trained(Callback):
    """The first batch is trained on."""

    def on_train_batch_start(self, *_: Any) -> None:
        raise AssertionError("training has begun")


def loader(samples: int = 4) -> DataLoader[Tensor]:
    return DataLoader(RandomDataset(32, samples))


def trainer(folder: Path, **flags: Any) -> Trainer:
    flags = {"max_epochs": 1, "enable_progress_bar": False, "num_sanity_val_steps": 0, **flags}
    return Trainer(accelerator="cpu", default_root_dir=folder, **flags)


def fit(model: Any, train: Any = None, callback: type[Callback] = Worked, **given: Any) -> Callable[[Path], object]:
    return lambda folder: trainer(folder, callbacks=[callback()]).fit(model(), train, **given)


def damaged(folder: Path) -> Path:
    path = folder.parent / f"{folder.name}-truncated.ckpt"
    whole = trainer(
        folder.parent / f"{folder.name}-whole", logger=False, enable_checkpointing=False, limit_train_batches=1
    )
    whole.fit(BoringModel())
    whole.save_checkpoint(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


# What is asked, the kind of the error, and how it begins.
CASES: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no training_step": (
        fit(WithoutStep),
        ConfigurationError,
        "Trainer.fit(WithoutStep) cannot run: WithoutStep has no",
    ),
    "no configure_optimizers": (
        fit(WithoutOptimizers),
        ConfigurationError,
        "Trainer.fit(WithoutOptimizers) cannot run",
    ),
    "no module": (fit(torch.nn.ReLU), ArgumentTypeError, "Trainer.fit(model=...) got a ReLU"),
    "a class": (fit(lambda: BoringModel), ArgumentTypeError, "Trainer.fit(model=...) got a class"),
    "super().__init__() not called": (
        fit(WithoutSuper),
        MisconfigurationException,
        "Trainer.fit(model=WithoutSuper(...))",
    ),
    "no data": (fit(WithoutData), ConfigurationError, "Trainer.fit(WithoutData) has no training data"),
    "data twice": (
        lambda folder: trainer(folder, callbacks=[Worked()]).fit(BoringModel(), loader(), datamodule=3),  # type: ignore[arg-type]
        ArgumentTypeError,
        "Trainer.fit(datamodule=3)",
    ),
    "a checkpoint that is not there": (
        fit(BoringModel, loader(), ckpt_path="nowhere.ckpt"),
        CheckpointNotFoundError,
        "Trainer.fit(ckpt_path=",
    ),
    "a truncated checkpoint": (
        lambda folder: fit(BoringModel, loader(), ckpt_path=damaged(folder))(folder),
        CheckpointDamagedError,
        "The checkpoint",
    ),
    "an empty loader": (fit(BoringModel, [], Trained), ConfigurationError, "Trainer.fit(train_dataloaders=...)"),
    "an empty dataset": (
        fit(BoringModel, loader(0), Trained),
        ConfigurationError,
        "Trainer.fit(train_dataloaders=...)",
    ),
    "no iterable": (fit(BoringModel, 5, Trained), ArgumentTypeError, "Trainer.fit(train_dataloaders=...)"),
    "a bare tensor": (
        fit(BoringModel, torch.zeros(4, 32), Trained),
        ArgumentTypeError,
        "Trainer.fit(train_dataloaders=...)",
    ),
    "a limit that is no number": (
        lambda folder: trainer(folder, limit_train_batches=float("nan")),
        ConfigurationError,
        "Trainer(limit_train_batches=nan)",
    ),
    "a limit that leaves no batch": (
        lambda folder: trainer(folder, limit_train_batches=0.1, callbacks=[Trained()]).fit(BoringModel(), loader(4)),
        ConfigurationError,
        "limit_train_batches=0.1 of 4 batches",
    ),
    "a bound of gradients that is no number": (
        lambda folder: trainer(folder, gradient_clip_val=float("nan")),
        ConfigurationError,
        "Trainer(gradient_clip_val=nan)",
    ),
    "a limit set later": (
        lambda folder: change(folder, limit_val_batches=float("nan")),
        ConfigurationError,
        "Trainer(limit_val_batches=nan)",
    ),
    "GPUs that are not there": (
        lambda folder: Trainer(accelerator="gpu", devices=64, default_root_dir=folder),
        ConfigurationError,
        "Trainer(accelerator='gpu'",
    ),
    "no devices": (lambda folder: trainer(folder, devices=0), MisconfigurationException, "Trainer(devices=0"),
    "an interval longer than an epoch": (
        lambda folder: trainer(folder, val_check_interval=9, callbacks=[Trained()]).fit(BoringModel(), loader(4)),
        ConfigurationError,
        "Trainer(val_check_interval=9)",
    ),
    "a folder that is no path": (lambda folder: trainer(5), ArgumentTypeError, "Trainer(default_root_dir=5)"),  # type: ignore[arg-type]
}


def change(folder: Path, **settings: Any) -> None:
    run = trainer(folder, callbacks=[Trained()])
    for name, value in settings.items():
        setattr(run, name, value)
    run.fit(BoringModel(), loader(), loader())


def sentences(text: str) -> int:
    return len(re.findall(r"[.:](?=\s|$)", text))


@pytest.mark.parametrize("what", CASES)
def test_bad_input_is_answered_at_once(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act, kind, begins = CASES[what]
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(kind) as caught:
            act(folder)
    text = str(caught.value)
    assert text.startswith(begins)
    assert sentences(text) >= 3, text
    assert len(text) < 700, text
    # What the run has prepared it may leave: an empty folder. No file, and no checkpoint.
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_a_full_disk_leaves_the_last_whole_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    class Growing(BoringModel):
        """Its state does not fit any more in the second epoch."""

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["ballast"] = torch.zeros(1 if self.current_epoch == 0 else 1_000_000)

    checkpoint = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1)
    run = trainer(tmp_path, callbacks=[checkpoint], max_epochs=3, limit_train_batches=2, limit_val_batches=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No disk of its own here: no file may grow beyond a megabyte, which fails in the same way.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"epoch=1\.ckpt'.*could not be written") as caught:
            run.fit(Growing())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sentences(str(caught.value)) >= 3
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["epoch=0.ckpt"]
    assert run.interrupted
    # What was kept is whole.
    trainer(tmp_path / "again", max_epochs=2, limit_val_batches=0).fit(
        BoringModel(), ckpt_path=checkpoint.best_model_path
    )
