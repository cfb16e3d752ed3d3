"""What a training step costs beyond the same step in a plain torch loop.

Linear(32, 2), batches of 4 from a DataLoader, SGD, on one CPU thread: the model is so small that what is left is what
the framework adds. Each framework is timed in pairs with the plain loop, one right after the other; the median of the
ratios is what counts. README.md beside this file says how to read the table.

    python benchmarks/step_overhead.py
    python benchmarks/step_overhead.py --only plain,off --pairs 21
    python benchmarks/step_overhead.py --peers lightning,accelerate
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import gc
import importlib
import importlib.util
import os
import platform
import pty
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
import tty
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

BATCH_SIZE = 4
NUM_FEATURES = 32
LEARNING_RATE = 1e-4
MIN_PAIRS = 7  # of fewer, the median says little
NUM_WARM_UP_STEPS = 200


class BenchmarkError(RuntimeError):
    """The measurement would not mean what it says."""


# ---- what is measured


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one run of the loop: seconds on the clock, and seconds of CPU of this process."""

    wall_s: float
    cpu_s: float


Outcome = tuple[Cost, Tensor]  # what a run cost, and the weights that it came to


class Stopwatch:
    """Times the loop: the same way for all, wherever they start and stop it.

    What is alive at the start is taken from the garbage collector: a run pays for the garbage that it makes itself,
    and not for the modules that others have imported.
    """

    def __init__(self) -> None:
        self.cost: Cost | None = None
        self._began = Cost(0.0, 0.0)

    def start(self) -> None:
        """Just before the first batch is asked for."""
        gc.collect()
        gc.freeze()
        self._began = Cost(time.perf_counter(), time.process_time())

    def stop(self) -> None:
        """Just after what follows the last batch."""
        ended = Cost(time.perf_counter(), time.process_time())
        self.cost = Cost(ended.wall_s - self._began.wall_s, ended.cpu_s - self._began.cpu_s)
        gc.unfreeze()

    def outcome(self, linear: nn.Linear) -> Outcome:
        """What was measured, for the model that was trained."""
        if self.cost is None:
            raise BenchmarkError(
                "A run ended without a measurement. Its training loop did not start, or stopped early."
                " Run this subject alone, with --only, and look at its messages."
            )
        return self.cost, linear.weight.detach().clone()


class Rows(Dataset[Tensor]):
    """Random features, made before the clock runs."""

    def __init__(self, num_rows: int) -> None:
        self._features = torch.randn(num_rows, NUM_FEATURES, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, index: int) -> Tensor:
        return self._features[index]


@functools.cache
def rows(num_steps: int) -> Rows:
    """The data of so many steps."""
    return Rows(num_steps * BATCH_SIZE)


def make_loader(num_steps: int) -> DataLoader[Tensor]:
    """A fresh loader of so many batches."""
    return DataLoader(rows(num_steps), batch_size=BATCH_SIZE)


def make_linear() -> nn.Linear:
    """The same model each time."""
    torch.manual_seed(0)
    return nn.Linear(NUM_FEATURES, 2)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The same optimizer each time."""
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


# ---- who is measured


def run_plain(num_steps: int) -> Outcome:
    """The reference: the loop that one would write by hand."""
    linear, watch = make_linear(), Stopwatch()
    optimizer, loader = make_optimizer(linear), make_loader(num_steps)
    watch.start()
    for batch in loader:
        loss = linear(batch).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    watch.stop()
    return watch.outcome(linear)


def run_wrapped(
    linear: nn.Linear, model: Any, optimizer: Any, loader: Any, backward: Callable[[Tensor], Any]
) -> Outcome:
    """The same loop with a model, optimizer, loader and backward that others made of the plain ones."""
    watch = Stopwatch()
    watch.start()
    for batch in loader:
        loss = model(batch).sum()
        optimizer.zero_grad()
        backward(loss)
        optimizer.step()
    watch.stop()
    return watch.outcome(linear)


def run_fabric(module_name: str, num_steps: int) -> Outcome:
    """The loop with Fabric; `module_name` is where the class is."""
    linear = make_linear()
    fabric = importlib.import_module(module_name).Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(linear, make_optimizer(linear))
    return run_wrapped(linear, model, optimizer, fabric.setup_dataloaders(make_loader(num_steps)), fabric.backward)


def run_accelerate(num_steps: int) -> Outcome:
    """The loop with Accelerate."""
    linear = make_linear()
    accelerator = importlib.import_module("accelerate").Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(linear, make_optimizer(linear), make_loader(num_steps))
    return run_wrapped(linear, model, optimizer, loader, accelerator.backward)


@functools.cache
def model_classes(module_name: str) -> dict[str, type[Any]]:
    """Modules that log nothing, one value, and one value in all ways; built on that module's LightningModule."""
    base: Any = importlib.import_module(module_name).LightningModule

    class Silent(base):  # type: ignore[misc]  # which class it is, is known at runtime only
        def __init__(self, watch: Stopwatch) -> None:
            super().__init__()
            self.linear = make_linear()
            self.watch = watch

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.linear(batch).sum()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(self)

        def on_train_start(self) -> None:
            self.watch.start()  # modules hear it after callbacks: the bar and the logger are ready

    class LogsOnce(Silent):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss: Tensor = self.linear(batch).sum()
            self.log("loss", loss)
            return loss

    class LogsAll(Silent):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss: Tensor = self.linear(batch).sum()
            self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            return loss

    return {"silent": Silent, "logs once": LogsOnce, "logs all": LogsAll}


@functools.cache
def stop_callback(module_name: str) -> type[Any]:
    """A callback that stops the watch."""
    base: Any = importlib.import_module(module_name).Callback

    class StopsWatch(base):  # type: ignore[misc]  # which class it is, is known at runtime only
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.watch.stop()  # the first callback: the epoch is over, and the fit has not begun to end

    return StopsWatch


def trainer_flags(module_name: str, setting: str, folder: str) -> dict[str, Any]:
    """Arguments of a Trainer in one of our settings; `module_name` is where the class is, files go into `folder`."""
    if setting == "defaults":
        # A logger by name: which one is the default depends on what is installed.
        logger = importlib.import_module(f"{module_name}.loggers").CSVLogger(folder)
        return {"logger": logger, "default_root_dir": folder}
    return {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": setting == "bar",
        "enable_model_summary": False,
    }


def run_trainer(module_name: str, setting: str, num_steps: int) -> Outcome:
    """One epoch of `Trainer.fit` in one of four settings; `module_name` is where the classes are."""
    api = importlib.import_module(module_name)
    with tempfile.TemporaryDirectory(prefix="step_overhead_") as folder:
        flags = trainer_flags(module_name, setting, folder)
        which = {"off": "silent", "log": "logs once"}.get(setting, "logs all")
        model = model_classes(module_name)[which](Stopwatch())
        trainer = api.Trainer(
            max_epochs=1, accelerator="cpu", devices=1, callbacks=[stop_callback(module_name)()], **flags
        )
        trainer.fit(model, make_loader(num_steps))
        outcome: Outcome = model.watch.outcome(model.linear)
        return outcome


@dataclass(frozen=True, slots=True)
class Subject:
    """One row of the table: names for `--only` and the table, how to make N steps, and the ratio it may reach."""

    key: str
    title: str
    run: Callable[[int], Outcome]
    target: float | None = None


SETTINGS = {
    "off": "all off",
    "log": "one `self.log`",
    "bar": "`self.log` on step and epoch, with bar",
    "defaults": "defaults, CSV logger, checkpoint",
}
TARGETS = {"fabric": 1.06, "off": 1.12, "log": 1.22, "bar": 1.30, "defaults": 1.40}


def fabric_and_trainer(title: str, key: str, fabric: str, trainer: str, targets: dict[str, float]) -> list[Subject]:
    """The five rows of two modules, one with a Fabric, one with a Trainer; `title` and `key` come before theirs."""
    found = [Subject(f"{key}fabric", f"{title}Fabric", functools.partial(run_fabric, fabric), targets.get("fabric"))]
    for setting, words in SETTINGS.items():
        run = functools.partial(run_trainer, trainer, setting)
        found.append(Subject(f"{key}{setting}", f"{title}Trainer, {words}", run, targets.get(setting)))
    return found


def our_subjects() -> list[Subject]:
    """The plain loop beside itself, which shows the noise, and what this repository makes."""
    plain = Subject("plain", "the plain loop again", run_plain)
    return [plain, *fabric_and_trainer("", "", "fulmen.fabric", "fulmen.trainer", TARGETS)]


PEERS: dict[str, Callable[[], list[Subject]]] = {
    "lightning": lambda: fabric_and_trainer("Lightning ", "lightning.", "lightning.fabric", "lightning.pytorch", {}),
    "accelerate": lambda: [Subject("accelerate", "Accelerate", run_accelerate)],
}


# ---- how it is measured


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Inside, standard output and error are a terminal of their own, so that progress bars draw as they do for a user.

    Another process reads what is drawn, and drops it.
    """
    reader, screen = pty.openpty()
    tty.setraw(screen)
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # lines, columns
    with subprocess.Popen(["cat"], stdin=reader, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as drain:
        os.close(reader)
        streams = (sys.stdout, sys.stderr)
        for stream in streams:
            stream.flush()
        kept = [os.dup(stream.fileno()) for stream in streams]
        for stream in streams:
            os.dup2(screen, stream.fileno())
        os.close(screen)
        try:
            yield
        finally:
            for stream, descriptor in zip(streams, kept, strict=True):
                stream.flush()
                os.dup2(descriptor, stream.fileno())
                os.close(descriptor)
            drain.terminate()


Pair = tuple[Cost, Cost]  # of the plain loop, and of the subject right before or after it


def measure_pair(subject: Subject, num_steps: int, *, plain_first: bool) -> Pair:
    """Run both, and see that they did the same."""
    order = (run_plain, subject.run) if plain_first else (subject.run, run_plain)
    with terminal():
        outcomes = [run(num_steps) for run in order]
    (plain, plain_weights), (other, other_weights) = outcomes if plain_first else reversed(outcomes)
    if not torch.equal(plain_weights, other_weights):
        raise BenchmarkError(
            f"{subject.title} came to other weights than the plain loop after {num_steps} steps."
            " It did other work, so its time says nothing. Find out which step differs before measuring it."
        )
    return plain, other


def measure(subjects: Sequence[Subject], num_steps: int, num_pairs: int) -> dict[str, list[Pair]]:
    """All pairs of all subjects, by key. Rounds go over all subjects, so that a slow minute hits them all alike."""
    pairs: dict[str, list[Pair]] = {subject.key: [] for subject in subjects}
    for subject in subjects:  # imports, caches, the first call of everything
        measure_pair(subject, min(num_steps, NUM_WARM_UP_STEPS), plain_first=True)
    for round_idx in range(num_pairs):
        for subject_idx, subject in enumerate(subjects):
            if sys.stderr.isatty():
                print(f"\rround {round_idx + 1} of {num_pairs}: {subject.key:<20}", end="", file=sys.stderr, flush=True)
            plain_first = (round_idx + subject_idx) % 2 == 0
            pairs[subject.key].append(measure_pair(subject, num_steps, plain_first=plain_first))
    if sys.stderr.isatty():
        print("\r" + " " * 50 + "\r", end="", file=sys.stderr, flush=True)
    return pairs


# ---- what is said about it


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median, the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, middle, upper


def ratios(pairs: Sequence[Pair], num_steps: int) -> tuple[float, str]:
    """The median of the ratios on the clock, and the cells of a row: of clock and CPU, and what CPU a step adds."""
    low, wall, high = quartiles([other.wall_s / plain.wall_s for plain, other in pairs])
    cpu_low, cpu, cpu_high = quartiles([other.cpu_s / plain.cpu_s for plain, other in pairs])
    added_us = statistics.median(other.cpu_s - plain.cpu_s for plain, other in pairs) / num_steps * 1e6
    clock = f"{wall:.3f} | {low:.3f} to {high:.3f}"
    return wall, f"{clock} | {cpu:.3f} | {cpu_low:.3f} to {cpu_high:.3f} | {added_us:+.1f} µs"


def table(subjects: Sequence[Subject], pairs: dict[str, list[Pair]], num_steps: int) -> str:
    """A Markdown table: ratios to the plain loop of the same pair."""
    lines = [
        "| | wall, ratio | quartiles | CPU, ratio | quartiles | CPU added per step | target | |",
        "| --- | ---: | :---: | ---: | :---: | ---: | ---: | --- |",
    ]
    for subject in subjects:
        wall, cells = ratios(pairs[subject.key], num_steps)
        target, verdict = "", ""
        if subject.target is not None:
            target, verdict = f"{subject.target:.2f}", "pass" if wall <= subject.target else "fail"
        lines.append(f"| {subject.title} | {cells} | {target} | {verdict} |")
    return "\n".join(lines)


def heading(pairs: dict[str, list[Pair]], num_steps: int, num_pairs: int) -> str:
    """What was measured, where, and in how many pairs."""
    plain = [pair[0] for measured in pairs.values() for pair in measured]
    wall_us = statistics.median(cost.wall_s for cost in plain) / num_steps * 1e6
    cpu_us = statistics.median(cost.cpu_s for cost in plain) / num_steps * 1e6
    said = [
        f"Linear({NUM_FEATURES}, 2), batch {BATCH_SIZE}, {num_steps} steps, one CPU thread;"
        f" median of {num_pairs} pairs.",
        f"A plain step takes {wall_us:.1f} µs on the clock and {cpu_us:.1f} µs of CPU.",
        f"Python {platform.python_version()}, torch {torch.__version__}.",
    ]
    if num_pairs < MIN_PAIRS:
        said.append(f"Fewer than {MIN_PAIRS} pairs: a trial, no measurement.")
    return " ".join(said)


def parse_arguments(arguments: Sequence[str] | None) -> tuple[list[Subject], int, int]:
    """The subjects, the steps of a run, and the number of pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, metavar="N", help="steps of one run (3000)")
    parser.add_argument("--pairs", type=int, default=MIN_PAIRS, metavar="N", help=f"pairs per row ({MIN_PAIRS})")
    parser.add_argument("--peers", default="", metavar="A,B", help=f"also measure these: {', '.join(PEERS)}")
    parser.add_argument("--only", default="", metavar="A,B", help="only these rows; a wrong name lists them all")
    given = parser.parse_args(arguments)
    for name in ("steps", "pairs"):
        if getattr(given, name) < 1:
            parser.error(
                f"--{name} {getattr(given, name)} is not positive. There would be nothing to measure. Pass 1 or more."
            )
    subjects = our_subjects()
    for peer in filter(None, given.peers.split(",")):
        if peer not in PEERS:
            parser.error(f"--peers {peer} is not known. Each peer needs a loop here. Pass {' or '.join(PEERS)}.")
        if importlib.util.find_spec(peer) is None:
            parser.error(
                f"--peers {peer} was asked for, and the package {peer} is not installed in this environment."
                f" A peer is measured through its own installed package. Run `pip install {peer}`, or leave it out."
            )
        subjects += PEERS[peer]()
    wanted = [key for key in given.only.split(",") if key]
    keys = [subject.key for subject in subjects]
    if unknown := [key for key in wanted if key not in keys]:
        parser.error(
            f"--only {','.join(unknown)} is not known here. Rows of a peer are there when --peers names it."
            f" Pass some of {', '.join(keys)}."
        )
    return [subject for subject in subjects if not wanted or subject.key in wanted], given.steps, given.pairs


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    subjects, num_steps, num_pairs = parse_arguments(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # advice on workers and loggers, which were chosen on purpose
    pairs = measure(subjects, num_steps, num_pairs)
    print(f"{heading(pairs, num_steps, num_pairs)}\n\n{table(subjects, pairs, num_steps)}")


if __name__ == "__main__":
    main()
