from pathlib import Path
from typing import Any

import pytest

from fulmen.cli.report import report
from fulmen.trainer import LightningModule, Trainer
from fulmen.trainer.callbacks import ModelCheckpoint
from fulmen.trainer.demos import BoringModel


class Logs(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = super().training_step(batch, batch_idx)
        self.log("train_loss", output["loss"])
        return output


def fitted(model: LightningModule | None = None, **kwargs: Any) -> Trainer:
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=1,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    trainer.fit(model or Logs())
    return trainer


def test_it_names_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = fitted(default_root_dir=tmp_path, callbacks=[ModelCheckpoint(monitor="train_loss")])
    lines = dict(line.split(maxsplit=1) for line in report(trainer, curves=False).splitlines()[1:])
    assert lines["folder"] == "lightning_logs/version_0"
    assert lines["metrics"] == "lightning_logs/version_0/metrics.csv"
    assert lines["best"].startswith("score")
    for name in ("folder", "metrics"):
        assert Path(lines[name]).exists()


def test_a_run_that_leaves_nothing_has_nothing_to_say(tmp_path: Path) -> None:
    assert report(fitted(default_root_dir=tmp_path, logger=False, enable_checkpointing=False)) == ""


def test_a_picture_that_fails_does_not_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> str:
        raise OSError("the disk is full")

    monkeypatch.setattr("fulmen.trainer.plots.plot_metrics", fail)
    trainer = fitted(default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="the disk is full"):
        assert "curves" not in report(trainer, curves=True)
