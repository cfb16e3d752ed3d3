"""What a training step of two processes costs beyond the same step in a hand-written DDP loop.

Linear(32, 2), batches of 4 per process, SGD, two processes that talk by gloo, one CPU thread each. Both loops run in
the same processes, in pairs, one right after the other; the median of the ratios is what counts. The collectives of a
step are counted, too. README.md beside this file says how to read the table.

    python benchmarks/ddp_overhead.py
    python benchmarks/ddp_overhead.py --steps 1000 --pairs 21
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import platform
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from step_overhead import (
    BATCH_SIZE,
    LEARNING_RATE,
    MIN_PAIRS,
    NUM_FEATURES,
    Cost,
    Outcome,
    Pair,
    Rows,
    make_linear,
    ratios,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from fulmen.fabric import Fabric

NUM_PROCESSES = 2
NUM_WARM_UP_STEPS = 50
NUM_COUNTED_STEPS = 10
TARGET = 1.05


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop, ready to run: what it reads, and what it does with each batch."""

    batches: Iterable[Tensor]
    step: Callable[[Tensor], None]
    linear: nn.Linear


def make_by_hand(fabric: Fabric, rows: Rows) -> Loop:
    """The reference: the loop that one would write by hand."""
    linear = make_linear()
    model = DistributedDataParallel(linear)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    sampler: DistributedSampler[Tensor] = DistributedSampler(rows, shuffle=False)

    def step(batch: Tensor) -> None:
        loss = model(batch).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Loop(DataLoader(rows, batch_size=BATCH_SIZE, sampler=sampler), step, linear)


def make_with_fabric(fabric: Fabric, rows: Rows) -> Loop:
    """The same loop, set up by Fabric."""
    linear = make_linear()
    model, optimizer = fabric.setup(linear, torch.optim.SGD(linear.parameters(), lr=LEARNING_RATE))
    loader = fabric.setup_dataloaders(DataLoader(rows, batch_size=BATCH_SIZE))

    def step(batch: Tensor) -> None:
        loss = model(batch).sum()
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()

    return Loop(loader, step, linear)


SUBJECTS: dict[str, Callable[[Fabric, Rows], Loop]] = {
    "hand-written DDP again": make_by_hand,  # shows the noise
    "Fabric, strategy ddp": make_with_fabric,
}


def run(loop: Loop) -> Outcome:
    """One epoch, from when both processes are ready to when both are done."""
    gc.collect()
    gc.freeze()
    dist.barrier()
    began_wall, began_cpu = time.perf_counter(), time.process_time()
    for batch in loop.batches:
        loop.step(batch)
    dist.barrier()
    cost = Cost(time.perf_counter() - began_wall, time.process_time() - began_cpu)
    gc.unfreeze()
    return cost, loop.linear.weight.detach().clone()


def run_pair(make: Callable[[Fabric, Rows], Loop], fabric: Fabric, rows: Rows, *, by_hand_first: bool) -> Pair:
    """Run both, and see that they did the same."""
    makers = (make_by_hand, make) if by_hand_first else (make, make_by_hand)
    outcomes = [run(maker(fabric, rows)) for maker in makers]
    by_hand, other = outcomes if by_hand_first else outcomes[::-1]
    if not torch.equal(by_hand[1], other[1]):
        raise RuntimeError(
            f"{make.__name__} came to other weights than the hand-written loop. It did other work, so its time says"
            " nothing. Find out which step differs before measuring it."
        )
    return by_hand[0], other[0]


def count_collectives(loop: Loop) -> dict[str, float]:
    """The collectives of one step, by name, however deep inside they are called."""
    batches = iter(loop.batches)
    for _ in range(3):  # DDP arranges its buckets in the first steps
        loop.step(next(batches))
    with silence(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(NUM_COUNTED_STEPS):
            loop.step(next(batches))
    with silence():
        events = profiler.events() or []
    names = Counter(event.name for event in events if event.name.startswith("c10d::"))
    return {name.removeprefix("c10d::").rstrip("_"): count / NUM_COUNTED_STEPS for name, count in names.items()}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Inside, nothing is written to standard error: the profiler says that it starts and stops."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def measure(fabric: Fabric, num_steps: int, num_pairs: int) -> dict[str, tuple[list[Pair], dict[str, float]]]:
    """All pairs of all subjects, and what they ask of the other process; runs in each process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows, few = (Rows(steps * BATCH_SIZE * NUM_PROCESSES) for steps in (num_steps, NUM_WARM_UP_STEPS))
    found: dict[str, tuple[list[Pair], dict[str, float]]] = {}
    for title, make in SUBJECTS.items():
        run_pair(make, fabric, few, by_hand_first=True)
        found[title] = ([], count_collectives(make(fabric, few)))
    for round_idx in range(num_pairs):
        # Rounds go over all subjects, so that a slow minute hits them all alike.
        for subject_idx, (title, make) in enumerate(SUBJECTS.items()):
            by_hand_first = (round_idx + subject_idx) % 2 == 0
            found[title][0].append(run_pair(make, fabric, rows, by_hand_first=by_hand_first))
    return found


def table(found: dict[str, tuple[list[Pair], dict[str, float]]], num_steps: int) -> str:
    """A Markdown table: ratios to the hand-written loop of the same pair."""
    lines = [
        "| | wall, ratio | quartiles | CPU, ratio | quartiles | CPU added per step | collectives per step | target | |",
        "| --- | ---: | :---: | ---: | :---: | ---: | --- | ---: | --- |",
    ]
    expected = next(iter(found.values()))[1]
    for title, (pairs, collectives) in found.items():
        wall, cells = ratios(pairs, num_steps)
        asked = ", ".join(f"{count:g} {name}" for name, count in sorted(collectives.items()))
        target, verdict = "", ""
        if SUBJECTS[title] is not make_by_hand:
            target = f"{TARGET:.2f}"
            verdict = "pass" if wall <= TARGET and collectives == expected else "fail"
        lines.append(f"| {title} | {cells} | {asked} | {target} | {verdict} |")
    return "\n".join(lines)


def heading(found: dict[str, tuple[list[Pair], dict[str, float]]], num_steps: int, num_pairs: int) -> str:
    """What was measured, where, and in how many pairs."""
    by_hand = [pair[0] for pairs, _ in found.values() for pair in pairs]
    wall_us = statistics.median(cost.wall_s for cost in by_hand) / num_steps * 1e6
    cpu_us = statistics.median(cost.cpu_s for cost in by_hand) / num_steps * 1e6
    said = [
        f"Linear({NUM_FEATURES}, 2), batch {BATCH_SIZE} per process, {NUM_PROCESSES} processes by gloo, {num_steps}"
        f" steps, one CPU thread each; median of {num_pairs} pairs.",
        f"A hand-written step takes {wall_us:.1f} µs on the clock and {cpu_us:.1f} µs of CPU in each process.",
        f"Python {platform.python_version()}, torch {torch.__version__}.",
    ]
    if num_pairs < MIN_PAIRS:
        said.append(f"Fewer than {MIN_PAIRS} pairs: a trial, no measurement.")
    return " ".join(said)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, metavar="N", help="steps of one run (500)")
    parser.add_argument("--pairs", type=int, default=MIN_PAIRS, metavar="N", help=f"pairs per row ({MIN_PAIRS})")
    given = parser.parse_args(arguments)
    for name in ("steps", "pairs"):
        if getattr(given, name) < 1:
            parser.error(
                f"--{name} {getattr(given, name)} is not positive. There would be nothing to measure. Pass 1 or more."
            )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    fabric = Fabric(accelerator="cpu", devices=NUM_PROCESSES, strategy="ddp_fork")
    found: Any = fabric.launch(measure, given.steps, given.pairs)
    print(f"{heading(found, given.steps, given.pairs)}\n\n{table(found, given.steps)}")


if __name__ == "__main__":
    main()
