import math
from contextlib import suppress

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from fulmen.trainer.core.callback import Callback
from fulmen.trainer.demos import BoringModel, RandomDataset, RandomIterableDataset
from fulmen.trainer.errors import ConfigurationError, StopRun


class Numbered(BoringModel):
    """Writes down (epoch, batch) of what it trains on, and the first value of the batch."""

    def __init__(self):
        super().__init__()
        self.seen, self.values = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx))
        self.values.append(float(batch.flatten()[0]))
        return super().training_step(batch, batch_idx)


class At(Callback):
    """Does something in the n-th call of a hook."""

    def __init__(self, hook, nth, act):
        self.left = nth

        def listen(trainer, *_):
            self.left -= 1
            if self.left == 0:
                act(trainer)

        setattr(self, hook, listen)


def failing(_trainer):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "hook",
    [
        "on_train_start",
        "on_train_epoch_start",
        "on_train_batch_start",
        "on_train_batch_end",
        "on_validation_end",
        "on_train_epoch_end",
    ],
)
def test_after_a_failure_the_trainer_fits_again_from_the_epoch_in_which_it_failed(hook, quick):
    module = Numbered()
    trainer = quick(
        max_epochs=2,
        limit_train_batches=2,
        limit_val_batches=1,
        callbacks=[At(hook, 2 if hook[-5:] != "start" else 1, failing)],
    )
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module)
    epoch = trainer.current_epoch
    module.seen.clear()
    trainer.fit(module)
    assert module.seen == [(e, b) for e in range(epoch, 2) for b in range(2)]
    assert trainer.current_epoch == 2


def test_a_run_that_stops_itself_can_go_on(quick):
    def stop(_trainer):
        raise StopRun

    module = Numbered()
    trainer = quick(limit_train_batches=3, limit_val_batches=0, callbacks=[At("on_train_batch_end", 2, stop)])
    trainer.fit(module)
    assert trainer.state.finished
    assert module.seen == [(0, 0), (0, 1)]
    trainer.fit(module)
    assert module.seen[2:] == [(0, 0), (0, 1), (0, 2)]


def test_data_that_was_counted_early_is_not_trained_on_in_another_fit(quick):
    class Counting(Numbered):
        def configure_optimizers(self):
            self.steps = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    zeros, ones = (DataLoader(torch.full((length, 32), value)) for length, value in ((4, 0.0), (6, 1.0)))
    trainer = quick(limit_val_batches=0, callbacks=[At("on_fit_start", 1, failing)])
    module = Counting()
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, zeros)
    assert module.steps == 4
    trainer.fit(module, ones)
    assert module.steps == 6
    assert module.values == [1.0] * 6


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"max_epochs": 3}, 12),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, 6),
        ({"max_epochs": 3, "max_steps": 7}, 7),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": -1}, math.inf),
        ({"max_epochs": 3, "limit_train_batches": 0}, 0),
    ],
)
def test_the_steps_of_a_fit_are_known_before_it_begins(flags, expected, quick):
    class Counting(Numbered):
        def configure_optimizers(self):
            self.steps = self.trainer.estimated_stepping_batches
            self.trainer.should_stop = True
            return super().configure_optimizers()

    module = Counting()
    trainer = quick(limit_val_batches=0, callbacks=[At("on_train_batch_end", 1, failing)], **flags)
    with suppress(ZeroDivisionError):
        trainer.fit(module, DataLoader(RandomDataset(32, 4)))
    assert module.steps == expected


def test_outside_of_a_fit_there_are_no_steps_to_estimate(quick):
    with pytest.raises(ConfigurationError, match="read outside of a fit"):
        _ = quick().estimated_stepping_batches


def test_data_without_a_length_is_trained_on_to_its_end(quick):
    module = Numbered()
    trainer = quick(max_epochs=2, limit_val_batches=0)
    trainer.fit(module, DataLoader(RandomIterableDataset(32, 3)))
    assert module.seen == [(e, b) for e in range(2) for b in range(3)]
    assert trainer.num_training_batches == math.inf


@pytest.mark.parametrize("every", [0, 1, 2])
def test_loaders_are_asked_for_anew_every_so_many_epochs(every, quick):
    class Reloading(Numbered):
        asked = 0

        def train_dataloader(self):
            self.asked += 1
            return super().train_dataloader()

    module = Reloading()
    quick(max_epochs=4, limit_train_batches=1, limit_val_batches=0, reload_dataloaders_every_n_epochs=every).fit(module)
    assert module.asked == {0: 1, 1: 4, 2: 2}[every]


def test_a_checkpoint_of_the_reference_goes_on_in_the_middle_of_its_epoch(quick, tmp_path):
    def loader():
        data = torch.arange(12.0).reshape(12, 1).expand(12, 32)
        return DataLoader(data, sampler=DistributedSampler(data, num_replicas=1, rank=0, shuffle=True, seed=3))

    whole, stopped, resumed = Numbered(), Numbered(), Numbered()
    quick(max_epochs=2, limit_val_batches=0).fit(whole, loader())
    path = tmp_path / "saved.ckpt"

    def save(trainer):
        trainer.save_checkpoint(path)
        failing(trainer)

    with pytest.raises(ZeroDivisionError):
        quick(max_epochs=2, limit_val_batches=0, callbacks=[At("on_train_batch_end", 17, save)]).fit(stopped, loader())
    checkpoint = torch.load(path)
    del checkpoint["fulmen"]  # what only we write
    torch.save(checkpoint, path)
    quick(max_epochs=2, limit_val_batches=0).fit(resumed, loader(), ckpt_path=path)
    assert resumed.seen == whole.seen[17:]
    assert resumed.values == whole.values[17:]


def test_what_a_run_was_restored_from_is_over_when_another_begins(quick, tmp_path):
    path = tmp_path / "saved.ckpt"
    first = quick(limit_train_batches=2, limit_val_batches=0)
    first.fit(BoringModel())
    first.save_checkpoint(path)
    trainer = quick(limit_train_batches=2, limit_val_batches=0)
    trainer.fit(BoringModel(), ckpt_path=path)  # nothing is left to train
    trainer.settings.max_epochs = 2
    found = []
    trainer.callbacks = [At("on_train_start", 1, lambda trainer: found.append(trainer.fit_loop.restored))]
    trainer.fit(BoringModel())
    assert found == [None]
    assert trainer.current_epoch == 2


def test_a_plateau_scheduler_counts_the_epoch_after_which_the_run_was_saved(quick, tmp_path):
    class Plateau(BoringModel):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", 1.0)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    def rate(trainer):
        return trainer.optimizers[0].param_groups[0]["lr"]

    flags = {"limit_train_batches": 1, "limit_val_batches": 1}
    path = tmp_path / "saved.ckpt"
    whole = quick(
        max_epochs=3, callbacks=[At("on_train_epoch_end", 2, lambda trainer: trainer.save_checkpoint(path))], **flags
    )
    whole.fit(Plateau())
    resumed = quick(max_epochs=3, **flags)
    resumed.fit(Plateau(), ckpt_path=path)
    assert rate(whole) == rate(resumed) == 0.25
