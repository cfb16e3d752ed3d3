"""Every framework beside the plain torch loop, and beside each other: training, validation, prediction, epochs, starts.

Each row is measured in pairs with the plain loop, one right after the other, and rounds go over all rows; a run must
come to the weights of the plain loop. Peers are measured where they are installed; `nox -s bench` installs them.
README.md beside this file says how to read the tables.

    python benchmarks/peers.py
    python benchmarks/peers.py --works linear,mlp --pairs 11 --only off,lightning.off
    python benchmarks/peers.py --json peers.json > table.md
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peer_rows import FRAMEWORKS, Framework, quiet
from peer_starts import Start, measure_starts
from peer_work import WORKS, Job, Work
from step_overhead import MIN_PAIRS, BenchmarkError, Cost, quartiles, terminal

NUM_WARM_UP_STEPS = 20
NUM_SHORT_EPOCHS, STEPS_OF_A_SHORT_EPOCH = 21, 10
MAX_STARTS = 3
TARGETS = {  # the ratio of training, by work and row
    "linear": {"fabric": 1.05, "off": 1.10, "log": 1.18, "defaults": 1.35},
    "mlp": {"defaults": 1.03},
    "conv": {"defaults": 1.03},
    "gpt": {"defaults": 1.03},
}
# Evaluation is the same in all settings of a Trainer.
EVALUATED = ("plain", "fabric", "accelerate")


@dataclass(frozen=True, slots=True)
class Measured:
    """What a row showed in one table."""

    ratios: tuple[float, float, float]  # quartiles
    added_us: float  # per step, on the clock

    @classmethod
    def of(cls, pairs: Sequence[tuple[Cost, Cost]], num_steps: int) -> Measured:
        """Of (plain, other) pairs."""
        added = statistics.median(other.wall_s - plain.wall_s for plain, other in pairs) / num_steps * 1e6
        return cls(quartiles([other.wall_s / plain.wall_s for plain, other in pairs]), added)

    def cells(self) -> str:
        """Ratio, spread, and what a step costs more."""
        low, middle, high = self.ratios
        return f"{middle:.3f} | {low:.2f} to {high:.2f} | {self.added_us:+.0f} µs"


# ---- measuring


def cost_of(
    framework: Framework, do: str, work: Work, num_steps: int, num_epochs: int = 1
) -> tuple[Cost, torch.Tensor]:
    """One run of one row."""
    job = Job(work, num_steps, num_epochs, paired=framework.paired)
    getattr(framework, do)(job)
    if job.watch.cost is None:
        raise BenchmarkError(
            f"{framework.title} ended without a measurement. Its loop did not start, or stopped early."
            f" Run it alone, with --only {framework.key}, and look at its messages."
        )
    return job.watch.cost, job.weights()


def pairs_of(
    frameworks: Sequence[Framework], do: str, work: Work, num_steps: int, num_pairs: int, num_epochs: int = 1
) -> dict[str, list[tuple[Cost, Cost]]]:
    """All pairs of all rows, by key; the first round is for imports and caches."""
    plain = FRAMEWORKS[0]
    pairs: dict[str, list[tuple[Cost, Cost]]] = {framework.key: [] for framework in frameworks}
    for round_idx in range(-1, num_pairs):
        for place, framework in enumerate(frameworks):
            say(f"{do} {work.key}, round {max(round_idx, 0) + 1} of {num_pairs}: {framework.key}")
            # As many epochs in the first round, so that each is as long as it can be.
            count = num_steps if round_idx >= 0 else min(num_steps, NUM_WARM_UP_STEPS * num_epochs)
            order = (plain, framework) if (round_idx + place) % 2 == 0 else (framework, plain)
            with terminal(), quiet():
                costs = [cost_of(each, do, work, count, num_epochs) for each in order]
            (one, expected), (other, weights) = costs if order[0] is plain else reversed(costs)
            # Another optimizer of the same formula rounds in another order.
            same = torch.equal(expected, weights) if framework.exact else torch.allclose(expected, weights, atol=1e-5)
            if not same:
                raise BenchmarkError(
                    f"{framework.title} came to other weights than the plain loop after {count} steps of {work.key}."
                    " It did other work, so its time says nothing. Find out which step differs before measuring it."
                )
            if round_idx >= 0:
                pairs[framework.key].append((one, other))
    return pairs


def measure(
    frameworks: Sequence[Framework], do: str, work: Work, num_steps: int, num_pairs: int
) -> dict[str, Measured]:
    """By key of the row."""
    pairs = pairs_of(frameworks, do, work, num_steps, num_pairs)
    return {key: Measured.of(found, num_steps) for key, found in pairs.items()}


def epoch_ends_ms(frameworks: Sequence[Framework], work: Work, num_pairs: int) -> dict[str, tuple[float, float, float]]:
    """What the end of an epoch and the start of the next add to those of the plain loop: quartiles, in milliseconds.

    Many short epochs minus one long one of as many steps leaves the boundaries; the plain loop's are taken away.
    """
    num_steps = NUM_SHORT_EPOCHS * STEPS_OF_A_SHORT_EPOCH
    short = pairs_of(frameworks, "train", work, num_steps, num_pairs, NUM_SHORT_EPOCHS)
    long = pairs_of(frameworks, "train", work, num_steps, num_pairs)

    def added_s(pairs: Sequence[tuple[Cost, Cost]]) -> list[float]:
        return [other.wall_s - plain.wall_s for plain, other in pairs]

    def of_one_ms(key: str) -> list[float]:
        rounds = zip(added_s(short[key]), added_s(long[key]), strict=True)
        return [(many - one) / (NUM_SHORT_EPOCHS - 1) * 1e3 for many, one in rounds]

    return {key: quartiles(of_one_ms(key)) for key in short}


def say(what: str) -> None:
    """How far it is, where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r{what:<79}", end="", file=sys.stderr, flush=True)


# ---- tables


def training_table(frameworks: Sequence[Framework], work: Work, found: dict[str, Measured]) -> str:
    """Ratios of training."""
    lines = [
        f"| {work.title} | ratio | quartiles | added per step | target | |",
        "| --- | ---: | :---: | ---: | ---: | --- |",
    ]
    for framework in frameworks:
        measured, target = found[framework.key], TARGETS[work.key].get(framework.key)
        judged = "" if target is None else "pass" if measured.ratios[1] <= target else "fail"
        lines.append(
            f"| {framework.title} | {measured.cells()} | {'' if target is None else f'{target:.2f}'} | {judged} |"
        )
    return "\n".join(lines)


def evaluation_table(frameworks: Sequence[Framework], found: dict[tuple[str, str], dict[str, Measured]]) -> str:
    """Ratios of validation and prediction, for each work, with quartiles."""
    head = " | ".join(f"{do}, {work}" for do, work in found)
    lines = [f"| | {head} |", f"| --- |{' ---: |' * len(found)}"]
    for framework in frameworks:
        quarters = [column[framework.key].ratios for column in found.values()]
        cells = " | ".join(f"{middle:.3f} ({low:.2f} to {high:.2f})" for low, middle, high in quarters)
        lines.append(f"| {framework.title} | {cells} |")
    return "\n".join(lines)


def starts_table(
    frameworks: Sequence[Framework],
    ends_ms: dict[str, tuple[float, float, float]],
    starts: dict[str, tuple[Start, Start, Start]],
) -> str:
    """Import, first step, memory of a fresh process, each with its range; and what an epoch's end costs."""
    lines = [
        "| | import, beyond torch | to the first step | again | peak memory beyond plain | end of an epoch |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    plain = starts["plain"][1]
    for framework in frameworks:
        least, start, most = starts[framework.key]
        low, middle, high = ends_ms[framework.key]
        lines.append(
            f"| {framework.title} | {start.import_s:.2f} s ({least.import_s:.2f} to {most.import_s:.2f})"
            f" | {start.first_step_ms:.0f} ms ({least.first_step_ms:.0f} to {most.first_step_ms:.0f})"
            f" | {start.again_ms:.1f} ms ({least.again_ms:.1f} to {most.again_ms:.1f})"
            f" | {start.peak_mib - plain.peak_mib:+.0f} MiB | {middle:+.2f} ms ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(lines)


def faster_peers(columns: dict[str, dict[str, float]]) -> list[str]:
    """Each place where a peer is below the row of ours that does as much."""
    said = []
    for column, ratios in columns.items():
        for key, ratio in ratios.items():
            library, _, setting = key.rpartition(".")
            ours = setting if library else {"accelerate": "fabric"}.get(key)
            if ours in ratios and ratio < ratios[ours]:
                said.append(f"{column}: {key} {ratio:.3f}, ours ({ours}) {ratios[ours]:.3f}")
    return said


# ---- the command


def installed(framework: Framework) -> bool:
    """Whether it can be imported here."""
    return importlib.util.find_spec(framework.module.partition(".")[0]) is not None


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What to measure; wrong names are answered at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=MIN_PAIRS, metavar="N", help=f"pairs per row ({MIN_PAIRS})")
    parser.add_argument("--works", default="", metavar="A,B", help=f"some of {', '.join(work.key for work in WORKS)}")
    parser.add_argument("--only", default="", metavar="A,B", help="only these rows; a wrong name lists them all")
    parser.add_argument("--parts", default="train,evaluate,start", metavar="A,B", help="some of train, evaluate, start")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers into this file")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of one run of train and evaluate, for a trial")
    given = parser.parse_args(arguments)
    wanted_rows = given.only.split(",")
    for name, known in (
        ("works", [work.key for work in WORKS]),
        ("only", [framework.key for framework in FRAMEWORKS]),
        ("parts", ["train", "evaluate", "start"]),
    ):
        wanted = [key for key in getattr(given, name).split(",") if key]
        if unknown := [key for key in wanted if key not in known]:
            parser.error(
                f"--{name} {','.join(unknown)} is not known. Each has one name. Pass some of {', '.join(known)}."
            )
        setattr(given, name, wanted or known)
    for name in ("pairs", "steps"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            parser.error(f"--{name} {getattr(given, name)} measures nothing. It is a number of {name}. Pass 1 or more.")
    missing = [each for each in FRAMEWORKS if each.key in wanted_rows and not installed(each)]
    if missing:
        parser.error(
            f"--only {','.join(each.key for each in missing)} cannot be measured. Not installed is"
            f" {', '.join(dict.fromkeys(each.needs for each in missing))}. Install it, or leave these rows out."
        )
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    given = parse_arguments(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    frameworks = [each for each in FRAMEWORKS if (each.key in given.only or each.key == "plain") and installed(each)]
    works = [work for work in WORKS if work.key in given.works]
    columns: dict[str, dict[str, float]] = {}
    about = (
        f"One CPU thread; median of {given.pairs} pairs with the plain loop. {platform.machine()},"
        f" Python {platform.python_version()}, torch {torch.__version__}; {versions(frameworks)}."
    )
    numbers: dict[str, Any] = {"about": about, "titles": {each.key: each.title for each in frameworks}}
    print(about)
    if "train" in given.parts:
        found = {}
        for work in works:
            steps = given.steps or work.num_steps
            found[work.key] = measure(frameworks, "train", work, steps, given.pairs)
            print(f"\n{training_table(frameworks, work, found[work.key])}", flush=True)
        columns |= {f"train, {key}": medians(column) for key, column in found.items()}
        numbers["works"] = {work.key: work.title for work in works}
        numbers["train"] = {work: plain_numbers(column) for work, column in found.items()}
    if "evaluate" in given.parts:
        rows = [each for each in frameworks if each.key in EVALUATED or each.key.split(".")[-1] in ("off", "fabric")]
        evaluated = {
            (do, work.key): measure(rows, do, work, given.steps or work.num_steps, given.pairs)
            for do in ("validate", "predict")
            for work in works
        }
        print(f"\n{evaluation_table(rows, evaluated)}", flush=True)
        columns |= {f"{do}, {key}": medians(column) for (do, key), column in evaluated.items()}
        numbers["evaluate"] = {", ".join(place): plain_numbers(column) for place, column in evaluated.items()}
    if "start" in given.parts:
        ends = epoch_ends_ms(frameworks, WORKS[0], given.pairs)
        # Each is a process that imports torch: seconds, which vary little.
        starts = measure_starts([framework.key for framework in frameworks], min(given.pairs, MAX_STARTS), say)
        print(f"\n{starts_table(frameworks, ends, starts)}")
        columns |= {"end of an epoch, ms": {key: middle for key, (_, middle, _) in ends.items()}}
        columns |= starts_columns({key: start for key, (_, start, _) in starts.items()})
        numbers["epoch_ends_ms"] = ends
        numbers["starts"] = {key: [asdict(start) for start in range_of] for key, range_of in starts.items()}
    say("")
    numbers["faster_peers"] = faster = faster_peers(columns)
    print("\n" + ("\n".join(["A peer was faster:", *faster]) if faster else "No peer was faster."))
    if given.json is not None:
        given.json.write_text(json.dumps(numbers, indent=1) + "\n")


def plain_numbers(column: dict[str, Measured]) -> dict[str, dict[str, Any]]:
    """As JSON has them."""
    return {key: asdict(measured) for key, measured in column.items()}


def medians(column: dict[str, Measured]) -> dict[str, float]:
    """The ratio of each row."""
    return {key: measured.ratios[1] for key, measured in column.items()}


def starts_columns(starts: dict[str, Start]) -> dict[str, dict[str, float]]:
    """The columns in which a peer could be faster."""
    fields: dict[str, Callable[[Start], float]] = {
        "import, s": lambda start: start.import_s,
        "first step, ms": lambda start: start.first_step_ms,
        "peak memory, MiB": lambda start: start.peak_mib,
    }
    return {name: {key: of(start) for key, start in starts.items()} for name, of in fields.items()}


def versions(frameworks: Sequence[Framework]) -> str:
    """Of the peers."""
    from importlib.metadata import version

    needed = sorted({framework.needs for framework in frameworks if framework.needs})
    return ", ".join(f"{name} {version(name)}" for name in needed) or "no peers"


if __name__ == "__main__":
    main()
