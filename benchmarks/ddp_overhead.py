"""What a training step of two processes costs beyond the same step in a hand-written DDP loop.

A linear model, an MLP on the digits and a GPT of a million parameters (peer_work.py), with SGD, in two processes that
talk by gloo, one CPU thread each. Both loops are under way in the same two processes and take turns, a few milliseconds
each, so that what else the machine does hits both; the median of the ratios of neighbours is what counts. The
collectives of a step are counted, too. README.md beside this file says how to read the table.

    python benchmarks/ddp_overhead.py
    python benchmarks/ddp_overhead.py --works linear --rounds 61
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import math
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
from peer_work import WORKS, Work
from step_overhead import BATCH_SIZE, MIN_PAIRS, NUM_FEATURES, Cost, Pair
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from fulmen.fabric import Fabric

NUM_PROCESSES = 2
NUM_WARM_UP_STEPS = 25
NUM_COUNTED_STEPS = 10
TARGET = 1.05
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: steps of a block, pairs of blocks of a round, rounds."""

    num_rounds: int
    num_blocks: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop, ready to run: what it reads, and what it does with each batch."""

    batches: Iterable[Any]
    step: Callable[[Any], None]
    model: nn.Module


def make_by_hand(fabric: Fabric, work: Work, num_steps: int) -> Loop:
    """The reference: the loop that one would write by hand."""
    plain = work.model()
    model = DistributedDataParallel(plain)
    optimizer = work.optimizer(model)
    dataset = work.loader(num_steps * NUM_PROCESSES).dataset
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, shuffle=False)

    def step(batch: Any) -> None:
        loss = work.loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Loop(DataLoader(dataset, batch_size=work.batch_size, sampler=sampler), step, plain)


def make_with_fabric(fabric: Fabric, work: Work, num_steps: int) -> Loop:
    """The same loop, set up by Fabric."""
    plain = work.model()
    model, optimizer = fabric.setup(plain, work.optimizer(plain))
    loader = fabric.setup_dataloaders(work.loader(num_steps * NUM_PROCESSES))

    def step(batch: Any) -> None:
        loss = work.loss_of(model, batch)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()

    return Loop(loader, step, plain)


Make = Callable[[Fabric, Work, int], Loop]
SUBJECTS: dict[str, Make] = {
    "hand-written DDP again": make_by_hand,  # shows the noise
    "Fabric, strategy ddp": make_with_fabric,
}


class Runner:
    """A loop under way: it makes as many steps as it is told to, and is held in between."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        began = time.process_time()
        self._batches = iter(loop.batches)
        loop.step(next(self._batches))
        self.first_step_s = time.process_time() - began  # of CPU: with it, the loader's work for the epoch

    def block(self, num_steps: int) -> Cost:
        """So many steps, from when both processes are ready."""
        step, batches = self._loop.step, self._batches
        dist.barrier()
        began_wall, began_cpu = time.perf_counter(), time.process_time()
        for batch in itertools.islice(batches, num_steps):
            step(batch)
        return Cost(time.perf_counter() - began_wall, time.process_time() - began_cpu)

    def weights(self) -> Tensor:
        """What it has come to."""
        return torch.cat([parameter.detach().flatten() for parameter in self._loop.model.parameters()])


@dataclass(frozen=True, slots=True)
class Round:
    """What a hand-written loop and another one cost, both made anew, block by block in turns."""

    pairs: list[Pair]
    first_steps_s: tuple[float, float] | None = None

    def ratio(self, clock: str) -> float:
        """The median of the ratios of neighbouring blocks, by "wall_s" or "cpu_s"."""
        ratios: list[float] = [getattr(other, clock) / getattr(by_hand, clock) for by_hand, other in self.pairs]
        return statistics.median(ratios)


def run_round(make: Make, fabric: Fabric, work: Work, plan: Plan, *, turn: int) -> Round:
    """Both loops side by side in these processes, and see that they did the same."""
    num_steps = 1 + NUM_WARM_UP_STEPS + plan.num_blocks * plan.num_steps
    by_hand, other = (Runner(maker(fabric, work, num_steps)) for maker in (make_by_hand, make))
    for runner in (by_hand, other):
        runner.block(NUM_WARM_UP_STEPS)
    gc.collect()
    gc.freeze()
    pairs: list[Pair] = []
    for block_idx in range(plan.num_blocks):
        # Who is first pays for the caches, so each is first in every second pair.
        if (block_idx + turn) % 2 == 0:
            plain = by_hand.block(plan.num_steps)
            pairs.append((plain, other.block(plan.num_steps)))
        else:
            cost = other.block(plan.num_steps)
            pairs.append((by_hand.block(plan.num_steps), cost))
    gc.unfreeze()
    if not torch.equal(by_hand.weights(), other.weights()):
        raise RuntimeError(
            f"{make.__name__} came to other weights than the hand-written loop. It did other work, so its time says"
            " nothing. Find out which step differs before measuring it."
        )
    return Round(pairs, (by_hand.first_step_s, other.first_step_s))


def count_collectives(loop: Loop) -> dict[str, float]:
    """The collectives of one step, by name, however deep inside they are called."""
    batches = iter(loop.batches)
    for _ in range(3):  # DDP arranges its buckets in the first steps
        loop.step(next(batches))
    with silence(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(NUM_COUNTED_STEPS):
            loop.step(next(batches))
    return collectives_of(profiler, NUM_COUNTED_STEPS)


def collectives_of(profiler: torch.profiler.profile, num_steps: int) -> dict[str, float]:
    """How often each collective was called in a step, of so many that were recorded."""
    with silence():
        events = profiler.events() or []
    names = Counter(event.name for event in events if event.name.startswith("c10d::"))
    return {name.removeprefix("c10d::").rstrip("_"): count / num_steps for name, count in names.items()}


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


def measure(fabric: Fabric, works: Sequence[Work], plan: Plan) -> dict[str, dict[str, Any]]:
    """Each job's rounds of all subjects, and what they ask of the other process; runs in each process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return {work.key: measure_work(fabric, work, plan_of(work, plan)) for work in works}


def measure_work(fabric: Fabric, work: Work, plan: Plan) -> dict[str, tuple[list[Round], dict[str, float]]]:
    """One job of all subjects; rounds go over all of them."""
    found: dict[str, tuple[list[Round], dict[str, float]]] = {}
    for title, make in SUBJECTS.items():
        found[title] = ([], count_collectives(make(fabric, work, 3 + NUM_COUNTED_STEPS)))
        run_round(make, fabric, work, Plan(1, 1, NUM_COUNTED_STEPS), turn=0)
    for round_idx in range(plan.num_rounds):
        for subject_idx, (title, make) in enumerate(SUBJECTS.items()):
            found[title][0].append(run_round(make, fabric, work, plan, turn=round_idx + subject_idx))
    return found


def plan_of(work: Work, plan: Plan) -> Plan:
    """Less of a job whose steps are long: a block stays a matter of milliseconds."""
    share = min(work.num_steps / WORKS[1].num_steps, 1.0)
    return Plan(plan.num_rounds, max(1, round(plan.num_blocks * share**0.5)), max(1, round(plan.num_steps * share)))


def spread(rounds: Sequence[Round], clock: str) -> tuple[float, float, float]:
    """The median of the rounds' ratios, and the bounds within which that of endless rounds lies in 95 of 100 runs.

    The bounds are two of the ratios themselves: how many rounds fall on one side of the true median is a matter of
    tossing a coin, whatever the noise looks like.
    """
    ratios = sorted(one.ratio(clock) for one in rounds)
    num, tail, place = len(ratios), 0.0, 0
    while place < (num - 1) // 2:
        tail += math.comb(num, place) / 2**num
        if 2 * tail > 1 - CONFIDENCE:
            break
        place += 1
    place = max(place - 1, 0)
    return statistics.median(ratios), ratios[place], ratios[num - 1 - place]


def table(found: dict[str, tuple[list[Round], dict[str, float]]], plan: Plan) -> str:
    """A Markdown table: ratios to the hand-written loop beside it; the first row is that loop again."""
    lines = [
        "| | wall, ratio | 95 % within | CPU, ratio | 95 % within | CPU added per step | added once per epoch |"
        " collectives per step | target | |",
        "| --- | ---: | :---: | ---: | :---: | ---: | ---: | --- | ---: | --- |",
    ]
    first, (_, expected) = next(iter(found.items()))
    for title, (rounds, collectives) in found.items():
        wall, low, high = spread(rounds, "wall_s")
        cpu, cpu_low, cpu_high = spread(rounds, "cpu_s")
        pairs = [pair for one in rounds for pair in one.pairs]
        added_us = statistics.median(other.cpu_s - plain.cpu_s for plain, other in pairs) / plan.num_steps * 1e6
        firsts = [one.first_steps_s for one in rounds if one.first_steps_s is not None]
        once = f"{statistics.median(other - plain for plain, other in firsts) * 1e6:+.0f} µs" if firsts else ""
        asked = ", ".join(f"{count:g} {name}" for name, count in sorted(collectives.items()))
        target, verdict = "", ""
        if title != first:
            target, verdict = f"{TARGET:.2f}", judge(low, high, same=collectives == expected)
        lines.append(
            f"| {title} | {wall:.3f} | {low:.3f} to {high:.3f} | {cpu:.3f} | {cpu_low:.3f} to {cpu_high:.3f}"
            f" | {added_us:+.1f} µs | {once} | {asked} | {target} | {verdict} |"
        )
    return "\n".join(lines)


def judge(low: float, high: float, *, same: bool) -> str:
    """Passed and failed are said only where the noise leaves no doubt."""
    if not same or low > TARGET:
        return "fail"
    return "pass" if high <= TARGET else "unclear: take more rounds"


def heading(
    found: dict[str, tuple[list[Round], dict[str, float]]],
    plan: Plan,
    model: str = f"Linear({NUM_FEATURES}, 2), batch {BATCH_SIZE}",
) -> str:
    """What was measured, where, and how often."""
    by_hand = [pair[0] for rounds, _ in found.values() for one in rounds for pair in one.pairs]
    wall_us = statistics.median(cost.wall_s for cost in by_hand) / plan.num_steps * 1e6
    cpu_us = statistics.median(cost.cpu_s for cost in by_hand) / plan.num_steps * 1e6
    said = [
        f"{model} per process, {NUM_PROCESSES} processes by gloo, one CPU thread"
        f" each; {plan.num_rounds} rounds of {plan.num_blocks} pairs of blocks of {plan.num_steps} steps.",
        f"A hand-written step takes {wall_us:.1f} µs on the clock and {cpu_us:.1f} µs of CPU in each process.",
        f"Python {platform.python_version()}, torch {torch.__version__}.",
    ]
    if plan.num_rounds < MIN_PAIRS:
        said.append(f"Fewer than {MIN_PAIRS} rounds: a trial, no measurement.")
    return " ".join(said)


def read_plan(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, usual: Plan
) -> tuple[Plan, argparse.Namespace]:
    """How much the user wants to be measured, and what else was given."""
    for name, number, text in (
        ("--rounds", usual.num_rounds, "how often both loops are made anew"),
        ("--blocks", usual.num_blocks, "pairs of blocks in a round"),
        ("--steps", usual.num_steps, "steps of one block"),
    ):
        parser.add_argument(name, type=int, default=number, metavar="N", help=f"{text} (%(default)s)")
    given = parser.parse_args(arguments)
    for name in ("rounds", "blocks", "steps"):
        if getattr(given, name) < 1:
            parser.error(
                f"--{name} {getattr(given, name)} is not positive. There would be nothing to measure. Pass 1 or more."
            )
    return Plan(given.rounds, given.blocks, given.steps), given


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--works", default="linear,mlp,gpt", metavar="A,B", help="some jobs of peer_work.py (%(default)s)"
    )
    plan, given = read_plan(parser, arguments, Plan(15, 40, 25))
    known = {work.key: work for work in WORKS}
    if unknown := [key for key in given.works.split(",") if key not in known]:
        parser.error(
            f"--works {','.join(unknown)} is not known. Each job has one name. Pass some of {', '.join(known)}."
        )
    works = [known[key] for key in given.works.split(",")]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    fabric = Fabric(accelerator="cpu", devices=NUM_PROCESSES, strategy="ddp_fork")
    found: Any = fabric.launch(measure, works, plan)
    for work in works:
        own = plan_of(work, plan)
        print(f"{heading(found[work.key], own, work.title)}\n\n{table(found[work.key], own)}\n")


if __name__ == "__main__":
    main()
