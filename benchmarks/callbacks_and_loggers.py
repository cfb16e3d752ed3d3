"""What saving, logging and naming of runs cost when a run is long: does the thousandth cost what the first did?

Each row is one promise. Times are CPU times of this process, but where the clock is what counts (files, processes).

    python benchmarks/callbacks_and_loggers.py
    python benchmarks/callbacks_and_loggers.py --only saves,rows
    python benchmarks/callbacks_and_loggers.py --quick      # small numbers: does it run?
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Row = tuple[str, str, str, bool]  # what, measured, target, does it pass


def top_k_saves(quick: bool) -> list[Row]:
    """Checkpoints that are ranked: the last saves against the first."""
    from torch.utils.data import DataLoader

    from fulmen.trainer import LightningModule, Trainer
    from fulmen.trainer.callbacks import ModelCheckpoint

    num_saves = 30 if quick else 1000
    saves_s: list[float] = []

    class Better(LightningModule):
        """Its loss falls at every step, so that every save is ranked first and one falls out."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("loss", 1.0 / (1.0 + batch_idx))
            return self.layer(batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    class Timed(ModelCheckpoint):
        """Notes how long each batch end took."""

        def on_train_batch_end(self, *args: Any) -> None:
            begun_s = time.process_time()
            super().on_train_batch_end(*args)
            saves_s.append(time.process_time() - begun_s)

    with tempfile.TemporaryDirectory(prefix="saves_") as folder:
        callback = Timed(folder, monitor="loss", save_top_k=5, every_n_train_steps=1, filename="{step}")
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            callbacks=callback,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        data: Any = torch.randn(num_saves, 8)
        trainer.fit(Better(), DataLoader(data))
        buffer = io.BytesIO()
        torch.save(callback.state_dict(), buffer)
        left = len(list(Path(folder).glob("*.ckpt")))
    tenth = num_saves // 10
    first, last = statistics.median(saves_s[1 : tenth + 1]), statistics.median(saves_s[-tenth:])
    state_kb = buffer.tell() / 1000
    return [
        (
            f"{num_saves} top-k saves: the last tenth against the first",
            f"{last / first:.2f} ({1e3 * first:.2f} -> {1e3 * last:.2f} ms, {left} files)",
            "1.10",
            last <= 1.1 * first,
        ),
        ("state of the callback after them", f"{state_kb:.1f} kB", "10 kB", state_kb <= 10),
    ]


def new_keys(quick: bool) -> list[Row]:
    """A CSV file that gets a new column again and again."""
    from fulmen.trainer.loggers import CSVLogger

    num_keys = 50 if quick else 800
    with tempfile.TemporaryDirectory(prefix="keys_") as folder:
        logger = CSVLogger(folder)
        begun_s = time.monotonic()
        for number in range(num_keys):
            logger.log_metrics({f"metric_{number}": 1.0}, step=number)
        logger.finalize("success")
        took_s = time.monotonic() - begun_s
    return [(f"{num_keys} new CSV keys, one after the other", f"{took_s:.3f} s", "0.5 s", took_s <= 0.5)]


def many_rows(quick: bool) -> list[Row]:
    """A CSV file that grows: the last rows against the first."""
    from fulmen.trainer.loggers import CSVLogger

    num_rows = 20_000 if quick else 1_000_000
    tenth = num_rows // 10
    parts_s = []
    with tempfile.TemporaryDirectory(prefix="rows_") as folder:
        logger = CSVLogger(folder)
        for part in range(10):
            begun_s = time.process_time()
            for step in range(part * tenth, (part + 1) * tenth):
                logger.log_metrics({"loss": 0.5, "lr": 0.1}, step=step)
            parts_s.append(time.process_time() - begun_s)
        logger.finalize("success")
        with open(os.path.join(logger.log_dir, "metrics.csv"), newline="") as file:
            assert sum(1 for _ in csv.DictReader(file)) == num_rows
    ratio = parts_s[-1] / parts_s[0]
    row_us = 1e6 * parts_s[-1] / tenth
    return [
        (
            f"{num_rows} CSV rows: the last tenth against the first",
            f"{ratio:.2f} ({row_us:.1f} µs)",
            "1.10",
            ratio <= 1.1,
        )
    ]


_KILLED = """
import sys
from fulmen.trainer.loggers import CSVLogger
logger = CSVLogger(sys.argv[1], flush_logs_every_n_steps=100)
step = 0
while True:
    logger.log_metrics({"loss": 0.5, **({"val_loss": 1.0} if step % 150 == 149 else {})}, step=step)
    step += 1
    if step % 1000 == 0:
        print(step, flush=True)
"""


def killed(quick: bool) -> list[Row]:
    """kill -9 in the middle of logging: rows that are lost."""
    with tempfile.TemporaryDirectory(prefix="killed_") as folder:
        process = subprocess.Popen([sys.executable, "-c", _KILLED, folder], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(2 if quick else 20):
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        told = max([told, *map(int, process.stdout.read().split())])  # what it has said before it ended
        [path] = Path(folder).rglob("metrics.csv")
        with path.open(newline="") as file:
            steps = [int(row["step"]) for row in csv.DictReader(file)]
    whole = steps == list(range(len(steps)))
    lost = max(0, told - len(steps))
    return [("kill -9: rows lost of those logged, flushing every 100", f"{lost}", "100", whole and lost <= 100)]


_STARTED = """
import sys
from fulmen.trainer.loggers import CSVLogger
sys.stdin.readline()
logger = CSVLogger(sys.argv[1])
logger.log_metrics({"loss": 1.0}, step=0)
logger.finalize("success")
print(logger.log_dir)
"""


def same_time(quick: bool) -> list[Row]:
    """Runs that start in one folder at once: does each have its own?"""
    num_runs = 3 if quick else 12
    with tempfile.TemporaryDirectory(prefix="runs_") as folder:
        command = [sys.executable, "-c", _STARTED, folder]
        runs = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(num_runs)
        ]
        folders = []
        for run in runs:  # all have begun by now; those that have imported already wait for this line
            assert run.stdin is not None
            run.stdin.write("go\n")
            run.stdin.flush()
        for run in runs:
            folders.append(run.communicate()[0].strip())
    own = len(set(folders) - {""})
    return [(f"{num_runs} runs started at once in one folder: folders", f"{own}", f"{num_runs}", own == num_runs)]


def tensorboard(quick: bool) -> list[Row]:
    """What a TensorBoard logger adds to a step, with a row every 50 steps, in plain steps."""
    from step_overhead import Stopwatch as Watch
    from step_overhead import make_loader, model_classes, quartiles, run_plain, stop_callback, terminal

    from fulmen.fabric.optional_packages import is_installed
    from fulmen.trainer import Trainer
    from fulmen.trainer.loggers import TensorBoardLogger

    if not is_installed("tensorboard"):
        return [("TensorBoard", "not installed", "0.05", True)]
    num_steps, num_pairs = (60, 1) if quick else (2000, 15)
    base: Any = model_classes("fulmen.trainer")["silent"]

    class Logs(base):  # type: ignore[misc]  # which class it is, is known at runtime only
        """Logs its loss."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.linear(batch).sum()
            self.log("loss", loss)
            return loss

    def run(with_logger: bool) -> float:
        module = Logs(Watch())
        with tempfile.TemporaryDirectory(prefix="tensorboard_") as folder, terminal():
            trainer = Trainer(
                max_epochs=1,
                accelerator="cpu",
                callbacks=[stop_callback("fulmen.trainer")()],
                logger=TensorBoardLogger(folder) if with_logger else False,
                log_every_n_steps=50,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
            trainer.fit(module, make_loader(num_steps))
        cpu_s: float = module.watch.outcome(module.linear)[0].cpu_s
        return cpu_s / num_steps

    run(True)
    added = []
    for _ in range(num_pairs):
        plain_s = run_plain(num_steps)[0].cpu_s / num_steps
        added.append((run(True) - run(False)) / plain_s)
    low, middle, high = quartiles(added)
    return [
        ("TensorBoard: added to a step", f"{middle:.3f} ({low:.3f} to {high:.3f})", "0.05", middle <= 0.05),
    ]


ROWS: dict[str, Callable[[bool], list[Row]]] = {
    "saves": top_k_saves,
    "keys": new_keys,
    "rows": many_rows,
    "killed": killed,
    "runs": same_time,
    "tensorboard": tensorboard,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small numbers: does it run?")
    parser.add_argument("--only", default="", metavar="A,B", help=f"only some of {', '.join(ROWS)}")
    given = parser.parse_args(arguments)
    names = [name for name in given.only.split(",") if name] or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"--only {','.join(unknown)} is not known. Each row has one name. Pass some of {', '.join(ROWS)}.")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"One CPU thread; load {load}. Python {platform.python_version()}, torch {torch.__version__}.")
    print("\n| | measured | target | |")
    print("| --- | ---: | ---: | --- |")
    for name in names:
        for what, measured, target, passes in ROWS[name](given.quick):
            print(f"| {what} | {measured} | {target} | {'pass' if passes else 'fail'} |", flush=True)


if __name__ == "__main__":
    main()
