"""How long a resumed run takes to its first new batch, beside a fresh start to its first batch.

A set of 200,000 samples that are read by index, each loaded in 0.1 ms, in batches of 50. `Trainer.fit` is called on it
from the start, and from a checkpoint written at 90 % of its first epoch; the clock runs from the call to the first
batch of that run. Taken in pairs, one right after the other; the median of the ratios is what counts.

    python benchmarks/resume_time.py
    python benchmarks/resume_time.py --samples 20000 --pairs 3
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fulmen.trainer import Callback, LightningModule, Trainer, seed_everything

TARGET = 2.0
BATCH_SIZE = 50
LOADING_S = 1e-4
PLACE = 0.9


class Slow(Dataset[Tensor]):
    """Each sample takes its time, so that one that is loaded for nothing shows."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.num_loaded = 0

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Tensor:
        self.num_loaded += 1
        time.sleep(LOADING_S)
        return torch.full((8,), index / self.num_samples)


class Net(LightningModule):
    """A step that costs next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class FirstBatch(Callback):
    """Ends the run at its first batch, and says when that was; saves there, as if `place` were reached."""

    def __init__(self) -> None:
        self.came_at_s = 0.0
        self.index = -1

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.came_at_s, self.index = time.perf_counter(), batch_idx
        trainer.should_stop = True


class SaveAt(Callback):
    """Writes a checkpoint after so many batches, and ends the run."""

    def __init__(self, path: Path, batches: int) -> None:
        self.path, self.batches = path, batches

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.batches:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def make_trainer(folder: Path, callback: Callback) -> Trainer:
    """With nothing that takes time by itself."""
    return Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def time_to_first_batch(folder: Path, num_samples: int, ckpt_path: Path | None) -> tuple[float, int, int]:
    """Seconds from the call of `fit` to its first batch, the number of that batch, and samples loaded until then."""
    seed_everything(1, verbose=False)
    first, data = FirstBatch(), Slow(num_samples)
    loader = DataLoader(data, batch_size=BATCH_SIZE, shuffle=True)
    trainer, net = make_trainer(folder, first), Net()
    begun_s = time.perf_counter()
    trainer.fit(net, loader, ckpt_path=ckpt_path)
    return first.came_at_s - begun_s, first.index, data.num_loaded


def save_at_place(folder: Path, num_samples: int) -> tuple[Path, int]:
    """A checkpoint written at `PLACE` of a first epoch, and the number of the batch that comes next."""
    global LOADING_S
    path, next_batch = folder / "saved.ckpt", int(num_samples / BATCH_SIZE * PLACE)
    seed_everything(1, verbose=False)
    kept, LOADING_S = LOADING_S, 0.0  # nobody waits for this run
    try:
        loader = DataLoader(Slow(num_samples), batch_size=BATCH_SIZE, shuffle=True)
        make_trainer(folder, SaveAt(path, next_batch)).fit(Net(), loader)
    finally:
        LOADING_S = kept
    return path, next_batch


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and answer 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000, help="samples of the set (200,000)")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of runs (7)")
    parser.add_argument("--quick", action="store_true", help="one pair over 2,000 samples: does it run?")
    asked = parser.parse_args(arguments)
    num_samples, num_pairs = (2_000, 1) if asked.quick else (asked.samples, asked.pairs)
    if num_pairs < 1 or num_samples < 10 * BATCH_SIZE:
        parser.error(f"--samples {num_samples} --pairs {num_pairs}: at least {10 * BATCH_SIZE} samples and one pair")
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, next_batch = save_at_place(folder, num_samples)
        time_to_first_batch(folder, num_samples, None)  # what is slow once only
        fresh, resumed = [], []
        for _ in range(num_pairs):
            seconds, index, _ = time_to_first_batch(folder, num_samples, None)
            fresh.append(seconds)
            seconds, index, num_loaded = time_to_first_batch(folder, num_samples, path)
            resumed.append(seconds)
            if (index, num_loaded) != (next_batch, BATCH_SIZE):
                sys.exit(f"resumed at batch {index} after loading {num_loaded} samples, not at {next_batch} after one")
    ratio = statistics.median(one / other for one, other in zip(resumed, fresh, strict=True))
    print("| to the first new batch | fresh | resumed | ratio | target | verdict |")
    print("| --- | --- | --- | --- | --- | --- |")
    verdict = "pass" if ratio < TARGET else "fail"
    cells = (statistics.median(fresh) * 1e3, statistics.median(resumed) * 1e3)
    print(
        f"| {num_samples} samples, resumed at {PLACE:.0%} | {cells[0]:.0f} ms | {cells[1]:.0f} ms"
        f" | {ratio:.2f} | {TARGET:.2f} | {verdict} |"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
