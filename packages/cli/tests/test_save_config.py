import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fulmen.trainer
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
    assert lines[0] == f"# fulmen.trainer=={fulmen.trainer.__version__}"
    again = LightningCLI(BoringModel, args=["fit", "--config", str(path)])
    assert again.config["fit"]["trainer"]["overfit_batches"] == 0.5
    assert again.config["fit"]["seed_everything"] == 3
    second = folder / "lightning_logs" / "version_1" / "config.yaml"
    assert [line for line in second.read_text().splitlines() if line[0] != "#"] == [
        line for line in lines if line[0] != "#"
    ]


def test_it_says_with_what_how_and_where_it_was_made(
    folder: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "cliapp.py").write_text((folder / "cliapp.py").read_text() + "\n__version__ = '4.2'\n")
    ended = command("fit", "--model", "cliapp.Model", *QUIET, "--curves=false", "--trainer.logger=false")
    assert ended.code == 0, ended.err
    header = [line for line in (folder / "config.yaml").read_text().splitlines() if line.startswith("#")]
    for name in ("fulmen.trainer", "fulmen.fabric", "fulmen.cli", "torch", "cliapp", "jsonargparse", "python"):
        assert len([line for line in header if line.startswith(f"# {name}==")]) == 1, name
    assert f"# torch=={torch.__version__}" in header
    assert "# cliapp==4.2" in header
    assert any(line.startswith("# lightning-cli fit --model cliapp.Model --trainer.") for line in header)
    assert header[-1] == f"# in {folder}"
    # Where its module is not, the error says where it was.
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    sys.modules.pop("cliapp")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(folder))])
    (elsewhere / "config.yaml").write_text((folder / "config.yaml").read_text())
    ended = command("fit", "--config", "config.yaml")
    assert ended.code == 2
    assert f"saved by a run in {str(folder)!r}" in ended.err


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
    assert (folder / "config.yaml").read_text().startswith("# fulmen.trainer==")
    assert "trainer: tr.yaml" in (folder / "config.yaml").read_text()
    kept = (folder / "tr.yaml").read_text()
    (folder / "sub" / "tr.yaml").write_text((folder / "sub" / "tr.yaml").read_text().replace("1", "2", 1))
    LightningCLI(BoringModel, args=["fit", "--trainer", "sub/tr.yaml"], save_config_kwargs={"multifile": True})
    assert (folder / "tr.yaml").read_text() == kept
    assert "max_steps: 2" in (folder / "config_1.yaml").read_text()


def test_fit_validate_and_predict_in_one_folder(folder: Path) -> None:
    for subcommand in ("fit", "validate", "fit"):
        LightningCLI(BoringModel, args=[subcommand, *(QUIET[:3]), "--trainer.fast_dev_run=false", *MORE])
    assert files(folder) == ["config.yaml", "config_1.yaml"]


def test_one_that_was_saved_remotely(folder: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    fit("--trainer.logger=false", "--trainer.default_root_dir=memory://runs/one")
    with fsspec.open("memory://runs/one/config.yaml", "r") as file:
        assert "seed_everything: 3" in file.read()


DIGITS = """
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from fulmen.trainer import LightningModule, LightningDataModule


class Net(LightningModule):
    def __init__(self, width: int = 32, lr: float = 0.01):
        super().__init__()
        self.save_hyperparameters()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(width, 10)
        )

    def training_step(self, batch, batch_idx):
        images, digits = batch
        loss = F.cross_entropy(self.layers(images), digits)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, digits = batch
        self.log("val_acc", (self.layers(images).argmax(1) == digits).float().mean())


class Digits(LightningDataModule):
    def __init__(self, batch_size: int = 32):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        images, digits = load_digits(return_X_y=True)
        data = torch.utils.data.TensorDataset(torch.tensor(images).float() / 16, torch.tensor(digits))
        # Which is where depends on the seed of the run.
        self.parts = torch.utils.data.random_split(data, [0.8, 0.2])

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.parts[0], self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.parts[1], self.hparams.batch_size)
"""


def test_a_run_is_repeated_bitwise(folder: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    (folder / "digitsapp.py").write_text(DIGITS)
    chosen = ["--model=digitsapp.Net", "--data=digitsapp.Digits", "--optimizer=Adam", "--optimizer.lr=0.003"]
    schedule = ["--lr_scheduler=StepLR", "--lr_scheduler.step_size=1", "--trainer.max_epochs=2"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=5", "--curves=false"]
    runs = folder / "lightning_logs"
    for arguments in (
        [*chosen, *schedule, *quiet, "--model.width=16"],
        ["--config", str(runs / "version_0" / "config.yaml"), "--curves=false"],
        [*chosen, *schedule, *quiet, "--model.width=16"],
    ):
        monkeypatch.delenv("FULMEN_GLOBAL_SEED", raising=False)  # as in a process of its own
        ended = command("fit", *arguments)
        assert ended.code == 0, ended.err
    sys.modules.pop("digitsapp")
    first, again, other = (_result(runs / f"version_{number}") for number in range(3))
    assert first[1] == again[1]
    assert all(torch.equal(first[0][name], again[0][name]) for name in first[0])
    assert other[1] != first[1], "another seed makes another run"


def _result(run: Path) -> tuple[dict[str, torch.Tensor], str]:
    (checkpoint,) = run.glob("checkpoints/*.ckpt")
    return torch.load(checkpoint, weights_only=True)["state_dict"], (run / "metrics.csv").read_text()


MORE = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.logger=false", "--seed_everything=3"]
