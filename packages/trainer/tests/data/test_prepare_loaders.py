import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from fulmen.fabric.rank_zero import PossibleUserWarning, warned
from fulmen.trainer.data.combined_loader import CombinedLoader
from fulmen.trainer.data.fetchers import Fetcher
from fulmen.trainer.data.prepare_loaders import advise_workers, has_len_all_ranks, prepare
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError, MisconfigurationException
from fulmen.trainer.stages import Stage
from fulmen.trainer.strategies.single_device import SingleDeviceStrategy

EVALUATING = [Stage.VALIDATE, Stage.TEST, Stage.PREDICT, Stage.SANITY_CHECK]


class OneOfMany(SingleDeviceStrategy):
    """As one process of several sees the data."""

    def __init__(self, rank, world_size):
        super().__init__()
        self.share = {"rank": rank, "num_replicas": world_size}

    distributed_sampler_kwargs = property(lambda self: self.share)


def loader(size=8, **kwargs):
    return DataLoader(range(size), **{"batch_size": 2, **kwargs})


def read(loader):
    return [batch.tolist() for batch in loader]


def samples(loader):
    return torch.utils._pytree.tree_leaves(read(loader))


def ready(raw, stage=Stage.TRAIN, strategy=None, **kwargs):
    return prepare(raw, stage=stage, strategy=strategy or SingleDeviceStrategy(), **kwargs)


def test_one_process_reads_what_a_plain_loop_reads():
    plain = loader(shuffle=True)
    prepared = ready(plain)
    torch.manual_seed(1)
    expected = read(plain), torch.rand(1)
    torch.manual_seed(1)
    assert (read(Fetcher(prepared.loader)), torch.rand(1)) == expected
    assert prepared.original is plain
    assert prepared.lengths == [4]


@pytest.mark.parametrize("stage", EVALUATING)
def test_evaluation_takes_one_loader_after_the_other(stage):
    for raw in (loader(4), [loader(4)], {"a": loader(4)}, (loader(4),)):
        prepared = ready(raw, stage)
        assert prepared.loader.mode == "sequential"
        assert [(item.tolist(), *where) for item, *where in prepared.loader] == [([0, 1], 0, 0), ([2, 3], 1, 0)]
    two = ready([loader(4), loader(2)], stage)
    assert two.lengths == [2, 1]
    assert [where for _, *where in Fetcher(two.loader)] == [[0, 0], [1, 0], [0, 1]]
    assert ready([], stage).lengths == []


def test_training_takes_a_batch_of_each():
    raw = {"a": loader(4), "b": [loader(2), loader(6)]}
    prepared = ready(raw)
    items = [torch.utils._pytree.tree_map(torch.Tensor.tolist, item) for item in Fetcher(prepared.loader)]
    assert items[1] == {"a": [2, 3], "b": [[0, 1], [2, 3]]}
    assert prepared.lengths == [len(items)] == [3]
    assert next(iter(Fetcher(ready([loader(2)]).loader)))[0].tolist() == [0, 1], "a list of one stays a list"


def test_a_combined_loader_is_viewed_in_its_own_mode():
    raw = CombinedLoader([loader(2), loader(6)], "min_size")
    prepared = ready(raw)
    assert prepared.loader.mode == "min_size"
    assert prepared.lengths == [1]
    assert raw.flattened[0] is not prepared.loader.flattened[0]
    assert ready(raw, Stage.VALIDATE).lengths == [1]
    with pytest.raises(ValueError, match=r"mode='sequential'.*'max_size_cycle'"):
        ready(CombinedLoader([loader()], "sequential"))
    with pytest.raises(ValueError, match=r"mode='min_size'.*Pass mode='sequential'"):
        ready(raw, Stage.PREDICT)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 17), st.integers(2, 4), st.booleans(), st.integers(0, 3))
def test_processes_train_as_with_torchs_sampler(size, world_size, shuffle, epoch):
    for rank in range(world_size):
        prepared = ready(loader(size, shuffle=shuffle), strategy=OneOfMany(rank, world_size), seed=5)
        prepared.set_epoch(epoch)
        sampler = DistributedSampler(range(size), world_size, rank, shuffle=shuffle, seed=5)
        sampler.set_epoch(epoch)
        assert read(prepared.loader) == read(loader(size, sampler=sampler))


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 17), st.integers(2, 4), st.sampled_from([Stage.VALIDATE, Stage.TEST, Stage.PREDICT]), st.booleans()
)
def test_processes_evaluate_each_sample_once(size, world_size, stage, shuffle):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        views = [
            ready(loader(size, shuffle=shuffle), stage, OneOfMany(rank, world_size)).views[0]
            for rank in range(world_size)
        ]
    assert sorted(sum((samples(view) for view in views), [])) == list(range(size))  # noqa: RUF017  # a few samples


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.VALIDATE])
def test_what_must_not_be_dealt_out_is_not(stage):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(4))

    strategy = OneOfMany(1, 2)
    assert samples(ready(loader(4), stage, strategy, use_distributed_sampler=False).views[0]) == [0, 1, 2, 3]
    assert samples(ready(DataLoader(Stream()), stage, strategy).views[0]) == [0, 1, 2, 3]
    own = DistributedSampler(range(4), 2, 0, shuffle=False)
    assert samples(ready(loader(4, sampler=own), stage, strategy).views[0]) == [0, 2]


def test_the_strategy_may_exchange_the_views():
    class Doubling(SingleDeviceStrategy):
        def process_dataloader(self, dataloader):
            return [batch * 2 for batch in dataloader]

    assert read(ready(loader(4), strategy=Doubling()).loader) == [[0, 2], [4, 6]]


def test_overfitting_keeps_the_order():
    shuffled = loader(shuffle=True)
    with pytest.warns(UserWarning, match="overfit_batches"):
        prepared = ready(shuffled, overfit_batches=1)
    assert read(prepared.loader) == read(loader())
    assert type(prepared.loader.sampler) is SequentialSampler
    assert type(shuffled.sampler) is RandomSampler
    with pytest.warns(UserWarning, match="overfit_batches"):
        share = ready(loader(shuffle=True), strategy=OneOfMany(1, 2), overfit_batches=2)
    assert read(share.loader) == [[1, 3], [5, 7]]


def test_shuffled_evaluation_is_worth_a_word():
    warned.clear()
    with pytest.warns(PossibleUserWarning, match="val_dataloader shuffles"):
        ready(loader(shuffle=True), Stage.VALIDATE)


def test_loaders_without_workers_on_a_machine_with_many_cores(monkeypatch):
    warned.clear()
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(8), raising=False)
    with pytest.warns(PossibleUserWarning, match="num_workers=3"):
        advise_workers(ready(loader()), stage=Stage.TRAIN, num_local_processes=2)


class Empty(Dataset):
    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError


TENSOR = torch.zeros(6, 2)
MISTAKES = {
    "None": (lambda: None, ArgumentTypeError, "gave None"),
    "number": (lambda: 3, ArgumentTypeError, r"gave 3 \(int\)"),
    "text": (lambda: "loader", ArgumentTypeError, "gave 'loader'"),
    "class": (lambda: DataLoader, ArgumentTypeError, "is no loader"),
    "tensor": (lambda: TENSOR, ArgumentTypeError, r"tensor of shape \(6, 2\)"),
    "list of tensors": (lambda: [TENSOR], ArgumentTypeError, "TensorDataset"),
    "generator": (lambda: (item for item in [1]), ArgumentTypeError, "read only once"),
    "iterator of a loader": (lambda: iter(loader()), ArgumentTypeError, "read only once"),
    "zip": (lambda: zip([1], [2], strict=True), ArgumentTypeError, "gave a zip"),
    "empty dataset": (lambda: DataLoader(Empty()), ConfigurationError, "without batches. Its dataset is empty"),
    "no full batch": (
        lambda: DataLoader(TensorDataset(TENSOR), batch_size=8, drop_last=True),
        ConfigurationError,
        "6 samples, batch_size=8, and drop_last=True",
    ),
    "in a dict": (lambda: {"a": loader(), "b": 3}, ArgumentTypeError, r"gave 3 \(int\)"),
}


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.VALIDATE])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_name_where_they_came_from(mistake, stage):
    make, error, words = MISTAKES[mistake]
    with pytest.raises(error, match=words) as caught:
        ready(make(), stage, source="Model.some_dataloader()")
    assert "Model.some_dataloader()" in str(caught.value)
    assert isinstance(caught.value, MisconfigurationException)


def test_training_without_any_loader_is_a_mistake():
    with pytest.raises(ConfigurationError, match="there is no loader"):
        ready([])


def test_a_length_in_all_processes():
    class Among(SingleDeviceStrategy):
        global_rank = 1

        def reduce(self, tensor, group=None, reduce_op="mean"):
            return tensor + 4

    assert has_len_all_ranks(loader(), SingleDeviceStrategy())
    assert not has_len_all_ranks(zip([1], strict=True), SingleDeviceStrategy())
    with pytest.raises(ConfigurationError, match="process 1 has no batches"):
        has_len_all_ranks([], Among())
    assert has_len_all_ranks([], Among(), allow_zero_length_dataloader_with_multiple_devices=True)
    with pytest.warns(UserWarning, match="in no process"):
        has_len_all_ranks([], SingleDeviceStrategy())
