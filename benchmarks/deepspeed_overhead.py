"""What a training step on an engine of DeepSpeed costs through Fabric, beside the loop of the bare engine.

A small MLP, ZeRO 2 in 32 bit, batches of 8 per process, two processes that talk by gloo, one CPU thread each. The loops
are under way in the same two processes and take turns, a few steps each, so that what else the machine does hits both;
the median of the ratios of neighbours is what counts.

The target is judged by the CPU time of a process. What a step waits for the other process and for the machine is much
larger than what we add, and so is its noise; what we add is computed here, and all of it is CPU time. The wall time is
shown beside it. Needs the package deepspeed.

    python benchmarks/deepspeed_overhead.py
    python benchmarks/deepspeed_overhead.py --pairs 200
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fulmen.fabric import Fabric
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.fabric.strategies.deepspeed.strategy import DeepSpeedStrategy
from fulmen.fabric.wrappers import unwrap

NUM_PROCESSES = 2
NUM_FEATURES, NUM_HIDDEN, BATCH_SIZE = 64, 128, 8
NUM_STEPS = 4  # of a block
NUM_WARM_UP_BLOCKS = 5
TARGET = 1.05

Block = Callable[[], None]


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(NUM_FEATURES, NUM_HIDDEN), nn.Tanh(), nn.Linear(NUM_HIDDEN, 1))


def make_batches() -> list[Tensor]:
    return [torch.randn(BATCH_SIZE, NUM_FEATURES) for _ in range(NUM_STEPS)]


def set_up(fabric: Fabric) -> tuple[Any, Any]:
    module = make_module()
    model, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=1e-3))
    return model, optimizer


def bare_block(fabric: Fabric, batches: list[Tensor]) -> Block:
    """The loop that DeepSpeed's own documents show."""
    engine = unwrap(set_up(fabric)[0])

    def run() -> None:
        for batch in batches:
            loss = engine(batch).square().mean()
            engine.backward(loss)
            engine.step()

    return run


def our_block(fabric: Fabric, batches: list[Tensor]) -> Block:
    """The same loop with Fabric."""
    model, optimizer = set_up(fabric)

    def run() -> None:
        for batch in batches:
            loss = model(batch).square().mean()
            fabric.backward(loss, model=model)
            optimizer.step()

    return run


def seconds(block: Block, fabric: Fabric) -> tuple[float, float]:
    """CPU time of this process, and wall time."""
    fabric.barrier()
    begin, begin_wall = time.process_time(), time.perf_counter()
    block()
    return time.process_time() - begin, time.perf_counter() - begin_wall


def measure(fabric: Fabric, num_pairs: int, report: Path) -> None:
    """What each process does; the first one writes the ratios of neighbours."""
    torch.set_num_threads(1)
    batches = make_batches()
    bare, ours, again = bare_block(fabric, batches), our_block(fabric, batches), bare_block(fabric, batches)
    for _ in range(NUM_WARM_UP_BLOCKS):
        for block in (bare, ours, again):
            block()
    order = random.Random(0)
    ratios: dict[str, list[float]] = {name: [] for name in ("itself", "ours", "itself, wall", "ours, wall")}
    times: list[float] = []
    for _ in range(num_pairs):
        for name, other in (("ours", ours), ("itself", again)):
            first = order.random() < 0.5  # either may be the one that finds warm caches
            one, two = (bare, other) if first else (other, bare)
            spent = seconds(one, fabric), seconds(two, fabric)
            base, compared = spent if first else spent[::-1]
            ratios[name].append(compared[0] / base[0])
            ratios[f"{name}, wall"].append(compared[1] / base[1])
            times.append(base[1])
    if fabric.is_global_zero:
        report.write_text(json.dumps({"ratios": ratios, "step_us": statistics.median(times) / NUM_STEPS * 1e6}))


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median, and the 95 % interval of it, by order statistics."""
    ordered = sorted(ratios)
    half = 0.98 * math.sqrt(len(ordered))
    middle = len(ordered) / 2
    low, high = ordered[max(0, int(middle - half))], ordered[min(len(ordered) - 1, int(middle + half))]
    return statistics.median(ordered), low, high


def main() -> int:
    """Measure, print a table; 1 if the target is certainly missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=120, help="pairs of blocks (default: %(default)s)")
    options = parser.parse_args()
    if options.pairs < 1:
        parser.error(f"--pairs {options.pairs} measures nothing. It counts pairs of blocks. Pass 1 or more.")
    fabric = Fabric(accelerator="cpu", devices=NUM_PROCESSES, strategy=DeepSpeedStrategy(stage=2))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        processes = SpawnLauncher(LightningEnvironment(), NUM_PROCESSES, start_method="fork")
        processes.launch(fabric.launch, measure, options.pairs, report)
        found = json.loads(report.read_text())
    print(f"A step of the bare engine: {found['step_us']:.0f} µs, {NUM_PROCESSES} processes, ZeRO 2.\n")
    print("| | ratio | 95 % within | target | |\n| --- | ---: | :---: | ---: | --- |")
    worst = 1.0
    for name, label in (
        ("itself", "the bare engine again, CPU time"),
        ("ours", "Fabric, CPU time"),
        ("itself, wall", "the bare engine again, wall time"),
        ("ours, wall", "Fabric, wall time"),
    ):
        median, low, high = interval(found["ratios"][name])
        is_ours = name == "ours"
        target = f"{TARGET:.2f}" if is_ours else ""
        judged = "" if not is_ours else "pass" if high <= TARGET else "fail" if low > TARGET else "unclear"
        print(f"| {label} | {median:.3f} | {low:.3f} to {high:.3f} | {target} | {judged} |")
        worst = low if is_ours else worst
    return int(worst > TARGET)


if __name__ == "__main__":
    sys.exit(main())
