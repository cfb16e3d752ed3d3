"""What a checkpoint costs beside `torch.save` and `torch.load`: saving, loading, waiting, memory.

Ours and the plain call run one right after the other, each first in every second pair; the row shows the median of the
ratios. Loads run in fresh processes, as after a start; the files are in the system's cache. README.md beside this file
says how to read the table.

    python benchmarks/checkpoint_io.py
    python benchmarks/checkpoint_io.py --pairs 21 --megabytes 500 --only save,load --folder /mnt/disk
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint  # (before the processes are forked: it is part of no measurement)
from step_overhead import Cost, quartiles
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from fulmen.fabric.checkpoint_io import AsyncCheckpointIO, TorchCheckpointIO, load_sharded, save_sharded
from fulmen.trainer import Callback, Trainer
from fulmen.trainer.demos import BoringModel

NUM_TENSORS = 25
ROWS = ("save", "load", "stall", "first-stall", "trainer-stall", "sharded")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: ratios of ours to the plain call, one for each pair."""

    title: str
    target: float
    wall: list[float]
    cpu: list[float]
    plain_s: float


def timed(work: Callable[[], Any]) -> Cost:
    """What `work` costs."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def in_fresh_process(work: Callable[[], Any]) -> Cost:
    """What `work` costs in a process whose memory nobody has used yet."""
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        torch.set_num_threads(1)
        theirs.send(timed(work))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    cost: Cost = ours.recv()
    process.join()
    return cost


def compare(title: str, target: float, pairs: int, ours: Callable[[], Cost], plain: Callable[[], Cost]) -> Row:
    """Run both in turns."""
    found: list[tuple[Cost, Cost]] = []
    for number in range(pairs):
        first, second = (ours, plain) if number % 2 else (plain, ours)
        costs = first(), second()
        found.append(costs if number % 2 else (costs[1], costs[0]))
    return Row(
        title,
        target,
        [mine.wall_s / theirs.wall_s for mine, theirs in found],
        [mine.cpu_s / theirs.cpu_s for mine, theirs in found],
        statistics.median(theirs.wall_s for _, theirs in found),
    )


def save_plainly(state: dict[str, Any], path: Path) -> None:
    """`torch.save`, and until the disk has it."""
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def measure(state: dict[str, Any], folder: Path, pairs: int, only: set[str]) -> list[Row]:
    """The rows about a single file."""
    io, ours, plain = TorchCheckpointIO(), folder / "ours.ckpt", folder / "plain.pt"
    io.save_checkpoint(state, ours)
    save_plainly(state, plain)
    rows = []
    if "save" in only:
        title = "save, beside `torch.save` and fsync"
        save = lambda: timed(lambda: io.save_checkpoint(state, ours))  # noqa: E731
        rows.append(compare(title, 1.15, pairs, save, lambda: timed(lambda: save_plainly(state, plain))))
    if "load" in only:
        title = "load with every byte verified, beside `torch.load`"
        load = lambda: in_fresh_process(lambda: io.load_checkpoint(ours))  # noqa: E731
        load_plainly = lambda: in_fresh_process(lambda: torch.load(plain, weights_only=True))  # noqa: E731
        rows.append(compare(title, 1.3, pairs, load, load_plainly))
    save = lambda: timed(lambda: io.save_checkpoint(state, ours))  # noqa: E731
    if "stall" in only:
        background = AsyncCheckpointIO()
        background.save_checkpoint(state, ours)

        def stall() -> Cost:
            background.wait()
            cost = timed(lambda: background.save_checkpoint(state, ours))
            background.wait()
            return cost

        rows.append(compare("stall of a save in the background, beside our save", 0.25, pairs, stall, save))
        background.teardown()
    if "first-stall" in only:

        def first_stall() -> Cost:
            background = AsyncCheckpointIO()
            cost = timed(lambda: background.save_checkpoint(state, ours))
            background.teardown()
            return cost

        rows.append(compare("the same, of the first save of a run", 0.25, pairs, first_stall, save))
    if "trainer-stall" in only:
        rows.append(stall_of_trainer(state, folder, pairs))
    return rows


class Net(BoringModel):
    """Holds the state."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__()
        for name, tensor in state.items():
            self.register_buffer(name.replace(".", "_"), tensor)


class Stalls(Callback):
    """After each batch, saves at once and in the background, in turns; nothing is under way when one begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ios: dict[str, Any] = {"at once": TorchCheckpointIO(), "background": AsyncCheckpointIO()}
        self.found: dict[str, list[Cost]] = {name: [] for name in self.ios}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """One pair."""
        for name in sorted(self.ios, reverse=bool(trainer.global_step % 2)):
            trainer.strategy.checkpoint_io = self.ios[name]
            self.found[name].append(timed(lambda: trainer.save_checkpoint(self.path)))
            if name == "background":
                self.ios[name].wait()


def stall_of_trainer(state: dict[str, Any], folder: Path, pairs: int) -> Row:
    """The row about `Trainer.save_checkpoint` in a fit."""
    stalls = Stalls(folder / "trainer.ckpt")
    off: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    # The first pair is not counted: it takes memory that the later ones have.
    steps: dict[str, Any] = {
        "max_steps": pairs + 1,
        "limit_val_batches": 0,
        "callbacks": [stalls],
        "default_root_dir": folder,
    }
    Trainer(accelerator="cpu", **off, **steps).fit(Net(state))
    stalls.ios["background"].teardown()
    pairs_found = list(zip(stalls.found["background"], stalls.found["at once"], strict=True))[1:]
    return Row(
        "stall of `Trainer.save_checkpoint` in the background, beside the same at once",
        0.25,
        [mine.wall_s / theirs.wall_s for mine, theirs in pairs_found],
        [mine.cpu_s / theirs.cpu_s for mine, theirs in pairs_found],
        statistics.median(theirs.wall_s for _, theirs in pairs_found),
    )


def peak_of_sharded_load(rank: int, folder: Path, megabytes: int, answers: Any) -> None:
    """Runs in each of two processes: peak memory of a load, beside the shard."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def split(name: str, rows: int, value: float) -> dict[str, Any]:
        return {name: DTensor.from_local(torch.full((rows, 1000), value), mesh, [Shard(0)], run_check=False)}

    rows = megabytes * 250 // 2
    save_sharded(folder / "sharded", {**split("large", rows, 1.0), **split("small", 1, 1.0)})
    load_sharded(folder / "sharded", split("small", 1, 0.0))  # the libraries that this needs are in memory then
    before = resident("VmRSS")
    target = split("large", rows, 0.0)
    Path("/proc/self/clear_refs").write_text("5")
    load_sharded(folder / "sharded", target)
    peak = resident("VmHWM") - before
    answers.send(peak / target["large"].to_local().nbytes)
    dist.destroy_process_group()


def resident(name: str) -> int:
    """A line of what Linux tells about this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def peaks(folder: Path, megabytes: int, pairs: int) -> Row:
    """The row about memory."""
    found: list[float] = []
    for number in range(pairs):
        place = folder / f"peaks{number}"
        place.mkdir()
        ours, theirs = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        arguments = [(rank, place, megabytes, theirs) for rank in range(2)]
        processes = [context.Process(target=peak_of_sharded_load, args=given) for given in arguments]
        for process in processes:
            process.start()
        found += [ours.recv() for _ in processes]
        for process in processes:
            process.join()
    return Row("peak memory of a sharded load, beside the shard (2 processes)", 1.2, found, [], 0.0)


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| what | wall, ratio | quartiles | CPU, ratio | plain call | target | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, middle, high = quartiles(row.wall)
        cpu = f"{statistics.median(row.cpu):.2f}" if row.cpu else ""
        plain = f"{row.plain_s:.2f} s" if row.plain_s else ""
        answer = "pass" if middle <= row.target else "fail"
        lines.append(
            f"| {row.title} | {middle:.2f} | {low:.2f} to {high:.2f} | {cpu} | {plain} | {row.target:.2f} | {answer} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="how often each is run (default: 5)")
    parser.add_argument("--megabytes", type=int, default=500, help="size of the checkpoint (default: 500)")
    parser.add_argument("--only", default=",".join(ROWS), help=f"rows, of {', '.join(ROWS)}")
    parser.add_argument("--folder", default=None, help="where to write (default: the system's folder for such)")
    given = parser.parse_args()
    only = set(given.only.split(","))
    if given.pairs < 1 or given.megabytes < 1:
        parser.error(f"--pairs {given.pairs} --megabytes {given.megabytes}: both must be at least 1")
    if only - set(ROWS):
        parser.error(f"--only {given.only}: choose of {', '.join(ROWS)}")
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        if "sharded" in only and Path("/proc/self/clear_refs").exists():
            rows.append(peaks(Path(folder), given.megabytes, given.pairs))
        if only - {"sharded"}:
            size = given.megabytes * 250_000 // NUM_TENSORS
            state = {f"layer{number}.weight": torch.randn(size) for number in range(NUM_TENSORS)}
            rows = measure(state, Path(folder), given.pairs, only) + rows
    print(f"{given.megabytes} MB in {NUM_TENSORS} tensors, {given.pairs} pairs, {os.cpu_count()} cores")
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}\n")
    print(table(rows))


if __name__ == "__main__":
    main()
