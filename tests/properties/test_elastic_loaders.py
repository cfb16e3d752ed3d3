"""A run saved by N processes and gone on with by M sees, of each loader, each sample that is left exactly once.

Whatever the loaders, their lengths and batch sizes, and however they are combined; but for what fills up a last round,
in which all processes have to take the same number of steps. And everybody knows which batch is the last.
"""

import copy
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, WeightedRandomSampler

from fulmen.trainer.data import CombinedLoader
from fulmen.trainer.data.fetchers import Fetcher
from fulmen.trainer.data.prepare_loaders import prepare
from fulmen.trainer.stages import Stage
from tests.support.resume_data import ByEpoch, OwnBatches, OwnOrder

pytestmark = pytest.mark.filterwarnings("ignore")


class SizedBatches(BatchSampler):
    """An own batch sampler that knows its length: whole batches are dealt out."""


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(9)


def weighted(n: int, generator: torch.Generator | None = None) -> WeightedRandomSampler:
    """Each sample once, the heavier ones rather early."""
    return WeightedRandomSampler([1.0 + index for index in range(n)], n, replacement=False, generator=generator)


LOADERS: dict[str, Any] = {
    "in order": lambda n, size: DataLoader(range(n), size),  # type: ignore[arg-type]
    "generator": lambda n, size: DataLoader(range(n), size, shuffle=True, generator=generator()),  # type: ignore[arg-type]
    "weighted": lambda n, size: DataLoader(range(n), size, sampler=weighted(n)),  # type: ignore[arg-type]
    "weighted, generator": lambda n, size: DataLoader(
        range(n),  # type: ignore[arg-type]
        size,
        sampler=weighted(n, generator()),
    ),
    "shuffle": lambda n, size: DataLoader(range(n), size, shuffle=True),  # type: ignore[arg-type]
    "own sampler": lambda n, size: DataLoader(range(n), size, sampler=OwnOrder(n)),  # type: ignore[arg-type]
    "told its epoch": lambda n, size: DataLoader(range(n), size, sampler=ByEpoch(n)),  # type: ignore[arg-type]
    "not batched": lambda n, size: DataLoader(range(n), None),  # type: ignore[arg-type]
    "own batches": lambda n, size: DataLoader(range(n), batch_sampler=OwnBatches(n)),  # type: ignore[arg-type]
    "own batches of known number": lambda n, size: DataLoader(
        range(n),  # type: ignore[arg-type]
        batch_sampler=SizedBatches(SequentialSampler(range(n)), size, False),
    ),
}
UNITS = {"own batches": 3, "own batches of known number": 4}  # at most so many samples come with one that fills up
Loaders = list[tuple[str, int, int]]


def ready(loaders: Loaders, together: str, rank: int, num_processes: int) -> Any:
    torch.manual_seed(2)
    made = {str(place): {**LOADERS, **WITH_WORKERS}[kind](n, size) for place, (kind, n, size) in enumerate(loaders)}
    strategy: Any = SimpleNamespace(
        distributed_sampler_kwargs={"rank": rank, "num_replicas": num_processes},
        process_dataloader=lambda view: view,
        global_rank=rank,
    )
    raw = made if together == "dict" else CombinedLoader(made, together)  # type: ignore[arg-type]
    prepared = prepare(raw, stage=Stage.TRAIN, strategy=strategy, seed=3)
    prepared.set_epoch(0)
    return prepared


def read(fetcher: Fetcher, stop: float, visits: list[Counter[int]]) -> tuple[int, bool]:
    """Up to `stop` items; how many there have been, and did it know the last one?"""
    iter(fetcher)
    knew = True
    while fetcher.count < stop:
        batches = next(fetcher, None)
        if batches is None:
            return fetcher.count, knew
        for place, batch in batches.items():
            visits[int(place)].update([] if batch is None else torch.as_tensor(batch).reshape(-1).tolist())
        knew = fetcher.is_last
    return fetcher.count, True


WORKERS = {"num_workers": 2}
KEPT = {**WORKERS, "persistent_workers": True}
WITH_WORKERS: dict[str, Any] = {
    "weighted, workers": lambda n, size: DataLoader(range(n), size, sampler=weighted(n), **WORKERS),  # type: ignore[arg-type]
    "own batches, workers": lambda n, size: DataLoader(range(n), batch_sampler=OwnBatches(n), **WORKERS),  # type: ignore[arg-type]
    "told its epoch, kept workers": lambda n, size: DataLoader(range(n), size, sampler=ByEpoch(n), **KEPT),  # type: ignore[arg-type]
}
UNITS["own batches, workers"] = UNITS["own batches"]

kinds = st.sampled_from(sorted(LOADERS))
numbers = st.integers(1, 4)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(kinds, st.integers(1, 30), numbers), min_size=1, max_size=3),
    st.sampled_from(["dict", "min_size", "max_size", "max_size_cycle"]),
    st.lists(numbers, min_size=2, max_size=3),
    st.lists(st.integers(0, 9), min_size=2, max_size=2),
)
# The shorter one is in its second round: that its rounds have another length now says nothing of the epoch's.
@example([("in order", 30, 1), ("in order", 6, 1)], "dict", [2, 1], [8, 0])
@example([("shuffle", 24, 1), ("shuffle", 18, 1)], "max_size_cycle", [2, 1], [10, 0])
@example([("in order", 24, 1), ("own sampler", 8, 2)], "dict", [4, 1, 3], [5, 3])
# Workers have fetched more than was used; an own generator stands where they have left it.
@example([("own batches, workers", 30, 1)], "dict", [1, 2, 2], [2, 3])
@example([("told its epoch, kept workers", 15, 2), ("weighted, workers", 9, 2)], "min_size", [2, 1], [2, 0])
@example([("weighted, workers", 13, 2), ("shuffle", 9, 2)], "max_size", [1, 2], [3, 0])
def test_every_sample_that_is_left_comes_once(
    loaders: Loaders, together: str, processes: list[int], steps: list[int]
) -> None:
    visits: list[Counter[int]] = [Counter() for _ in loaders]
    states: list[Any] = []
    done = 0
    for attempt, num in enumerate(processes):
        stop = done + steps[attempt] if attempt < len(processes) - 1 else math.inf
        ends, saved = set(), []
        for rank in range(num):
            prepared = ready(loaders, together, rank, num)
            if states:
                prepared.load_state_dict(copy.deepcopy(states[rank] if len(states) == num else states[0]))
            count, knew = read(Fetcher(prepared.loader, start=done), stop, visits)
            assert knew
            ends.add(count)
            saved.append(prepared.state_dict())
        [done] = ends  # all take the same number of steps
        if stop == math.inf or done < stop:
            break
        states = saved
    filled = sum(one - 1 for one in processes)
    for (kind, n, _), seen in zip(loaders, visits, strict=True):
        extra = filled * UNITS.get(kind, 1)
        most, fewest = max(seen.values(), default=0), min((seen[index] for index in range(n)), default=0)
        if together == "max_size":
            assert fewest >= 1
            assert seen.total() - n <= extra
        elif together == "min_size":
            assert seen.total() - len(seen) <= extra
            assert len(loaders) > 1 or fewest >= 1
        else:
            assert fewest >= 1  # each loader has ended once
            assert extra or most - fewest <= 1  # no round has left out one, or given one twice
