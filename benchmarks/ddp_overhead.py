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
import functools
import gc
import logging
import math
import os
import platform
import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peer_work import WORKS, Work
from step_overhead import BATCH_SIZE, MIN_PAIRS, NUM_FEATURES, Pair, Rows, terminal, trainer_flags
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from turns import NUM_WARM_UP_BLOCKS, Loop, Plan, Round, Runner, Turns, in_turns

from fulmen.fabric import Fabric

NUM_PROCESSES = 2
NUM_WARM_UP_STEPS = 25
NUM_COUNTED_STEPS = 10
TARGET = 1.05
CONFIDENCE = 0.95
NUMS_KEYS = (0, 1, 10, 100)


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


@functools.cache
def module_class() -> type[Any]:
    """A job for the Trainer, which logs its loss if it is told how."""
    from fulmen.trainer import LightningModule

    class Does(LightningModule):
        def __init__(self, work: Work, options: dict[str, Any] | None) -> None:
            super().__init__()
            self.model, self.work, self.options = work.model(), work, options

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.work.loss_of(self.model, batch)
            if self.options is not None:
                self.log("loss", loss, **self.options)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.work.optimizer(self)

    return Does


def run_trainer(setting: str, work: Work, dataset: Dataset[Any]) -> nn.Module:
    """An epoch of `Trainer.fit` in a setting of step_overhead.py."""
    from fulmen.trainer import Trainer

    options = None if setting == "off" else {"on_step": True, "on_epoch": True, "prog_bar": True}
    module = module_class()(work, options)
    with tempfile.TemporaryDirectory(prefix="ddp_overhead_") as folder:
        flags = trainer_flags("fulmen.trainer", setting, folder)
        trainer = Trainer(max_epochs=1, accelerator="cpu", devices=NUM_PROCESSES, strategy="ddp", **flags)
        with terminal():
            trainer.fit(module, DataLoader(dataset, batch_size=work.batch_size))
    model: nn.Module = module.model
    return model


Make = Callable[[Fabric, Work, int], Loop]
Fit = Callable[[Work, Dataset[Any]], nn.Module]
SUBJECTS: dict[str, Make] = {
    "hand-written DDP again": make_by_hand,  # shows the noise
    "Fabric, strategy ddp": make_with_fabric,
}
FITS: dict[str, Fit] = {
    "Trainer, strategy ddp, all off": functools.partial(run_trainer, "off"),
    "Trainer, strategy ddp, defaults": functools.partial(run_trainer, "defaults"),
}


def run_round(make: Make, fabric: Fabric, work: Work, plan: Plan, *, turn: int) -> Round:
    """Both loops side by side in these processes, and see that they did the same."""
    num_warm_up = min(NUM_WARM_UP_STEPS, NUM_WARM_UP_BLOCKS * plan.num_steps)
    num_steps = 1 + num_warm_up + plan.num_blocks * plan.num_steps
    by_hand, other = (Runner(maker(fabric, work, num_steps)) for maker in (make_by_hand, make))
    for runner in (by_hand, other):
        runner.block(num_warm_up)
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
    check_same(by_hand.weights(), other.weights())
    return Round(pairs, (by_hand.first_step_s, other.first_step_s))


def run_round_of_fit(fit: Fit, fabric: Fabric, work: Work, plan: Plan) -> Round:
    """A fit and the loop by hand in turns, and see that they did the same."""
    num_steps = (plan.num_blocks + NUM_WARM_UP_BLOCKS + 2) * plan.num_steps
    by_hand = Runner(make_by_hand(fabric, work, num_steps))
    dataset = work.loader(num_steps * NUM_PROCESSES).dataset
    models: list[nn.Module] = []
    block = plan.num_steps * work.batch_size
    pairs = in_turns(
        by_hand, plan.num_steps, lambda take_turn: models.append(fit(work, Turns(dataset, block, take_turn)))
    )
    check_same(by_hand.weights(), torch.cat([parameter.detach().flatten() for parameter in models[0].parameters()]))
    return Round(pairs)


def check_same(by_hand: Tensor, other: Tensor) -> None:
    """See that both loops have come to the same weights."""
    if not torch.equal(by_hand, other):
        raise RuntimeError(
            "A loop came to other weights than the hand-written one beside it. It did other work, so its time says"
            " nothing. Find out which step differs before measuring it."
        )


def count_collectives(loop: Loop) -> dict[str, float]:
    """The collectives of one step, by name, however deep inside they are called."""
    batches = iter(loop.batches)
    for _ in range(3):  # DDP arranges its buckets in the first steps
        loop.step(next(batches))
    with silence(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(NUM_COUNTED_STEPS):
            loop.step(next(batches))
    return collectives_of(profiler, NUM_COUNTED_STEPS)


def count_collectives_of_fit(fit: Fit, work: Work) -> dict[str, float]:
    """The collectives of one step of a fit."""
    dataset, block = work.loader(3 * NUM_COUNTED_STEPS * NUM_PROCESSES).dataset, NUM_COUNTED_STEPS * work.batch_size
    return count_in_turns(lambda take_turn: fit(work, Turns(dataset, block, take_turn)))


def count_in_turns(subject: Callable[[Callable[[], None]], Any]) -> dict[str, float]:
    """The collectives of one step of a loop over a `Turns` of three blocks, each of `NUM_COUNTED_STEPS`.

    Args:
        subject: Runs the loop; it is given the `take_turn` of the `Turns`.
    """
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    turns: list[int] = []

    def take_turn() -> None:
        turns.append(1)
        if len(turns) == 2:
            profiler.start()
        elif len(turns) == 3:
            profiler.stop()

    with silence():
        subject(take_turn)
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


def measure(fabric: Fabric, works: Sequence[Work], plan: Plan) -> dict[str, Any]:
    """Each job's rounds of all subjects, and what they ask of the other process; runs in each process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)  # how each of the many fits ended
    found = {work.key: measure_work(fabric, work, plan_of(work, plan)) for work in works}
    return {"works": found, "ends": {num_keys: count_epoch_end(num_keys) for num_keys in NUMS_KEYS}}


def measure_work(fabric: Fabric, work: Work, plan: Plan) -> dict[str, tuple[list[Round], dict[str, float]]]:
    """One job of all subjects; rounds go over all of them."""
    found: dict[str, tuple[list[Round], dict[str, float]]] = {}
    for title, make in SUBJECTS.items():
        found[title] = ([], count_collectives(make(fabric, work, 3 + NUM_COUNTED_STEPS)))
        run_round(make, fabric, work, Plan(1, 1, NUM_COUNTED_STEPS), turn=0)
    for title, fit in FITS.items():
        found[title] = ([], count_collectives_of_fit(fit, work))
    for round_idx in range(plan.num_rounds):
        for subject_idx, (title, make) in enumerate(SUBJECTS.items()):
            found[title][0].append(run_round(make, fabric, work, plan, turn=round_idx + subject_idx))
        for title, fit in FITS.items():
            found[title][0].append(run_round_of_fit(fit, fabric, work, plan))
    return found


def count_epoch_end(num_keys: int) -> float:
    """What is asked of the other process from the end of the last step of an epoch to the start of the next.

    In a fit of two epochs of three steps; each key is logged with `sync_dist=True`.
    """
    from fulmen.trainer import LightningModule, Trainer

    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    class Logs(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(NUM_FEATURES, 2)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss: Tensor = self.linear(batch).sum()
            for key in range(num_keys):
                self.log(f"key_{key}", loss.detach(), on_step=False, on_epoch=True, sync_dist=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-9)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.trainer.is_last_batch and self.current_epoch == 0:
                profiler.start()

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                profiler.stop()

    flags = trainer_flags("fulmen.trainer", "off", "")
    trainer = Trainer(max_epochs=2, accelerator="cpu", devices=NUM_PROCESSES, strategy="ddp", **flags)
    rows = Rows(3 * BATCH_SIZE * NUM_PROCESSES)
    with silence():
        trainer.fit(Logs(), DataLoader(rows, batch_size=BATCH_SIZE))
    return sum(collectives_of(profiler, 1).values())


def ends_table(counts: dict[int, float]) -> str:
    """What the end of an epoch asks of the other process, by the number of keys that are logged over it."""
    lines = [
        "From the end of the last step of an epoch to the start of the next, without a checkpoint. What tells that"
        " nothing was logged has room for the means of some keys.",
        "",
        "| keys logged over the epoch | collectives | more than without keys | target | |",
        "| ---: | ---: | ---: | ---: | --- |",
    ]
    for num_keys, count in counts.items():
        more = count - counts[0]
        lines.append(f"| {num_keys} | {count:g} | {more:g} | at most 1 | {'pass' if more <= 1 else 'fail'} |")
    return "\n".join(lines)


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
        print(f"{heading(found['works'][work.key], own, work.title)}\n\n{table(found['works'][work.key], own)}\n")
    print(ends_table(found["ends"]))


if __name__ == "__main__":
    main()
