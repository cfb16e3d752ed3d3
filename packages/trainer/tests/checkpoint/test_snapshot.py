import copy
import random
from collections import OrderedDict, defaultdict, deque
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from fulmen.trainer.checkpoint.snapshot import Snapshot
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
        self.register_buffer("seen", torch.zeros(3), persistent=False)
        self.history = [1, [2, 3], deque([4])]
        self.counts = defaultdict(int, a=1)
        self.kept = torch.arange(3.0)
        self.spread = torch.zeros(1).expand(4)
        self.generator = torch.Generator().manual_seed(1)
        self.dice = random.Random(1)
        self.names = {"x"}
        self.hparams.update(lr=0.1)


CHANGES = {
    "train": lambda net, _: train(net),
    "weights": lambda net, _: [parameter.data.mul_(0.5) for parameter in net.parameters()],
    "other storage": lambda net, _: setattr(net.net[0].weight, "data", torch.zeros(4, 4)),
    "double": lambda net, _: net.double(),
    "buffer": lambda net, _: net.seen.add_(1),
    "plain tensor": lambda net, _: net.kept.neg_(),
    "mode": lambda net, _: net.eval(),
    "freeze": lambda net, _: net.net[0].requires_grad_(requires_grad=False),
    "layer": lambda net, _: setattr(net, "more", nn.Linear(2, 2)),
    "exchange": lambda net, _: net.net.__setitem__(0, nn.Linear(4, 4)),
    "remove": lambda net, _: delattr(net, "kept"),
    "hook": lambda net, _: net.net[0].register_forward_hook(lambda *_: None),
    "containers": lambda net, _: (net.history[1].clear(), net.history[2].append(5), net.history.append(6)),
    "dicts": lambda net, _: (net.counts.update(b=2), net.hparams.update(lr=9.0, new=1), net.names.add("y")),
    "draw": lambda net, _: (torch.rand(3, generator=net.generator), net.dice.random()),
    "optimizer": lambda net, optimizer: (train(net, optimizer), optimizer.param_groups[0].update(lr=7.0)),
    "schedule": lambda net, optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1).step(),
    "zero": lambda net, _: net.zero_grad(set_to_none=False),
}


def train(net, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(net.parameters(), lr=0.1)
    parameter = net.net[0].weight
    optimizer.zero_grad()
    (net.net(torch.rand(3, 4, dtype=parameter.dtype)).sum() + parameter.sum()).backward()
    optimizer.step()


def look(value, known=None):
    """Everything that can be seen of it, down to bits and identities."""
    known = {} if known is None else known
    if id(value) in known:
        return id(value)
    if isinstance(value, torch.Tensor):
        known[id(value)] = value
        # The storage too: whoever shares it must still do so.
        bits = value.detach().contiguous().numpy().tobytes()
        return id(value), bits, value.dtype, value.data_ptr(), value.requires_grad, look(value.grad, known)
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, dict):
        known[id(value)] = value
        return id(value), [(str(key), look(item, known)) for key, item in value.items()]
    if isinstance(value, (list, tuple, deque)):
        known[id(value)] = value
        return id(value), [look(item, known) for item in value]
    if isinstance(value, (nn.Module, torch.optim.Optimizer, DataLoader, Dataset, RandomSampler, LightningDataModule)):
        known[id(value)] = value
        return id(value), type(value), look(dict(vars(value)), known)[1]
    return str(value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(CHANGES)), max_size=5), st.booleans())
def test_whatever_happens_everything_is_put_back_bit_by_bit(changes, begun):
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    if begun:
        train(net, optimizer)
    before = look([net, optimizer])[1]
    snapshot = Snapshot(net, optimizer, None)
    for _ in range(2):  # as often as wanted
        for change in changes:
            with suppress(RuntimeError, AttributeError, KeyError):  # some changes cannot follow others
                CHANGES[change](net, optimizer)
        snapshot.put_back()
        after = look([net, optimizer])[1]
        if not {"other storage", "double"} & set(changes):
            assert after == before
        else:
            assert without_storage(after) == without_storage(before)


def without_storage(seen):
    if isinstance(seen, tuple) and len(seen) == 6:
        return [*seen[:3], seen[4], without_storage(seen[5])]
    return [without_storage(item) for item in seen] if isinstance(seen, (list, tuple)) else seen


class Steps(Dataset):
    def __init__(self):
        self.epoch = 0
        self.dice = np.random.default_rng(0)
        self.position = [0]

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.position[0] += 1
        return torch.tensor(self.dice.random())

    def state_dict(self):
        return {"position": self.position[0]}

    def load_state_dict(self, state):
        self.position[0] = state["position"]


def test_the_position_in_the_data_is_put_back():
    loader = DataLoader(Steps(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(0))
    datamodule = LightningDataModule()
    datamodule.loader = loader
    next(iter(loader))
    snapshot = Snapshot(datamodule, [loader])
    first = [batch.tolist() for batch in loader]
    position = loader.dataset.position[0]
    loader.dataset.epoch = 3
    datamodule.late = True
    snapshot.put_back()
    assert loader.dataset.position == [position - 4]
    assert loader.dataset.epoch == 0
    assert not hasattr(datamodule, "late")
    assert [batch.tolist() for batch in loader] == first


def test_samples_of_a_dataset_are_not_looked_at():
    class Endless(list):
        def __iter__(self):
            raise AssertionError("it was read")

    data = TensorDataset(torch.zeros(2))
    data.samples = Endless([1])
    Snapshot([DataLoader(data)]).put_back()
    assert list.__len__(data.samples) == 1


def test_an_object_of_an_unknown_kind_gets_its_attributes_back():
    class Stream:
        def __init__(self):
            self.position = 0

        def __iter__(self):
            for self.position in range(5):
                yield self.position

    stream = Stream()
    snapshot = Snapshot(stream)
    list(stream)
    snapshot.put_back()
    assert stream.position == 0


def test_a_lazy_layer_is_lazy_again():
    net = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    snapshot = Snapshot(net)
    net(torch.rand(2, 5))
    snapshot.put_back()
    assert [type(layer) for layer in net] == [nn.LazyLinear, nn.LazyBatchNorm1d]
    assert net(torch.rand(2, 7)).shape == (2, 3)


def test_it_can_be_put_back_where_nothing_may_be_written():
    net = Net()
    snapshot = Snapshot(net)
    before = net.net[0].weight.detach().clone()
    with torch.inference_mode():
        net.net[0].weight.mul_(2)
        net.results = [torch.rand(2)]
        snapshot.put_back()
    assert torch.equal(net.net[0].weight, before)
    train(net)


@pytest.mark.parametrize("container", [OrderedDict(a=1), {"a": 1}, [1], {1}, deque([1])])
def test_a_container_stays_the_same_object(container):
    holder = Net()
    holder.held = container
    snapshot = Snapshot(holder)
    before = copy.copy(container)
    container.clear()
    holder.held = None
    snapshot.put_back()
    assert holder.held is container
    assert container == before
