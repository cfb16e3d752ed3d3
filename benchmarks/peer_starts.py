"""How a framework starts: each in fresh processes of its own, so that nothing is imported or warm.

python benchmarks/peer_starts.py off     # one start: a line of JSON
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

NUM_STEPS = 50


@dataclass(frozen=True, slots=True)
class Start:
    """What one start took."""

    import_s: float  # beyond torch
    first_step_ms: float  # from the call that trains to the model's first forward, the first time in the process
    again_ms: float  # the same, the second time
    peak_mib: float  # of resident memory, after both


def measure_starts(
    keys: Sequence[str], num_starts: int, say: Callable[[str], None]
) -> dict[str, tuple[Start, Start, Start]]:
    """By key of the row the least, the median and the most of each; rounds go over all rows."""
    found: dict[str, list[Start]] = {key: [] for key in keys}
    for round_idx in range(num_starts):
        for key in keys:
            say(f"start, round {round_idx + 1} of {num_starts}: {key}")
            done = subprocess.run([sys.executable, __file__, key], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"The start of {key} failed with exit code {done.returncode}.\n{done.stderr}")
            found[key].append(Start(**json.loads(done.stdout.splitlines()[-1])))

    def of_all(starts: Sequence[Start], pick: Callable[[list[float]], float]) -> Start:
        return Start(*(pick([getattr(start, each.name) for start in starts]) for each in fields(Start)))

    return {
        key: (of_all(starts, min), of_all(starts, statistics.median), of_all(starts, max))
        for key, starts in found.items()
    }


def one_start(key: str) -> Start:
    """In this process, which has imported neither torch nor the framework."""
    import importlib
    import os
    import resource

    import torch

    os.environ["KERAS_BACKEND"] = "torch"
    from peer_rows import FRAMEWORKS, quiet
    from peer_work import WORKS, Job, features_of
    from step_overhead import Stopwatch

    class NoWatch(Stopwatch):
        """Collects no garbage at the start, which would be most of what is timed here."""

        def start(self) -> None:
            pass

        def stop(self) -> None:
            pass

    torch.set_num_threads(1)
    framework = next(framework for framework in FRAMEWORKS if framework.key == key)
    began = time.perf_counter()
    module = importlib.import_module(framework.module)
    for name in ("Trainer", "LightningModule", "Fabric", "Accelerator", "Engine", "NeuralNet", "Sequential"):
        getattr(module, name, None)  # faces may be lazy: what a program of this framework begins with
    import_s = time.perf_counter() - began

    def first_step_ms() -> float:
        job = Job(WORKS[1], NUM_STEPS, paired=framework.paired)
        job.watch = NoWatch()
        stamps: list[float] = []
        hook = job.model.register_forward_pre_hook(lambda module, arguments: stamps.append(time.perf_counter()))
        features_of(next(iter(job.loader())))  # the data are there, and torch has made a batch before
        called = time.perf_counter()
        framework.train(job)
        hook.remove()
        return (stamps[0] - called) * 1e3

    # The first optimizer of a process makes torch import its compiler: seconds, whoever makes it.
    FRAMEWORKS[0].train(Job(WORKS[1], 2))
    with quiet():
        first, again = first_step_ms(), first_step_ms()
    units_of_a_mib = 2**20 if sys.platform == "darwin" else 2**10
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_of_a_mib
    return Start(import_s, first, again, peak_mib)


def main(arguments: Sequence[str]) -> None:
    """Command line: the key of one row."""
    found: dict[str, Any] = asdict(one_start(*arguments))
    print(f"\n{json.dumps(found)}")


if __name__ == "__main__":
    main(sys.argv[1:])
