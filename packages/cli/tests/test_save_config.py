from pathlib import Path
from typing import Any

import pytest

from fulmen.cli.cli import LightningCLI
from fulmen.cli.save_config import SaveConfigCallback
from fulmen.trainer.demos import BoringModel

QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.max_steps=1",
    "--trainer.limit_val_batches=0",
    "--seed_everything=3",
]


def fit(*arguments: str, **kwargs: Any) -> LightningCLI:
    return LightningCLI(BoringModel, args=["fit", *QUIET, *arguments], **kwargs)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml"))


def test_it_lies_beside_the_results_and_repeats_the_run(folder: Path) -> None:
    fit("--trainer.overfit_batches=0.5")
    path = folder / "lightning_logs" / "version_0" / "config.yaml"
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# fulmen.trainer==")
    again = LightningCLI(BoringModel, args=["fit", "--config", str(path)])
    assert again.config["fit"]["trainer"]["overfit_batches"] == 0.5
    assert again.config["fit"]["seed_everything"] == 3
    second = folder / "lightning_logs" / "version_1" / "config.yaml"
    assert [line for line in second.read_text().splitlines() if line[0] != "#"] == [
        line for line in lines if line[0] != "#"
    ]


def test_the_same_configuration_is_not_written_twice(folder: Path) -> None:
    for _ in range(2):
        fit("--trainer.logger=false")
    assert files(folder) == ["config.yaml"]


def test_another_one_is_neither_lost_nor_in_the_way(folder: Path) -> None:
    for lr in (1, 2, 3, 2):
        fit("--trainer.logger=false", f"--trainer.gradient_clip_val={lr}.0")
    assert files(folder) == ["config.yaml", "config_1.yaml", "config_2.yaml"]
    assert "gradient_clip_val: 1.0" in (folder / "config.yaml").read_text()
    assert "gradient_clip_val: 3.0" in (folder / "config_2.yaml").read_text()


def test_unless_it_is_to_be_overwritten(folder: Path) -> None:
    for lr in (1, 2):
        fit(
            "--trainer.logger=false",
            f"--trainer.gradient_clip_val={lr}.0",
            save_config_kwargs={"overwrite": True, "config_filename": "my.yaml"},
        )
    assert files(folder) == ["my.yaml"]
    assert "gradient_clip_val: 2.0" in (folder / "my.yaml").read_text()


def test_a_trial_run_leaves_nothing(folder: Path) -> None:
    fit("--trainer.fast_dev_run=true")
    assert files(folder) == []


def test_it_can_be_left_out(folder: Path) -> None:
    fit("--trainer.logger=false", save_config_callback=None)
    assert files(folder) == []


def test_a_subclass_saves_elsewhere(folder: Path) -> None:
    class Mine(SaveConfigCallback):
        def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
            Path(f"mine_{stage}").write_text("x")

    fit("--trainer.logger=false", save_config_callback=Mine, save_config_kwargs={"save_to_log_dir": False})
    assert (folder / "mine_fit").is_file()
    assert files(folder) == []


def test_saving_nowhere_is_a_mistake(folder: Path) -> None:
    with pytest.raises(ValueError, match="would save nothing"):
        fit("--trainer.logger=false", save_config_kwargs={"save_to_log_dir": False})


def test_files_that_it_was_read_from_stay_files(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "tr.yaml").write_text(
        "max_steps: 1\nlogger: false\nenable_checkpointing: false\nenable_progress_bar: false\n"
    )
    LightningCLI(BoringModel, args=["fit", "--trainer", "sub/tr.yaml"], save_config_kwargs={"multifile": True})
    assert files(folder) == ["config.yaml", "sub/tr.yaml", "tr.yaml"]
