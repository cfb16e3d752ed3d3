import math

import pytest
import torch
from torch.utils.data import DataLoader

from fulmen.fabric.data.resumable import ResumableLoader
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.data.combined_loader import CombinedLoader
from fulmen.trainer.data.sources import LoaderSource, PreparedLoaders, RunData
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.stages import Stage


class Module(LightningModule):
    def val_dataloader(self):
        return "of the module"


def test_a_value_goes_before_the_method():
    assert LoaderSource(Module(), [1], "val_dataloader").load() == [1]
    source = LoaderSource(Module(), None, "val_dataloader")
    assert source.is_defined()
    assert source.load() == "of the module"
    assert str(source) == "Module.val_dataloader()"
    assert (
        str(LoaderSource(None, [1], "x", "Trainer.fit(train_dataloaders=...)")) == "Trainer.fit(train_dataloaders=...)"
    )


@pytest.mark.parametrize("owner", [Module(), LightningDataModule(), None])
def test_nothing_to_load_is_said(owner):
    source = LoaderSource(owner, None, "train_dataloader")
    assert not source.is_defined()
    with pytest.raises(ConfigurationError, match=r"train_dataloader\(\) is not there"):
        source.load()


def test_a_method_that_was_put_on_the_object_counts():
    module = LightningModule()
    module.test_dataloader = lambda: "mine"
    source = LoaderSource(module, None, "test_dataloader")
    assert source.is_defined()
    assert source.load() == "mine"


def test_the_sanity_check_reads_the_loaders_of_validation():
    data = RunData()
    assert not data.is_defined(Stage.SANITY_CHECK)
    source = LoaderSource(None, [1], "val_dataloader")
    data.attach(Stage.VALIDATE, source)
    assert data.source(Stage.SANITY_CHECK) is source
    assert data.is_defined(Stage.SANITY_CHECK)
    assert data.original(Stage.VALIDATE) is None


def test_loaders_from_another_source_are_prepared_anew():
    data = RunData()
    view = ResumableLoader([1, 2])
    data.prepared[Stage.TRAIN] = PreparedLoaders(view, [view], original=[1, 2])
    assert data.original(Stage.TRAIN) == [1, 2]
    data.attach(Stage.TRAIN, LoaderSource(None, [1], "train_dataloader"))
    assert data.original(Stage.TRAIN) is None


def test_there_is_one_length_for_each_index_of_a_loader():
    views = [ResumableLoader(range(2)), ResumableLoader(range(3))]
    assert PreparedLoaders(CombinedLoader(views, "sequential"), views).lengths == [2, 3]
    assert PreparedLoaders(CombinedLoader(views, "max_size"), views).lengths == [3]
    assert PreparedLoaders(views[0], views[:1]).lengths == [2]
    endless = [ResumableLoader(zip([1], strict=True))]
    assert PreparedLoaders(CombinedLoader(endless, "sequential"), endless).lengths == [math.inf]


def test_positions_are_saved_and_given_back():
    def prepared():
        generators = [torch.Generator().manual_seed(place) for place in range(2)]
        sizes = zip((5, 3), generators, strict=True)
        views = [ResumableLoader(DataLoader(range(size), shuffle=True, generator=own)) for size, own in sizes]
        return PreparedLoaders(CombinedLoader(views, "max_size_cycle"), views)

    one = prepared()
    one.set_epoch(0)
    iterator = iter(one.loader)
    seen = [next(iterator)[0] for _ in range(2)]
    state = one.state_dict()
    rest = [next(iterator)[0] for _ in range(3)]
    two = prepared()
    two.load_state_dict(state)
    two.loader.skip_to(2)
    assert [item[0] for item in two.loader] == rest
    assert len(seen) + len(rest) == 5
    with pytest.raises(ArgumentTypeError, match="positions of 2 loaders, and the run has 1"):
        PreparedLoaders(one.views[0], one.views[:1]).load_state_dict(state)
