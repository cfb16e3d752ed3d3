"""Workers of an iterator that is collected in a circle end at once: their queues are still there to tell them."""

import gc

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from fulmen.fabric.data.resumable import ResumableLoader
from fulmen.fabric.data.worker_queues import keep_queues


class Circle:
    def __init__(self, *parts):
        self.me, self.parts = self, parts


def loader():
    return DataLoader(TensorDataset(torch.arange(8)), batch_size=2, num_workers=2, persistent_workers=True)


@pytest.mark.parametrize("through", ["view", "iterator"])
def test_queues_are_open_when_an_iterator_in_a_circle_ends_its_workers(through, monkeypatch):
    closed, torchs = [], _MultiProcessingDataLoaderIter._shutdown_workers

    def shutdown(self):
        closed.extend(not queue._close.still_active() for queue in self._index_queues)
        torchs(self)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", shutdown)
    gc.collect()
    source = loader()
    if through == "view":
        view = ResumableLoader(source)
        assert len(list(view)) == 4
        Circle(source, view)
        del view
    else:
        for _ in range(2):  # once is enough
            keep_queues(iter(source))
        Circle(source)
    del source
    gc.collect()
    assert closed == [False, False]


def test_an_iterator_without_workers_is_left_alone():
    keep_queues(iter([1]))
