"""Does every mesh of 2, 4 and 8 processes train as one process does?

A small causal attention in float64, ten optimizer steps, on every mesh of replicas, split parameters, split tensors and
contexts, with plans that split it in several ways, plainly, and accumulated and clipped. For each mesh it prints the
largest difference of any weight on any process from the weights of one process. The processes are real, and talk by
gloo.

    python benchmarks/every_mesh.py
    python benchmarks/every_mesh.py --processes 2,4 --plans ring
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

from fulmen.fabric.testing import assert_parity, meshes

NUM_STEPS, NUM_SAMPLES, NUM_TOKENS, VOCABULARY = 10, 8, 16, 16
WIDTH, HEAD_WIDTH = 16, 2  # eight heads, for eight processes
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


class Attention(nn.Module):
    """A causal attention and two layers, in parts that are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTC = self.embed(tokens_BT)
        y_BTC = self.norm(x_BTC)
        heads = [one(y_BTC).unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for one in (self.q, self.k, self.v)]
        mixed = nn.functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x_BTC = x_BTC + self.o(mixed.transpose(1, 2).flatten(2))
        found: Tensor = self.head(x_BTC + self.down(torch.tanh(self.up(x_BTC))))
        return found


def next_token(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss; the tokens that follow come with the batch, for a process may see a part of the sequence."""
    return nn.functional.cross_entropy(model(batch["here"]).flatten(0, 1), batch["next"].flatten())


def make_batches(count: int) -> list[dict[str, Tensor]]:
    """Tokens, and those that follow."""
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randint(VOCABULARY, (NUM_SAMPLES, NUM_TOKENS + 1), generator=generator) for _ in range(count)]
    return [{"here": one[:, :-1].contiguous(), "next": one[:, 1:].contiguous()} for one in drawn]


def largest_differences(num_processes: int, plan: str, how: str) -> dict[str, float]:
    """For every mesh of so many processes."""
    options = HOW[how]
    batches = make_batches(NUM_STEPS * options.get("accumulate", 1))
    every = meshes(num_processes, PLANS[plan])
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


def chosen(parser: argparse.ArgumentParser, option: str, asked: str, known: Iterable[str]) -> list[str]:
    """The names that the user has given, or all."""
    names = list(known)
    found = [name for name in asked.split(",") if name]
    if unknown := [name for name in found if name not in names]:
        parser.error(f"{option} {','.join(unknown)} is not known. Each has one name. Pass some of {', '.join(names)}.")
    return found or names


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print a table; 1 if any mesh came to other weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="2,4,8", metavar="N,N", help="how many (default: %(default)s)")
    for option, names in (("--plans", PLANS), ("--how", HOW)):
        parser.add_argument(option, default="", metavar="A,B", help=f"some of {', '.join(names)} (default: all)")
    given = parser.parse_args(arguments)
    plans, ways = chosen(parser, "--plans", given.plans, PLANS), chosen(parser, "--how", given.how, HOW)
    sizes = given.processes.split(",")
    if not all(size in ("2", "4", "8") for size in sizes):
        parser.error(f"--processes {given.processes} does not divide what is split. Pass some of 2, 4, 8.")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch warns of in-place operations that nobody makes
    print(f"| processes | plan | mesh | {' | '.join(ways)} |", f"| ---: | --- | --- |{' ---: |' * len(ways)}", sep="\n")
    worst, count, began = 0.0, 0, time.perf_counter()
    for size in map(int, sizes):
        for plan in plans:
            found = {how: largest_differences(size, plan, how) for how in ways}
            for mesh in found[ways[0]]:
                values = [found[how][mesh] for how in ways]
                worst, count = max(worst, *values), count + len(values)
                print(f"| {size} | {plan} | {mesh} | {' | '.join(f'{one:.1e}' for one in values)} |", flush=True)
    print(
        f"\n{count} runs in {time.perf_counter() - began:.0f} s; the largest difference after {NUM_STEPS} steps is"
        f" {worst:.1e}, and {LIMIT:.0e} is allowed: {'pass' if worst < LIMIT else 'fail'}."
    )
    return 0 if worst < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
