"""Does every mesh of 2, 4 and 8 processes train as one process does?

A small causal attention in float64, ten optimizer steps, on every mesh of replicas, split parameters, split tensors and
contexts, with plans that split it in several ways, plainly, and accumulated and clipped; and eight of these layers on
every such mesh with stages, in every schedule. For each mesh it prints the largest difference of any weight on any
process from the weights of one process. The processes are real, and talk by gloo.

    python benchmarks/every_mesh.py
    python benchmarks/every_mesh.py --processes 2,4 --plans ring --schedules ""
    python benchmarks/every_mesh.py --plans "" --schedules 1F1B,DualPipeV
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed.fsdp
import torch.distributed.tensor.parallel  # here, once, and not in each process
from torch import Tensor, nn

from fulmen.fabric.strategies import Pipeline
from fulmen.fabric.testing import assert_parity, meshes

NUM_STEPS, NUM_SAMPLES, NUM_TOKENS, VOCABULARY = 10, 8, 16, 16
WIDTH, HEAD_WIDTH = 16, 2  # eight heads, for eight processes
NUM_LAYERS = 8  # in stages
LIMIT = 1e-9

TENSORS = {"embed": "row", "[qkv]": "column", "o": "row", "up": "column", "down": "row", "head": "column > whole"}
SEQUENCES = {
    "embed": "row > sequence",
    "norm": "sequence",
    "[qkv]": "sequence > column",
    "o": "row > sequence",
    "up": "sequence > column",
    "down": "row > sequence",
    "head": "sequence > column > whole",
}
UNITS = {"[ud]*": "shard", "[qkvo]": "shard"}
PLANS = {
    "tensors": {**TENSORS, **UNITS},
    "sequences": {**SEQUENCES, **UNITS},
    "ring": {**TENSORS, **UNITS, "": "ring"},
    "ring of sequences": {**SEQUENCES, **UNITS, "": "ring"},
    "ulysses": {**SEQUENCES, **UNITS, "": "ulysses"},
}
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
# The last two accumulate two batches for each step; the last has AdamW.
HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "norm clipped": {"accumulate": 2, "max_norm": 0.1},
    "values clipped": {"accumulate": 2, "clip_val": 0.01, "optimizer": partial(torch.optim.AdamW, lr=0.01)},
}


# In stages, the stream is whole at each cut, and attention is named inside of it.
STAGED = {
    "tensors": {**TENSORS, **UNITS},
    "sequences": {**SEQUENCES, **UNITS, "enter": "replicate > sequence", "leave": "sequence > replicate > whole"},
    "ring": {**TENSORS, **UNITS, "": "ring"},
    "ulysses": {**TENSORS, **UNITS, "": "ulysses"},
}
STAGES_OF_A_PROCESS = {
    "1F1B": 1,
    "GPipe": 1,
    "LoopedBFS": 2,
    "Interleaved1F1B": 2,
    "InterleavedZeroBubble": 2,
    "ZBVZeroBubble": 2,
    "DualPipeV": 2,
}


class Layer(nn.Module):
    """A causal attention and two layers, in parts that are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Identity(), nn.Identity()
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTC = self.enter(x_BTC)
        y_BTC = self.norm(x_BTC)
        heads = [one(y_BTC).unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for one in (self.q, self.k, self.v)]
        mixed = nn.functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x_BTC = x_BTC + self.o(mixed.transpose(1, 2).flatten(2))
        found: Tensor = self.leave(x_BTC + self.down(torch.tanh(self.up(x_BTC))))
        return found


class Attention(nn.Module):
    """Layers between tokens and the chances of the next ones."""

    def __init__(self, num_layers: int = 1) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(num_layers)))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        found: Tensor = self.head(self.layers(self.embed(tokens_BT)))
        return found


def named(plan: dict[str, str], *, in_stages: bool = False) -> dict[str, str]:
    """A plan for a layer, for the module with all of them."""
    if not in_stages:
        return {name if name in ("", "embed", "head") else f"layers.*.{name}": style for name, style in plan.items()}
    ends = {"embed": "row", "head": TENSORS["head"]}
    inside = {f"layers.*.{name}".rstrip("."): style for name, style in plan.items() if name not in ends}
    return {**{name: style for name, style in ends.items() if name in plan}, **inside}


def next_token(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss; the tokens that follow come with the batch, for a process may see a part of the sequence."""
    return nn.functional.cross_entropy(model(batch["here"]).flatten(0, 1), batch["next"].flatten())


def make_batches(count: int, num_samples: int = NUM_SAMPLES) -> list[dict[str, Tensor]]:
    """Tokens, and those that follow."""
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randint(VOCABULARY, (num_samples, NUM_TOKENS + 1), generator=generator) for _ in range(count)]
    return [{"here": one[:, :-1].contiguous(), "next": one[:, 1:].contiguous()} for one in drawn]


def largest_differences(num_processes: int, plan: str, how: str) -> dict[str, float]:
    """For every mesh of so many processes."""
    options = HOW[how]
    batches = make_batches(NUM_STEPS * options.get("accumulate", 1))
    every = meshes(num_processes, named(PLANS[plan]))
    return assert_parity(
        Attention,
        batches,
        next_token,
        strategy=every,
        devices=num_processes,
        tolerance=float("inf"),  # what is too much is said below, with all the others
        each_step=False,
        **{"optimizer": SGD, **options},
    )


def pipelines(num_processes: int, schedule: str) -> list[Pipeline]:
    """Stages for 2, 4, 8 processes along the pipeline axis, as far as there are layers for them."""
    found = []
    for size in (2, 4, 8):
        num_stages = size * STAGES_OF_A_PROCESS[schedule]
        if size <= num_processes and num_stages <= NUM_LAYERS:
            places = range(NUM_LAYERS // num_stages, NUM_LAYERS, NUM_LAYERS // num_stages)
            found.append(Pipeline([f"layers.{place}" for place in places], num_stages, schedule))  # type: ignore[arg-type]
    return found


def largest_in_stages(pipeline: Pipeline, num_processes: int, plan: str) -> dict[str, float]:
    """For every mesh of so many processes with these stages; accumulated, clipped and with momentum."""
    return assert_parity(
        partial(Attention, NUM_LAYERS),
        make_batches(2 * NUM_STEPS, 2 * NUM_SAMPLES),
        next_token,
        strategy=meshes(num_processes, named(STAGED[plan], in_stages=True), pipeline=pipeline),
        devices=num_processes,
        tolerance=float("inf"),
        each_step=False,
        optimizer=SGD,
        **HOW["norm clipped"],
    )


def chosen(parser: argparse.ArgumentParser, option: str, asked: str, known: Iterable[str]) -> list[str]:
    """The names that the user has given; of "all", all."""
    names = list(known)
    if asked == "all":
        return names
    found = [name for name in asked.split(",") if name]
    if unknown := [name for name in found if name not in names]:
        parser.error(f"{option} {','.join(unknown)} is not known. Each has one name. Pass some of {', '.join(names)}.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print a table; 1 if any mesh came to other weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="2,4,8", metavar="N,N", help="how many (default: %(default)s)")
    for option, names in (("--plans", PLANS), ("--how", HOW), ("--schedules", STAGES_OF_A_PROCESS)):
        parser.add_argument(option, default="all", metavar="A,B", help=f"some of {', '.join(names)} (default: all)")
    given = parser.parse_args(arguments)
    plans, ways = chosen(parser, "--plans", given.plans, PLANS), chosen(parser, "--how", given.how, HOW)
    schedules = chosen(parser, "--schedules", given.schedules, STAGES_OF_A_PROCESS)
    sizes = given.processes.split(",")
    if not all(size in ("2", "4", "8") for size in sizes):
        parser.error(f"--processes {given.processes} does not divide what is split. Pass some of 2, 4, 8.")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch warns of in-place operations that nobody makes
    worst, count, began = 0.0, 0, time.perf_counter()
    if plans and ways:
        print(
            f"| processes | plan | mesh | {' | '.join(ways)} |",
            f"| ---: | --- | --- |{' ---: |' * len(ways)}",
            sep="\n",
        )
    for size in map(int, sizes) if ways else ():
        for plan in plans:
            found = {how: largest_differences(size, plan, how) for how in ways}
            for mesh in found[ways[0]]:
                values = [found[how][mesh] for how in ways]
                worst, count = max(worst, *values), count + len(values)
                print(f"| {size} | {plan} | {mesh} | {' | '.join(f'{one:.1e}' for one in values)} |", flush=True)
    if schedules:
        print(
            "\n| processes | schedule | stages | plan | mesh | norm clipped |",
            "| ---: | --- | ---: | --- | --- | ---: |",
            sep="\n",
        )
    for size in map(int, sizes):
        for schedule in schedules:
            for pipeline in pipelines(size, schedule):
                # Where all processes are along the pipeline, no plan has anything to split.
                for plan in STAGED if pipeline.size("auto") < size else ("tensors",):
                    for mesh, value in largest_in_stages(pipeline, size, plan).items():
                        worst, count = max(worst, value), count + 1
                        start = f"| {size} | {schedule} | {pipeline.num_stages} | {plan} "
                        print(f"{start}| {mesh} | {value:.1e} |", flush=True)
    print(
        f"\n{count} runs in {time.perf_counter() - began:.0f} s; the largest difference after {NUM_STEPS} steps is"
        f" {worst:.1e}, and {LIMIT:.0e} is allowed: {'pass' if worst < LIMIT else 'fail'}."
    )
    return 0 if worst < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
