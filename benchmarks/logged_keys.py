"""What `self.log` costs for each key: ten keys and a thousand keys in every training step.

The model, data and plain loop of step_overhead.py, in CPU time: on an idle machine it is the time on the clock. "Per
key" is what logging adds to a step, divided by the number of keys; its ratio is to the plain step of the same pair.

    python benchmarks/logged_keys.py
    python benchmarks/logged_keys.py --only ten --pairs 21
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from step_overhead import (
    MIN_PAIRS,
    Outcome,
    Stopwatch,
    make_loader,
    model_classes,
    quartiles,
    run_plain,
    stop_callback,
    terminal,
)
from torch import Tensor

MAX_RATIO_PER_KEY = 0.1  # of a plain step, with ten keys
MAX_STEP_MS = 20.0  # with a thousand keys

# The key for `--only`: title, number of keys, arguments of `self.log`, is there a CSV logger, steps of a run.
ROWS: dict[str, tuple[str, int, dict[str, Any], bool, int]] = {
    "silent": ("nothing logged", 0, {}, False, 2000),
    "ten": ("10 keys", 10, {}, False, 2000),
    "ten_both": ("10 keys, on step and epoch", 10, {"on_step": True, "on_epoch": True}, False, 2000),
    "ten_csv": ("10 keys, CSV logger", 10, {}, True, 2000),
    "thousand": ("1000 keys", 1000, {}, False, 150),
    "thousand_both": ("1000 keys, on step and epoch", 1000, {"on_step": True, "on_epoch": True}, False, 150),
    "thousand_csv": ("1000 keys, on step and epoch, CSV logger", 1000, {"on_step": True, "on_epoch": True}, True, 150),
}


@functools.cache
def logging_module() -> type[Any]:
    """A module that logs its loss under many names."""
    base: Any = model_classes("fulmen.trainer")["silent"]

    class LogsMany(base):  # type: ignore[misc]  # which class it is, is known at runtime only
        def __init__(self, num_keys: int, options: dict[str, Any]) -> None:
            super().__init__(Stopwatch())
            self.names = [f"metric_{number}" for number in range(num_keys)]
            self.options = options

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss: Tensor = self.linear(batch).sum()
            for name in self.names:
                self.log(name, loss, **self.options)
            return loss

    return LogsMany


def run_logging(key: str, num_steps: int) -> Outcome:
    """One epoch of `Trainer.fit`."""
    from fulmen.trainer import Trainer
    from fulmen.trainer.loggers import CSVLogger

    _, num_keys, options, has_logger, _ = ROWS[key]
    module = logging_module()(num_keys, options)
    with tempfile.TemporaryDirectory(prefix="logged_keys_") as folder, terminal():
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            callbacks=[stop_callback("fulmen.trainer")()],
            logger=CSVLogger(folder) if has_logger else False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, make_loader(num_steps))
    outcome: Outcome = module.watch.outcome(module.linear)
    return outcome


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=MIN_PAIRS, metavar="N", help=f"pairs per row ({MIN_PAIRS})")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of each run (2000; of a thousand keys 150)")
    parser.add_argument("--only", default="", metavar="A,B", help=f"only some of {', '.join(ROWS)}")
    given = parser.parse_args(arguments)
    keys = [key for key in given.only.split(",") if key] or list(ROWS)
    if unknown := [key for key in keys if key not in ROWS]:
        parser.error(f"--only {','.join(unknown)} is not known. Each row has one name. Pass some of {', '.join(ROWS)}.")
    if given.pairs < 1 or (given.steps is not None and given.steps < 1):
        parser.error(f"--pairs {given.pairs} --steps {given.steps} measures nothing. Both count. Pass 1 or more.")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    run_plain(100)
    run_logging(keys[0], 20)
    print(
        f"One CPU thread; median of {given.pairs} pairs. Python {platform.python_version()}, torch {torch.__version__}."
    )
    print("\n| | CPU of a step | per key | per key, of a plain step | quartiles | target | |")
    print("| --- | ---: | ---: | ---: | :---: | ---: | --- |")
    for key in keys:
        title, num_keys = ROWS[key][:2]
        num_steps, silent_steps = given.steps or ROWS[key][4], given.steps or ROWS["silent"][4]
        steps_s, silent_s, plain_s = [], [], []
        for _ in range(given.pairs):
            plain_s.append(run_plain(num_steps)[0].cpu_s / num_steps)
            silent_s.append(run_logging("silent", silent_steps)[0].cpu_s / silent_steps)
            steps_s.append(run_logging(key, num_steps)[0].cpu_s / num_steps)
        step_ms = statistics.median(steps_s) * 1e3
        if not num_keys:
            print(f"| {title} | {step_ms:.3f} ms | | | | | |")
            continue
        added = [(step - silent) / num_keys for step, silent in zip(steps_s, silent_s, strict=True)]
        low, ratio, high = quartiles([one / plain for one, plain in zip(added, plain_s, strict=True)])
        if num_keys == 10:
            target, passes = f"{MAX_RATIO_PER_KEY} per key", ratio <= MAX_RATIO_PER_KEY
        else:
            target, passes = f"{MAX_STEP_MS:.0f} ms a step", step_ms <= MAX_STEP_MS
        print(
            f"| {title} | {step_ms:.3f} ms | {statistics.median(added) * 1e6:.1f} µs | {ratio:.3f}"
            f" | {low:.3f} to {high:.3f} | {target} | {'pass' if passes else 'fail'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
