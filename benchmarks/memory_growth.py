"""Does a long run keep what it needs no more? Prints the slope of resident memory over training steps.

Linear(32, 2), batches of 4, one value logged on step and epoch, CSV logger: 200,000 steps by default. The line is
fitted to the second half of the run, when everything has been made once.

    python benchmarks/memory_growth.py
    python benchmarks/memory_growth.py --steps 20000 --epochs 10
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from step_overhead import Stopwatch, make_loader, model_classes
from torch import Tensor

MAX_BYTES_PER_STEP = 1.0  # noise of the allocator; a float that is kept takes 24
NUM_SAMPLES = 100


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on other systems the most that there ever was


def sampled_run(num_steps: int, num_epochs: int) -> list[tuple[int, int]]:
    """One fit; pairs of steps done and bytes in use, spread over it."""
    from fulmen.trainer import Callback, Trainer
    from fulmen.trainer.loggers import CSVLogger

    every = max(1, num_steps // NUM_SAMPLES)
    samples: list[tuple[int, int]] = []

    class Samples(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            step = trainer.global_step
            if step % every == 0:
                gc.collect()
                samples.append((step, resident_bytes()))

    module = model_classes("fulmen.trainer")["logs all"](Stopwatch())

    def validation_step(batch: Tensor, batch_idx: int) -> None:
        module.log("val", module.linear(batch).sum())

    module.validation_step = validation_step
    per_epoch = max(1, num_steps // num_epochs)
    with tempfile.TemporaryDirectory(prefix="memory_growth_") as folder:
        trainer = Trainer(
            max_steps=num_steps,
            accelerator="cpu",
            devices=1,
            callbacks=[Samples()],
            logger=CSVLogger(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, make_loader(per_epoch), make_loader(10))
    return samples


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000, metavar="N", help="steps of the run (200,000)")
    parser.add_argument("--epochs", type=int, default=20, metavar="N", help="epochs that they make (20)")
    given = parser.parse_args(arguments)
    if given.steps < NUM_SAMPLES or given.epochs < 1:
        parser.error(
            f"--steps {given.steps} --epochs {given.epochs} is too short. The slope is fitted to {NUM_SAMPLES} points."
            f" Pass at least --steps {NUM_SAMPLES} and --epochs 1."
        )
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    began = time.perf_counter()
    samples = sampled_run(given.steps, given.epochs)
    half = samples[len(samples) // 2 :]
    slope = statistics.linear_regression([step for step, _ in half], [size for _, size in half]).slope
    passes = slope <= MAX_BYTES_PER_STEP
    print(
        f"{given.steps} steps in {given.epochs} epochs took {time.perf_counter() - began:.0f} s."
        f" Resident memory: {samples[0][1] / 2**20:.1f} MiB after {samples[0][0]} steps,"
        f" {samples[-1][1] / 2**20:.1f} MiB after {samples[-1][0]}."
    )
    print("\n| slope over the second half | target | |\n| ---: | ---: | --- |")
    print(f"| {slope:+.2f} bytes a step | {MAX_BYTES_PER_STEP:.0f} | {'pass' if passes else 'fail'} |")


if __name__ == "__main__":
    main()
