"""Two loops in the same processes that take turns: what else the machine does hits both.

One loop is by hand, and can be told to make so many steps (`Runner`). Another, which cannot be told, is held where it
asks its data set for the first sample of a block: there the loop by hand makes a block of its own (`in_turns`).
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from step_overhead import Cost, Pair
from torch import Tensor, nn
from torch.utils.data import Dataset

NUM_WARM_UP_BLOCKS = 2


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


class Turns(Dataset[Any]):
    """The samples of one loop, which takes turns with another: between two blocks of its own it waits for one of that.

    Args:
        dataset: The samples.
        block: How many of them a block of this process asks for.
        take_turn: Called before the first of each.
    """

    def __init__(self, dataset: Dataset[Any], block: int, take_turn: Callable[[], None]) -> None:
        self._dataset, self._block, self._take_turn = dataset, block, take_turn
        self._asked = 0

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]  # it has a length

    def __getitem__(self, index: int) -> Any:
        if self._asked % self._block == 0:
            self._take_turn()
        self._asked += 1
        return self._dataset[index]


def in_turns(reference: Runner, num_steps: int, subject: Callable[[Callable[[], None]], None]) -> list[Pair]:
    """What blocks of so many steps of both cost.

    Args:
        reference: The loop by hand; it has made one step.
        num_steps: Of a block.
        subject: Runs the other loop over a `Turns`, whose `take_turn` it is given.
    """
    plain: list[Cost] = []
    other: list[Cost] = []
    began: list[Cost] = []

    def take_turn() -> None:
        ended = _now()
        if began:
            other.append(Cost(ended.wall_s - began[-1].wall_s, ended.cpu_s - began[-1].cpu_s))
        if len(plain) == 1:  # both have run
            gc.collect()
            gc.freeze()
        plain.append(reference.block(num_steps))
        dist.barrier()
        began.append(_now())

    subject(take_turn)
    gc.unfreeze()
    reference.block(num_steps)  # as far as there are samples
    # Each block of the subject stands between two by hand. The first ones warm up, and the last by hand is cut short.
    return [_pair(*three) for three in list(zip(plain, other, plain[1:], strict=False))[NUM_WARM_UP_BLOCKS:-1]]


def _now() -> Cost:
    """Both clocks of this process."""
    return Cost(time.perf_counter(), time.process_time())


def _pair(before: Cost, between: Cost, after: Cost) -> Pair:
    """What the loop by hand costs around a block of the other one, and that."""
    wall_s, cpu_s = (statistics.mean((getattr(before, name), getattr(after, name))) for name in ("wall_s", "cpu_s"))
    return Cost(wall_s, cpu_s), between
