"""What a loader is made of."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

from fulmen.fabric.data.parts import (
    generators_of,
    is_sharded,
    iterates_as_torch,
    loader_parts,
    restore_generators,
    restore_stateful,
    stateful_parts,
)

DATA: Any = range(5)


class Counting:
    def __init__(self) -> None:
        self.count = 0

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> int:
        return index

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def test_each_part_is_named_once() -> None:
    loader: Any = DataLoader(DATA, 2)
    assert loader_parts(loader) == {
        "sampler": loader.sampler,
        "batch_sampler": loader.batch_sampler,
        "dataset": DATA,
    }
    inner = RandomSampler(DATA)
    assert loader_parts(DataLoader(DATA, batch_sampler=BatchSampler(inner, 2, False)))["inner_sampler"] is inner
    assert loader_parts([1]) == {"loader": [1]}


def test_states_are_found_and_put_back() -> None:
    dataset: Any = Counting()
    generator = torch.Generator()
    loader: Any = DataLoader(dataset, shuffle=True, generator=generator)
    assert stateful_parts(loader) == {"dataset": dataset}
    assert generators_of(loader) == [generator]
    restore_stateful(stateful_parts(loader), {"dataset": {"count": 4}, "gone": {}})
    assert dataset.count == 4
    other = torch.Generator().manual_seed(3)
    restore_generators(generators_of(loader), [other.get_state()])
    assert torch.rand(1, generator=generator) == torch.rand(1, generator=other)


def test_loaders_of_a_kind_of_their_own_are_recognised() -> None:
    class Own(DataLoader[Any]):
        def __iter__(self) -> Any:
            return iter([1])

    assert iterates_as_torch(DataLoader(DATA))
    assert not iterates_as_torch(Own(DATA))
    assert not is_sharded(DataLoader(DATA))
    split: Any = DistributedSampler(DATA, 2, 0)
    assert is_sharded(DataLoader(DATA, sampler=split))
    assert is_sharded(DataLoader(DATA, batch_sampler=BatchSampler(split, 2, False)))
