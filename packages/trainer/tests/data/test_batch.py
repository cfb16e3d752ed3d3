import pytest
import torch
from torch.utils.data import DataLoader

from fulmen.fabric.precision.half import HalfPrecision
from fulmen.trainer import Trainer
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.data.batch import extract_batch_size, make_placer
from fulmen.trainer.demos import BoringModel
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


@pytest.fixture
def aside(monkeypatch):
    """What moves batches on a stream of its own writes down when it is called."""
    events = []

    def mover(strategy, device):
        return lambda batch: events.append("copy") or batch

    monkeypatch.setattr("fulmen.trainer.data.batch.batch_mover", mover)
    return events


def test_a_device_with_streams_has_its_batches_copied_on_one_of_their_own(monkeypatch):
    home = "fulmen.fabric.strategies.batch_mover"
    monkeypatch.setattr(f"{home}.has_side_streams", lambda device: True)
    monkeypatch.setattr(f"{home}.SideStream", lambda device: lambda batch: ("aside", device, batch))
    assert placer(strategy=SingleDeviceStrategy("meta"))("batch", 0) == ("aside", torch.device("meta"), "batch")


def test_hooks_around_the_transfer_leave_the_copy_to_the_side_stream(aside):
    module = LightningModule()
    for name in (HOOKS[0], HOOKS[2]):
        setattr(module, name, lambda batch, dataloader_idx, name=name: aside.append(name) or batch)
    assert placer(module)("batch", 0) == "batch"
    assert aside == [HOOKS[0], "copy", HOOKS[2]]


def test_a_transfer_of_the_user_is_made_on_the_stream_of_the_step(aside):
    module = LightningModule()
    module.transfer_batch_to_device = lambda batch, device, dataloader_idx: (device, batch)
    assert placer(module)("batch", 0) == (torch.device("cpu"), "batch")
    assert aside == []


class Says(BoringModel):
    """Writes down what happens to batches."""

    def __init__(self, events):
        super().__init__()
        self.events = events

    def training_step(self, batch, batch_idx):
        self.events.append(f"step {batch_idx}")
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.events.append(f"end {batch_idx}")

    def validation_step(self, batch, batch_idx):
        self.events.append(f"validate {batch_idx}")


class TakesItself(BoringModel):
    def training_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        return super().training_step(batch, 0)

    def validation_step(self, dataloader_iter):
        next(dataloader_iter)


class Data(torch.utils.data.Dataset):
    def __init__(self, events):
        self.events = events

    def __len__(self):
        return 2

    def __getitem__(self, index):
        self.events.append(f"read {index}")
        return torch.ones(32)


def fit(model, *loaders, accelerator="cpu"):
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=1,
        limit_val_batches=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, *loaders)


def test_a_batch_is_read_and_copied_when_the_step_before_was_launched_and_not_sooner(aside):
    fit(Says(aside), DataLoader(Data(aside)), DataLoader(torch.rand(2, 32)))
    trained = [event for step in "01" for event in (f"read {step}", "copy", f"step {step}", f"end {step}")]
    assert aside == [*trained, "copy", "validate 0", "copy", "validate 1"]


@pytest.mark.filterwarnings("ignore:.*dataloader_iter")
def test_a_step_that_takes_its_batches_itself_moves_them_itself(aside):
    fit(TakesItself(), DataLoader(torch.rand(2, 32)), DataLoader(torch.rand(2, 32)))
    assert aside == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_fit_on_a_gpu_comes_to_the_weights_of_one_that_copies_on_the_stream_of_the_step():
    class ByHand(BoringModel):
        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return batch.to(device)

    data, weights = torch.rand(256, 32), []
    for kind in (BoringModel, ByHand):
        torch.manual_seed(0)
        module = kind()
        fit(module, DataLoader(data, batch_size=4, pin_memory=True), accelerator="cuda")
        weights.append(module.layer.weight.detach().cpu())
    assert torch.equal(*weights)


def test_the_size_of_a_batch():
    assert extract_batch_size({"a": ["text", torch.zeros(3, 2)]}) == 3
