import inspect
from types import SimpleNamespace

import pytest
import torch

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from fulmen.trainer.core.module import LightningModule


def hooks_of(cls):
    return [name for name, value in vars(cls).items() if inspect.isfunction(value)]


def test_the_number_of_hooks():
    assert [len(hooks_of(cls)) for cls in (ModelHooks, DataHooks, CheckpointHooks)] == [38, 10, 2]


@pytest.mark.parametrize("stage", ["train", "val", "test", "predict"])
@pytest.mark.parametrize("owner", [LightningModule, LightningDataModule])
def test_a_missing_loader_is_an_error_that_names_its_owner(owner, stage):
    with pytest.raises(MisconfigurationException, match=rf"{owner.__name__}\.{stage}_dataloader\(\) is not there"):
        getattr(owner(), f"{stage}_dataloader")()


def test_batches_move_and_pass():
    hooks = DataHooks()
    batch = {"x": torch.ones(2)}
    assert hooks.on_before_batch_transfer(batch, 0) is batch
    assert hooks.on_after_batch_transfer(batch, 0) is batch
    assert hooks.transfer_batch_to_device(batch, torch.device("meta"), 0)["x"].device.type == "meta"


def test_modes_reach_what_a_strategy_put_around():
    module = LightningModule()
    module.on_validation_model_eval()
    assert not module.training
    wrapper = torch.nn.Sequential(module)
    module.trainer = SimpleNamespace(model=wrapper)
    module.on_test_model_train()
    assert wrapper.training
    assert module.training
    module.on_predict_model_eval()
    assert not wrapper.training
