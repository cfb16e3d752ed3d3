"""A Trainer without anything that costs time, for tests of what happens inside."""

import gc
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from fulmen.trainer.loggers.base import Logger
from fulmen.trainer.trainer import Trainer

# A busy machine is no reason to fail.
settings.register_profile("fulmen", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fulmen")
# What is garbage at a fork is the parent's: a child that collects a store waits for its thread, which it does not have.
os.register_at_fork(after_in_child=gc.freeze)


class Rows(Logger):
    """Keeps the rows that it gets."""

    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "rows"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, {name: float(value) for name, value in metrics.items()}))


@pytest.fixture
def quick(tmp_path: Any) -> Any:
    """Makes such a Trainer."""

    def make(**flags: Any) -> Trainer:
        quiet: dict[str, Any] = {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
        }
        return Trainer(**{**quiet, **flags})

    return make


@pytest.fixture
def rows() -> Rows:
    """A logger that keeps what it gets."""
    return Rows()


def _work(rank: int, function: Callable[[Path, int], dict[Any, Any]], folder: Path) -> None:
    torch.set_num_threads(1)
    try:
        found = function(folder, rank)
    except BaseException:
        found = {"failed": traceback.format_exc()}
    torch.save(found, folder / f"{rank}.pt")
    os._exit(0)  # a process that failed must not wait for the other ones


@pytest.fixture(scope="session")
def in_processes() -> Any:
    """`in_processes(function, folder, count)`: what `function(folder, rank)` answers in each of `count` processes.

    They are forked, so that they share the imported torch: what takes long to import is imported before.
    """

    def run(function: Callable[[Path, int], dict[Any, Any]], folder: Path, count: int) -> list[dict[Any, Any]]:
        torch.multiprocessing.start_processes(_work, args=(function, folder), nprocs=count, start_method="fork")
        found = [torch.load(folder / f"{rank}.pt") for rank in range(count)]
        for one in found:
            assert "failed" not in one, one["failed"]
        return found

    return run
