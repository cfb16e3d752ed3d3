"""How the cost of a step grows: with parameter tensors, with callbacks, with logged keys, with processes.

For each size the same fit is timed beside a plain loop over the same model; what a step costs more is drawn against the
size on two logarithmic axes, and the slope of the line through the last three sizes is printed: 0 is constant, 1 is
linear. CPU time of one process, so that other work on the machine does not show. Beside it stand the calls of Python
functions that a step makes, the same in every run: whether callbacks that hear nothing cost nothing is seen by them.

    python benchmarks/slopes.py
    python benchmarks/slopes.py --only parameters,keys --pairs 11
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from step_overhead import Stopwatch, make_loader, trainer_flags
from torch import Tensor, nn

from fulmen.trainer import Callback, LightningModule, Trainer

NUM_EPOCHS = 12  # of the runs of several processes, 10 steps each
ALLOWED = 1.1  # a slope that is measured is not exactly 1
NOTHING_S = 2e-6  # what a step costs more is not seen below that: a line through such points has no meaning


def num_steps(size: int) -> int:
    """Of one run: fewer where each is long."""
    return max(10, min(300, 30_000 // size))


class CallCounter(Stopwatch):
    """Counts the calls of Python functions in the place of time."""

    num_calls = 0

    def start(self) -> None:
        """From here on."""

        def heard(frame: Any, event: str, argument: Any) -> None:
            self.num_calls += event == "call"

        sys.setprofile(heard)

    def stop(self) -> None:
        """Up to here."""
        sys.setprofile(None)


class Scalars(nn.Module):
    """So many parameters, each a tensor of its own."""

    def __init__(self, num_tensors: int) -> None:
        super().__init__()
        self.scalars = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in range(num_tensors))

    def forward(self, batch: Tensor) -> Tensor:
        """Something that depends on all of them."""
        return torch.stack(list(self.scalars)).sum() * batch.sum()


class Job(LightningModule):
    """Trains the scalars, and logs so many keys."""

    def __init__(self, num_tensors: int, num_keys: int, watch: Stopwatch) -> None:
        super().__init__()
        self.scalars = Scalars(num_tensors)
        self.keys = [f"key_{index}" for index in range(num_keys)]
        self.watch = watch

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.scalars(batch)
        detached = loss.detach()
        for key in self.keys:
            self.log(key, detached)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-9)

    def on_train_start(self) -> None:
        self.watch.start()


class StopsWatch(Callback):
    """Ends what is timed."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watch.stop()


class Idle(Callback):
    """Hears nothing of a batch."""


class Hears(Callback):
    """Hears each batch."""

    def __init__(self) -> None:
        self.num_heard = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.num_heard += 1


def cpu_s(watch: Stopwatch) -> float:
    """What it saw."""
    assert watch.cost is not None
    return watch.cost.cpu_s


def plain_s(num_tensors: int) -> float:
    """CPU time of one step by hand."""
    count = num_steps(num_tensors)
    model, watch, loader = Scalars(num_tensors), Stopwatch(), make_loader(count)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    watch.start()
    for batch in loader:
        loss = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    watch.stop()
    return cpu_s(watch) / count


def fit_s(
    num_tensors: int = 10, num_keys: int = 0, callbacks: Sequence[Callback] = (), count: int | None = None
) -> float:
    """CPU time of one step of a fit of `count` steps, or as many as go with the number of tensors."""
    watch, count = Stopwatch(), count or num_steps(num_tensors)
    run_fit(watch, num_tensors, num_keys, callbacks, count)
    return cpu_s(watch) / count


def calls(num_keys: int = 0, callbacks: Sequence[Callback] = ()) -> float:
    """Python functions that a step calls; what comes once in a fit is in neither."""
    found = []
    for count in (5, 15):
        counter = CallCounter()
        run_fit(counter, 10, num_keys, callbacks, count)
        found.append(counter.num_calls)
    return (found[1] - found[0]) / 10


def run_fit(watch: Stopwatch, num_tensors: int, num_keys: int, callbacks: Sequence[Callback], count: int) -> None:
    """A fit of so many steps."""
    with tempfile.TemporaryDirectory(prefix="slopes_") as folder:
        flags = trainer_flags("fulmen.trainer", "off", folder)
        trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[StopsWatch(watch), *callbacks], **flags)
        trainer.fit(Job(num_tensors, num_keys, watch), make_loader(count))


def added_by_parameters_s(num_tensors: int) -> float:
    """A step of ours, beyond the step by hand."""
    return fit_s(num_tensors) - plain_s(num_tensors)


def added_by_idle_callbacks_s(count: int) -> float:
    """What callbacks without a hook of a batch add to a step."""
    return fit_s(callbacks=[Idle() for _ in range(count)]) - fit_s()


def added_by_callbacks_s(count: int) -> float:
    """What callbacks that hear each batch add to a step."""
    return fit_s(callbacks=[Hears() for _ in range(count)]) - fit_s()


def added_by_keys_s(count: int) -> float:
    """What logging so many keys adds to a step."""
    steps = num_steps(count)  # of both: what comes once in a fit must be divided by the same number
    return fit_s(num_keys=count, count=steps) - fit_s(count=steps)


def calls_idle(count: int) -> float:
    """Calls of a step beside so many callbacks without a hook of a batch."""
    return calls(callbacks=[Idle() for _ in range(count)])


def calls_heard(count: int) -> float:
    """Calls of a step that so many callbacks hear."""
    return calls(callbacks=[Hears() for _ in range(count)])


class EpochEnds(LightningModule):
    """Ten keys that all processes agree on at each epoch's end; the first process writes down its CPU time."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 2)
        self.path = path
        self.watch = Stopwatch()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.linear(batch).sum()
        for index in range(10):
            self.log(f"key_{index}", loss.detach(), on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-9)

    def on_train_start(self) -> None:
        self.watch.start()

    def on_train_end(self) -> None:
        self.watch.stop()
        if self.trainer.is_global_zero:
            self.path.write_text(str(cpu_s(self.watch)))


def epochs_of_processes_s(num_processes: int) -> float:
    """CPU time of the first process for an epoch of ten steps."""
    with tempfile.TemporaryDirectory(prefix="slopes_") as folder:
        path = Path(folder) / "cpu_s"
        flags = trainer_flags("fulmen.trainer", "off", folder)
        trainer = Trainer(max_epochs=NUM_EPOCHS, accelerator="cpu", devices=num_processes, strategy="ddp_fork", **flags)
        trainer.fit(EpochEnds(path), make_loader(10 * num_processes))
        return float(path.read_text()) / NUM_EPOCHS


@dataclass(frozen=True, slots=True)
class Curve:
    """One row: sizes, the cost at a size, the slope it may have, and how many Python functions a step calls."""

    title: str
    sizes: tuple[int, ...]
    cost_s: Callable[[int], float]
    allowed: float
    calls: Callable[[int], float] | None = None


CURVES = {
    "parameters": Curve("tensors of parameters", (10, 100, 1000, 10_000), added_by_parameters_s, ALLOWED),
    "idle": Curve("callbacks that hear no batch", (1, 10, 100), added_by_idle_callbacks_s, 0.0, calls_idle),
    "callbacks": Curve("callbacks that hear each batch", (1, 10, 100), added_by_callbacks_s, ALLOWED, calls_heard),
    "keys": Curve("logged keys", (1, 10, 100, 1000), added_by_keys_s, ALLOWED, calls),
    "processes": Curve("processes, for an epoch of 10 steps", (2, 4, 8), epochs_of_processes_s, ALLOWED),
}


def slope(points: Sequence[tuple[int, float]]) -> float:
    """Of the least-squares line through the logarithms; 0.0 where all that is seen is nothing."""
    seen = [(math.log(size), math.log(cost)) for size, cost in points if cost > NOTHING_S]
    if len(seen) < 2:
        return 0.0
    mean_x, mean_y = (statistics.mean(values) for values in zip(*seen, strict=True))
    variance = sum((x - mean_x) ** 2 for x, _ in seen)
    return float(sum((x - mean_x) * (y - mean_y) for x, y in seen) / variance)


def rows(keys: Sequence[str], num_pairs: int) -> Iterator[str]:
    """A row of the table for each curve."""
    for key in keys:
        curve = CURVES[key]
        curve.cost_s(curve.sizes[0])  # imports and caches
        points = [
            (
                size,
                statistics.median(curve.cost_s(size) for _ in range(num_pairs if size < 10_000 else min(num_pairs, 3))),
            )
            for size in curve.sizes
        ]
        found = slope(points[-3:])
        costs = ", ".join(f"{size:,}: {cost * 1e6:.1f}" for size, cost in points)
        counted = [] if curve.calls is None else [curve.calls(size) for size in curve.sizes]
        said = ", ".join(f"{size:,}: {count:g}" for size, count in zip(curve.sizes, counted, strict=False))
        # What must be constant is told by what does not vary: a microsecond more or less has any slope.
        passes = len(set(counted)) == 1 if curve.allowed == 0 else found <= curve.allowed
        verdict = "pass" if passes else "fail"
        yield f"| {curve.title} | {costs} | {found:.2f} | {curve.allowed:.2f} | {said} | {verdict} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="runs of which the median is taken (5)")
    parser.add_argument("--only", default="", metavar="A,B", help=f"some of {', '.join(CURVES)}")
    given = parser.parse_args(arguments)
    keys = [key for key in given.only.split(",") if key] or list(CURVES)
    if unknown := [key for key in keys if key not in CURVES]:
        parser.error(
            f"--only {','.join(unknown)} is not known. Each row has one name. Pass some of {', '.join(CURVES)}."
        )
    if given.pairs < 1:
        parser.error(f"--pairs {given.pairs} measures nothing. It counts runs. Pass 1 or more.")
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)  # how each of the many fits ended
    head = "with the number of | size: µs of CPU that a step costs more | slope | target | size: Python calls of a step"
    print(f"| {head} | |")
    print("| --- | --- | ---: | ---: | --- | --- |")
    for row in rows(keys, given.pairs):
        print(row, flush=True)


if __name__ == "__main__":
    main()
