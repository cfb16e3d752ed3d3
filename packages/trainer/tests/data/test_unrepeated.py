import random
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, Sampler, WeightedRandomSampler

from fulmen.trainer.data.unrepeated import (
    UnrepeatedDistributedSampler,
    UnrepeatedDistributedSamplerWrapper,
    share_without_repeats,
)


class Pairs(Sampler):
    """A batch sampler of the user's own."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        order = list(range(self.size))
        random.shuffle(order)
        return (order[i : i + 2] for i in range(0, self.size, 2))

    def __len__(self):
        return (self.size + 1) // 2


@given(st.integers(0, 30), st.integers(1, 5), st.booleans(), st.integers(0, 9))
def test_each_sample_once_over_all_processes(size, world_size, shuffle, epoch):
    samplers = [
        UnrepeatedDistributedSampler(range(size), num_replicas=world_size, rank=rank, shuffle=shuffle, seed=7)
        for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    shares = [list(sampler) for sampler in samplers]
    assert sorted(chain(*shares)) == list(range(size))
    assert [len(share) for share in shares] == [len(sampler) for sampler in samplers]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if not shuffle:
        assert shares == [list(range(rank, size, world_size)) for rank in range(world_size)]


LOADERS = {
    "plain": lambda size: DataLoader(range(size), batch_size=2),
    "shuffled": lambda size: DataLoader(range(size), batch_size=2, shuffle=True),
    "own batches": lambda size: DataLoader(range(size), batch_sampler=Pairs(size)),
    "no batches": lambda size: DataLoader(range(size), batch_size=None, sampler=RandomSampler(range(size))),
}


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(list(LOADERS)), st.integers(1, 12), st.integers(1, 4))
def test_a_loader_is_shared_without_repeats(kind, size, world_size):
    seen = []
    for rank in range(world_size):
        torch.manual_seed(rank)  # processes have drawn different numbers before
        random.seed(rank)
        loader = LOADERS[kind](size)
        share = share_without_repeats(loader, rank=rank, world_size=world_size, seed=3)
        batches = [batch.tolist() if isinstance(batch, torch.Tensor) else batch for batch in share]
        assert len(batches) == len(share)
        seen += torch.utils._pytree.tree_leaves(batches)
        assert len(list(loader)) == len(LOADERS[kind](size)), "the user's loader is as it was"
    assert sorted(seen) == list(range(size))


def test_any_sampler_is_asked_under_the_same_random_numbers():
    weighted = WeightedRandomSampler([1.0] * 10, 10)
    orders = []
    for rank in range(2):
        sampler = UnrepeatedDistributedSamplerWrapper(weighted, num_replicas=2, rank=rank, shuffle=False)
        orders.append(list(sampler))
        torch.rand(3 * (rank + 1))
        assert list(sampler) == orders[-1]
    assert isinstance(sampler, DistributedSampler)
    assert len(orders[0]) == len(orders[1]) == 5


def test_the_random_state_outside_stays():
    sampler = UnrepeatedDistributedSamplerWrapper(RandomSampler(range(9)), num_replicas=2, rank=0, shuffle=False)
    before = torch.random.get_rng_state()
    list(sampler)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_as_the_user_asked(drop_last):
    loader = DataLoader(range(10), batch_size=2, drop_last=drop_last)
    share = share_without_repeats(loader, rank=0, world_size=2, seed=0)
    assert type(share.batch_sampler) is BatchSampler
    assert [batch.tolist() for batch in share] == [[0, 2], [4, 6]] + ([] if drop_last else [[8]])
