import pytest
import torch

from fulmen.fabric.precision.half import HalfPrecision
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.data.batch import extract_batch_size, make_placer
from fulmen.trainer.strategies.single_device import SingleDeviceStrategy

HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def hearing(base, word, hooks=HOOKS):
    """A class whose transfer hooks write down that they were called."""

    def hook(name):
        return lambda self, batch, *where: [*batch, (word, name, where)]

    return type(word, (base,), {name: hook(name) for name in hooks})()


def placer(module=None, datamodule=None, strategy=None, **kwargs):
    return make_placer(module or LightningModule(), datamodule, strategy or SingleDeviceStrategy(), **kwargs)


def test_on_the_cpu_nothing_happens_to_a_batch():
    assert placer() is None
    assert placer(datamodule=LightningDataModule()) is None


def test_the_three_hooks_in_order():
    place = placer(hearing(LightningModule, "module"))
    assert place([], 2) == [
        ("module", HOOKS[0], (2,)),
        ("module", HOOKS[1], (torch.device("cpu"), 2)),
        ("module", HOOKS[2], (2,)),
    ]


def test_a_hook_of_the_datamodule_goes_before_that_of_the_module():
    module = hearing(LightningModule, "module", HOOKS[:1])
    assert [heard[0] for heard in placer(module, hearing(LightningDataModule, "data", HOOKS[2:]))([], 0)] == [
        "module",
        "data",
    ]
    with pytest.warns(UserWarning, match="Both data and module override `on_before_batch_transfer`"):
        place = placer(module, hearing(LightningDataModule, "data", HOOKS[:1]))
    assert [heard[0] for heard in place([], 0)] == ["data"]


def test_a_batch_is_converted_before_the_hooks_and_moved_to_the_device():
    strategy = SingleDeviceStrategy("meta", precision_plugin=HalfPrecision("bf16-true"))
    module = LightningModule()
    seen = []
    module.on_before_batch_transfer = lambda batch, dataloader_idx: seen.append(batch["x"].dtype) or batch
    placed = placer(module, strategy=strategy)({"x": torch.rand(2), "y": "text"}, 0)
    assert seen == [torch.bfloat16]
    assert placed["x"].device.type == "meta"
    assert placed["y"] == "text"


def test_a_strategy_may_move_batches_in_its_own_way():
    class Own(SingleDeviceStrategy):
        def batch_to_device(self, batch, device=None, dataloader_idx=0):
            return ["own", *super().batch_to_device(batch, device, dataloader_idx)]

    for owner in (LightningModule, LightningDataModule):
        hearer = hearing(owner, "hook", HOOKS[1:2])
        pair = (LightningModule(), hearer) if owner is LightningDataModule else (hearer, None)
        assert placer(*pair, strategy=Own())([], 1) == ["own", ("hook", HOOKS[1], (torch.device("cpu"), 1))]


def test_the_run_may_put_something_around_each_hook():
    names = []

    def as_hook(name, function):
        names.append(name)
        return function

    placer(hearing(LightningModule, "module"), as_hook=as_hook)
    assert names == list(HOOKS)


def test_the_size_of_a_batch():
    assert extract_batch_size({"a": ["text", torch.zeros(3, 2)]}) == 3
