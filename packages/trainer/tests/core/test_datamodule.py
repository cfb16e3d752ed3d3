import copy
import pickle

import torch
from torch.utils.data import RandomSampler, SequentialSampler, TensorDataset

from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.demos import BoringDataModule, RandomDataset, RandomIterableDataset
from fulmen.trainer.signature import is_overridden


def test_loaders_from_datasets():
    data = LightningDataModule.from_datasets(
        RandomDataset(4, 8),
        [RandomDataset(4, 6), RandomDataset(4, 2)],
        predict_dataset=RandomIterableDataset(4, 3),
        batch_size=2,
    )
    assert isinstance(data.train_dataloader().sampler, RandomSampler)
    assert [len(loader) for loader in data.val_dataloader()] == [3, 1]
    assert isinstance(data.val_dataloader()[0].sampler, SequentialSampler)
    assert len(list(data.predict_dataloader())) == 2
    assert [is_overridden(f"{name}_dataloader", data) for name in ("train", "val", "test", "predict")] == [
        True,
        True,
        False,
        True,
    ]
    assert len(pickle.loads(pickle.dumps(data)).train_dataloader()) == 4


def test_iterable_training_data_is_not_shuffled():
    data = LightningDataModule.from_datasets(RandomIterableDataset(4, 3))
    assert len(list(data.train_dataloader())) == 3


def test_constructor_gets_what_it_takes():
    class Data(LightningDataModule):
        def __init__(self, root, batch_size=0):
            super().__init__()
            self.root, self.batch_size = root, batch_size

    data = Data.from_datasets(TensorDataset(torch.ones(4)), batch_size=4, root="here")
    assert (data.root, data.batch_size) == ("here", 4)
    assert len(data.train_dataloader()) == 1


def test_printing_names_the_loaders():
    data = BoringDataModule()
    assert "{Train dataloader: not available before setup}" in str(data)
    data.setup("fit")
    assert str(data).splitlines()[:2] == ["{Train dataloader: size=64}", "{Validation dataloader: size=64}"]
    assert "{Test dataloader: None}" in str(LightningDataModule())
    data.name = "boring"
    assert data.name == "boring"


def test_copies_are_in_no_run():
    data = BoringDataModule()
    data.trainer = object()
    assert copy.deepcopy(data).trainer is None
    assert data.prepare_data_per_node
    assert data.state_dict() == {}
