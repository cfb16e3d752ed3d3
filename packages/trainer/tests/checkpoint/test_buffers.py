"""Each process gets back the buffers that were its own; tests/properties/test_resume_in_two.py has real processes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fulmen.trainer.checkpoint.buffers import own_buffers, put_back_buffers


class Group:
    """Threads that gather as processes do."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size, timeout=60)
        self.given: list[Any] = [None] * size

    def run_of(self, rank: int, module: nn.Module) -> Any:
        def gather(obj: Any) -> list[Any]:
            self.given[rank] = obj
            self.barrier.wait()
            found = list(self.given)
            self.barrier.wait()
            return found

        strategy = SimpleNamespace(
            world_size=self.size, global_rank=rank, lightning_module=module, gather_objects=gather
        )
        return SimpleNamespace(strategy=strategy)


class Net(nn.Module):
    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.norm.running_mean.fill_(first)  # type: ignore[union-attr]
        self.register_buffer("same", torch.ones(3, dtype=torch.bfloat16))
        self.register_buffer("nothing", torch.zeros(0))
        self.register_buffer("graph", torch.eye(2).to_sparse())
        self.register_buffer("passing", torch.tensor(second), persistent=False)


numbers = st.sampled_from([0.0, -0.0, 1.0, float("nan")])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=3))
def test_every_process_gets_its_own_back(values: list[tuple[float, float]]) -> None:
    group = Group(len(values))
    runs = [group.run_of(rank, Net(*pair)) for rank, pair in enumerate(values)]
    with ThreadPoolExecutor(len(values)) as pool:
        found = list(pool.map(own_buffers, runs))
    differs = len({repr(first) for first, _ in values}) > 1
    assert [one and sorted(one[0]) for one in found] == [["norm.running_mean"] if differs else None] * len(values)
    for rank, (first, _) in enumerate(values):
        fresh = Net(*values[0])
        put_back_buffers(group.run_of(rank, fresh), found[rank])
        assert [repr(value) for value in fresh.norm.running_mean.tolist()] == [repr(first)] * 2  # type: ignore[union-attr]


def test_one_process_keeps_none_beside() -> None:
    assert own_buffers(Group(1).run_of(0, Net(1.0, 2.0))) is None


@pytest.mark.parametrize(
    "saved", [None, [{"norm.running_mean": torch.ones(2)}], [{}, {"norm.running_mean": torch.ones(3)}]]
)
def test_those_of_another_number_of_processes_or_another_module_are_left(saved: Any) -> None:
    net = Net(7.0, 0.0)
    put_back_buffers(Group(2).run_of(1, net), saved)
    assert net.norm.running_mean.tolist() == [7.0, 7.0]  # type: ignore[union-attr]
