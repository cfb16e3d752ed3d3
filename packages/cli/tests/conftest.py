"""What the tests of the command line share: a folder with a user's module, and calls of the command in this process."""

import contextlib
import gc
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure.
settings.register_profile("fulmen", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fulmen")
# What is garbage at a fork is the parent's: a child that collects a store waits for its thread, which it does not have.
os.register_at_fork(after_in_child=gc.freeze)

APP = """
from fulmen.trainer import Callback, LightningDataModule, LightningModule, Trainer
from fulmen.trainer.demos import BoringDataModule, BoringModel


class Model(BoringModel):
    def __init__(self, width: int = 3, lr: float = 0.1, name: str | None = None):
        super().__init__()
        self.save_hyperparameters()
        self.width, self.lr, self.name = width, lr, name

    def validation_step(self, batch, batch_idx):
        output = super().validation_step(batch, batch_idx)
        self.log("val_loss", output["x"], prog_bar=True)
        return output


class OtherModel(Model):
    def __init__(self, depth: int = 1, width: int = 3, lr: float = 0.1, name: str | None = None):
        super().__init__(width=width, lr=lr, name=name)
        self.depth = depth


class Bare(LightningModule):
    pass


class NotModule:
    pass


class Data(BoringDataModule):
    def __init__(self, batch_size: int = 2, root: str = "here"):
        super().__init__()
        self.save_hyperparameters()
        self.batch_size, self.root = batch_size, root
"""


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        code: The exit code.
        out: The standard output.
        err: The standard error.
    """

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program has no arguments of its own, and no seed from an earlier test."""
    monkeypatch.setattr(sys, "argv", ["lightning-cli"])
    monkeypatch.setenv("FULMEN_GLOBAL_SEED", "1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the user's module `cliapp`."""
    (tmp_path / "cliapp.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    # Every test has its own; and a class that is gone must not be found by its short name.
    sys.modules.pop("cliapp", None)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Calls `lightning-cli` in this process."""
    from fulmen.cli.command import main

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lightning-cli", *arguments])
        out, err = io.StringIO(), io.StringIO()
        code = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        return Ended(code, out.getvalue(), err.getvalue())

    return call
