"""The pause between the last step of an epoch and the first of the next, with two workers that stay alive.

An MLP on the digits, batches of 32, so many short epochs. What is timed begins when the optimizer has made the last
step of an epoch and ends when the model is called for the first batch of the next: with it the end of the epoch, its
hooks, rows and checkpoint, and the wait for the first batch. Frameworks take turns, each beside a plain loop. The
checkpoint is most of the defaults' pause, so they are measured without one, too; and so is a plain loop that saves its
weights and its optimizer's state by hand, as safely: in a file that is on the disk before it gets its name.

    python benchmarks/epoch_gap.py
    python benchmarks/epoch_gap.py --only plain,off,lightning.off --rounds 9
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peer_rows import FRAMEWORKS, Framework, quiet, rows_of
from peer_runs import with_trainer
from peer_work import WORKS, Job
from peers import installed
from step_overhead import quartiles, terminal

NUM_WORKERS = 2
NUM_EPOCHS, STEPS_OF_AN_EPOCH = 11, 20
TARGET_MS = 5.0
# skorch asks for the loader anew in each epoch, and Keras has optimizers of its own: there is no such pause to see.
SEEN = ("plain", "fabric", "off", "log", "bar", "defaults", "accelerate", "ignite", "lightning")


def gaps_ms(framework: Framework) -> list[float]:
    """The pauses of one run, without the first: some of what is in it comes once."""
    job = Watched(
        WORKS[1], NUM_EPOCHS * STEPS_OF_AN_EPOCH, NUM_EPOCHS, paired=framework.paired, num_workers=NUM_WORKERS
    )
    with terminal(), quiet():
        framework.train(job)
    assert len(job.began) == len(job.stepped) == job.num_steps
    ends = range(STEPS_OF_AN_EPOCH, job.num_steps, STEPS_OF_AN_EPOCH)
    return [(job.began[first] - job.stepped[first - 1]) * 1e3 for first in ends][1:]


class Watched(Job):
    """A job that notes when each step of the model began, and when the optimizer had made it."""

    began: list[float]
    stepped: list[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.began, self.stepped = [], []
        self.model.register_forward_pre_hook(lambda *_: self.began.append(time.perf_counter()))

    def optimizer(self) -> torch.optim.Optimizer:
        """For the model of this run."""
        optimizer = super().optimizer()
        optimizer.register_step_post_hook(lambda *_: self.stepped.append(time.perf_counter()))
        return optimizer


def save_by_hand(job: Job) -> None:
    """The plain loop, and at the end of each epoch a file that a power cut cannot damage."""
    model, optimizer, loader = job.model, job.optimizer(), job.loader()
    with tempfile.TemporaryDirectory(prefix="epoch_gap_") as folder:
        path = os.path.join(folder, "last.ckpt")
        for _ in range(job.num_epochs):
            for batch in loader:
                loss = job.work.loss_of(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with open(f"{path}.new", "wb") as file:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(f"{path}.new", path)
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def more_rows() -> list[Framework]:
    """Beside those of peer_rows.py: what a checkpoint is in the pause."""
    return [
        rows_of("plain.saves", "the plain loop, saved by hand at each end", "torch", lambda _, job: save_by_hand(job)),
        rows_of(
            "defaults.unsaved",
            "**Fulmen** Trainer, defaults without the checkpoint",
            "fulmen.trainer",
            functools.partial(with_trainer, "fulmen.trainer", "defaults", enable_checkpointing=False),
        ),
    ]


def table(frameworks: Sequence[Framework], rounds: dict[str, list[tuple[float, float]]]) -> str:
    """A Markdown table: medians of the pauses, and what they are longer than those of the plain loop beside them."""
    lines = [
        "| | pause at the end of an epoch | quartiles | beyond the plain loop's | target | |",
        "| --- | ---: | :---: | ---: | ---: | --- |",
    ]
    for framework in frameworks:
        pairs = rounds[framework.key]
        low, middle, high = quartiles([other for _, other in pairs])
        added = statistics.median(other - plain for plain, other in pairs)
        target, verdict = "", ""
        if framework.key in ("fabric", "off", "log", "bar", "defaults", "defaults.unsaved"):
            target, verdict = f"{TARGET_MS:.0f} ms", "pass" if added <= TARGET_MS else "fail"
        measured = f"{middle:.2f} ms | {low:.2f} to {high:.2f} | {added:+.2f} ms"
        lines.append(f"| {framework.title} | {measured} | {target} | {verdict} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="runs of each row (7)")
    parser.add_argument("--only", default="", metavar="A,B", help="only these rows; a wrong name lists them all")
    given = parser.parse_args(arguments)
    rows = [*FRAMEWORKS[:1], *more_rows(), *FRAMEWORKS[1:]]
    known = {each.key: each for each in rows if each.key.partition(".")[0] in SEEN and installed(each)}
    keys = [key for key in given.only.split(",") if key] or list(known)
    if unknown := [key for key in keys if key not in known]:
        parser.error(
            f"--only {','.join(unknown)} is not known here. A peer has a row where it is installed."
            f" Pass some of {', '.join(known)}."
        )
    if given.rounds < 1:
        parser.error(f"--rounds {given.rounds} measures nothing. It counts runs. Pass 1 or more.")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    frameworks = [known[key] for key in keys]
    rounds: dict[str, list[tuple[float, float]]] = {key: [] for key in keys}
    plain: Any = FRAMEWORKS[0]
    for round_idx in range(given.rounds):
        for place, framework in enumerate(frameworks):
            order = (plain, framework) if (round_idx + place) % 2 == 0 else (framework, plain)
            first, second = (statistics.median(gaps_ms(each)) for each in order)
            rounds[framework.key].append((first, second) if order[0] is plain else (second, first))
    print(
        f"{NUM_WORKERS} persistent workers, {NUM_EPOCHS} epochs of {STEPS_OF_AN_EPOCH} steps; median of"
        f" {given.rounds} runs, each beside a plain loop.\n\n{table(frameworks, rounds)}"
    )


if __name__ == "__main__":
    main()
