"""A Trainer without anything that costs time, for tests of what happens inside."""

import gc
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
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


def _work(rank: int, function: Callable[[Path, int], dict[Any, Any]], folder: Path, count: int) -> None:
    torch.set_num_threads(1)
    try:
        _open_group(rank, folder, count)
        found = function(folder, rank)
    except BaseException:
        found = {"failed": traceback.format_exc()}
    torch.save(found, folder / f"{rank}.pt")
    os._exit(0)  # a process that failed must not wait for the other ones


def _open_group(rank: int, folder: Path, count: int) -> None:
    """As torchrun starts a process; but the group is open already, by a file, so that no port is needed."""
    meet, patience = f"file://{folder}/store", timedelta(seconds=300)
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=count, timeout=patience)
    names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    others = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1, "TORCHELASTIC_RUN_ID": 1, "TORCHELASTIC_RESTART_COUNT": 0}
    os.environ |= {name: str(value) for name, value in (names | others).items()}


@pytest.fixture(scope="session")
def in_processes() -> Any:
    """`in_processes(function, folder, count)`: what `function(folder, rank)` answers in each of `count` processes.

    They are those of one run, and have met.

    They are forked, so that they share the imported torch: what takes long to import is imported before.
    """

    def run(function: Callable[[Path, int], dict[Any, Any]], folder: Path, count: int) -> list[dict[Any, Any]]:
        torch.multiprocessing.start_processes(_work, args=(function, folder, count), nprocs=count, start_method="fork")
        found = [torch.load(folder / f"{rank}.pt") for rank in range(count)]
        for one in found:
            assert "failed" not in one, one["failed"]
        return found

    return run
