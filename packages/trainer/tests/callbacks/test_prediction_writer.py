import json
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.callbacks import BasePredictionWriter, WriteInterval
from fulmen.trainer.core.writes_predictions import WritesPredictions
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.trainer import Trainer


class Doubles(BoringModel):
    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return 2 * batch


class Numbers(IterableDataset):
    def __iter__(self):
        return iter(range(3))


class Written(BasePredictionWriter):
    def __init__(self, write_interval="batch"):
        super().__init__(write_interval)
        self.batches, self.epochs = [], []

    def write_on_batch_end(self, trainer, module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        self.batches.append((dataloader_idx, batch_idx, batch_indices, batch.tolist(), prediction.tolist()))

    def write_on_epoch_end(self, trainer, module, predictions, batch_indices):
        self.epochs.append((predictions, batch_indices))


def numbers(size, **given):
    return DataLoader(range(100, 100 + size), **given)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    batch_size=st.integers(1, 4),
    shuffles=st.booleans(),
    limit=st.none() | st.integers(1, 3),
    interval=st.sampled_from(["batch", "epoch", "batch_and_epoch"]),
    returns=st.booleans(),
)
def test_every_prediction_is_written_with_the_places_of_its_samples(
    sizes, batch_size, shuffles, limit, interval, returns
):
    loaders = [numbers(size, batch_size=batch_size, shuffle=shuffles) for size in sizes]
    writer = Written(interval)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=writer, limit_predict_batches=limit
    )
    given = loaders if len(sizes) > 1 else loaders[0]
    answers = trainer.predict(Doubles(), given, return_predictions=returns)
    expected = sum(min(-(-size // batch_size), limit or size) for size in sizes)
    assert len(writer.batches) == (expected if "batch" in interval else 0)
    for loader, _, indices, batch, prediction in writer.batches:
        assert [100 + index for index in indices] == batch
        assert prediction == [2 * number for number in batch]
        assert loader < len(sizes)
    assert len(writer.epochs) == ("epoch" in interval)
    for predictions, indices in writer.epochs:
        by_loader = predictions if len(sizes) > 1 else [predictions]
        assert [[answer.tolist() for answer in of_loader] for of_loader in by_loader] == [
            [[2 * (100 + index) for index in of_batch] for of_batch in of_loader] for of_loader in indices
        ]
        assert sum(map(len, by_loader)) == expected
    assert (answers is not None) == returns
    assert trainer.predict_loop.batch_indices() is None  # nobody listens any more


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_places_are_those_that_workers_and_batch_samplers_drew(quick):
    batches = BatchSampler(RandomSampler(range(10)), batch_size=3, drop_last=True)
    for loader in (
        DataLoader(range(100, 110), batch_size=3, shuffle=True, num_workers=2, multiprocessing_context="fork"),
        DataLoader(range(100, 110), batch_sampler=batches),
    ):
        writer = Written()
        quick(callbacks=writer).predict(Doubles(), loader, return_predictions=False)
        assert len(writer.batches) >= 3
        for _, _, indices, batch, _ in writer.batches:
            assert [100 + index for index in indices] == batch


def test_a_loader_that_does_not_batch_gives_one_place(quick):
    writer = Written()
    quick(callbacks=writer).predict(Doubles(), DataLoader(torch.arange(3), batch_size=None))
    assert [indices for _, _, indices, _, _ in writer.batches] == [[0], [1], [2]]


def test_where_nobody_knows_the_places_it_is_said_once(quick):
    writer = Written("batch_and_epoch")
    with pytest.warns(UserWarning, match="Written.write_on_batch_end gets batch_indices=None"):
        quick(callbacks=writer).predict(Doubles(), DataLoader(Numbers()))
    assert [indices for _, _, indices, _, _ in writer.batches] == [None, None, None]
    assert writer.epochs[0][1] == [[None, None, None]]


def test_what_is_written_by_batches_is_not_kept(quick):
    class Forgets(BasePredictionWriter):
        def __init__(self):
            super().__init__()
            self.seen = []

        def write_on_batch_end(self, trainer, module, prediction, *_):
            assert sum(seen() is not None for seen in self.seen) <= 1  # the loop may still hold the last one
            self.seen.append(weakref.ref(prediction))

    writer = Forgets()
    trainer = quick(callbacks=writer)
    assert trainer.predict(Doubles(), numbers(6), return_predictions=False) is None
    assert len(writer.seen) == 6
    assert trainer.predict_loop.predictions == [[]]
    # What a writer at the end wanted goes with it.
    trainer = quick(callbacks=Written("epoch"))
    trainer.predict(Doubles(), numbers(6), return_predictions=False)
    assert trainer.predict_loop.predictions == trainer.predict_loop.epoch_batch_indices == [[]]


def test_intervals_are_three():
    assert Written("batch_and_epoch").interval is WriteInterval.BATCH_AND_EPOCH
    assert [interval.on_batch for interval in WriteInterval] == [True, False, True]
    assert [interval.on_epoch for interval in WriteInterval] == [False, True, True]
    assert isinstance(Written(), WritesPredictions)
    for wrong in ("foo", None):
        with pytest.raises(ConfigurationError, match=rf"Written\(write_interval={wrong!r}\).*'batch', 'epoch'"):
            Written(wrong)


class ToDisk(BasePredictionWriter):
    def __init__(self, folder):
        super().__init__("batch_and_epoch")
        self.folder = folder

    def write_on_batch_end(self, trainer, module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        name = f"{trainer.global_rank}-{dataloader_idx}-{batch_idx}.json"
        (self.folder / name).write_text(json.dumps([dataloader_idx, batch_indices, prediction.tolist()]))

    def write_on_epoch_end(self, trainer, module, predictions, batch_indices):
        lists = [[answer.tolist() for answer in of_loader] for of_loader in predictions]
        (self.folder / f"all-{trainer.global_rank}.json").write_text(json.dumps([lists, batch_indices]))


def test_two_processes_write_each_sample_once(tmp_path, quick):
    trainer = quick(callbacks=ToDisk(tmp_path), strategy="ddp_fork", devices=2)
    loaders = [numbers(7, batch_size=2), numbers(3)]
    assert trainer.predict(Doubles(), loaders, return_predictions=False) is None
    found = [json.loads(path.read_text()) for path in tmp_path.glob("[01]-*.json")]
    for loader, size in enumerate((7, 3)):
        mine = [(indices, prediction) for of, indices, prediction in found if of == loader]
        assert sorted(index for indices, _ in mine for index in indices) == list(range(size))
        for indices, prediction in mine:
            assert prediction == [2 * (100 + index) for index in indices]
    for rank in range(2):
        lists, indices = json.loads((tmp_path / f"all-{rank}.json").read_text())
        assert lists == [[[2 * (100 + i) for i in batch] for batch in of_loader] for of_loader in indices]
