import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fulmen.trainer.demos import BoringModel, RandomDataset
from fulmen.trainer.errors import ConfigurationError

# The fixture only makes Trainers.
SETTINGS = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Scheduled(BoringModel):
    """Writes down (epoch, optimizer steps made) whenever its scheduler steps."""

    def __init__(self, plateau=False, log=True, **config):
        super().__init__()
        self.plateau, self.logs, self.config, self.stepped = plateau, log, config, []

    def training_step(self, batch, batch_idx):
        if self.logs:
            self.log("loss", 1.0, on_step=True, on_epoch=False)
        return super().training_step(batch, batch_idx)

    def lr_scheduler_step(self, scheduler, metric):
        self.stepped.append((self.trainer.current_epoch, self.trainer.global_step))
        super().lr_scheduler_step(scheduler, metric)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        kind = torch.optim.lr_scheduler.ReduceLROnPlateau if self.plateau else torch.optim.lr_scheduler.ConstantLR
        config = {"scheduler": kind(optimizer), **({"monitor": "loss"} if self.plateau else {}), **self.config}
        return {"optimizer": optimizer, "lr_scheduler": config}


def fitted(quick, module, batches, **flags):
    trainer = quick(limit_val_batches=0, **flags)
    trainer.fit(module, DataLoader(RandomDataset(32, batches)))
    return trainer


@given(
    batches=st.integers(1, 5),
    epochs=st.integers(1, 3),
    window=st.integers(1, 3),
    frequency=st.integers(1, 3),
    plateau=st.booleans(),
)
@SETTINGS
def test_by_step_a_scheduler_steps_after_every_nth_optimizer_step(quick, batches, epochs, window, frequency, plateau):
    module = Scheduled(plateau, interval="step", frequency=frequency)
    trainer = fitted(quick, module, batches, max_epochs=epochs, accumulate_grad_batches=window)
    steps = -(-batches // window)
    every = range(frequency, steps * epochs + 1, frequency)
    assert module.stepped == [((step - 1) // steps, step) for step in every]
    assert trainer.fit_loop.counts.scheduler_steps.total == len(every)


@given(batches=st.integers(1, 3), epochs=st.integers(1, 4), frequency=st.integers(1, 3), plateau=st.booleans())
@SETTINGS
def test_by_epoch_a_scheduler_steps_after_every_nth_epoch(quick, batches, epochs, frequency, plateau):
    module = Scheduled(plateau, frequency=frequency)
    fitted(quick, module, batches, max_epochs=epochs)
    assert module.stepped == [(epoch, (epoch + 1) * batches) for epoch in range(frequency - 1, epochs, frequency)]


@given(steps=st.integers(1, 9), plateau=st.booleans())
@SETTINGS
def test_by_epoch_none_steps_in_an_epoch_that_max_steps_cuts(quick, steps, plateau):
    module = Scheduled(plateau)
    fitted(quick, module, 3, max_epochs=-1, max_steps=steps)
    assert module.stepped == [(epoch, (epoch + 1) * 3) for epoch in range(steps // 3)]


def test_a_metric_that_was_not_logged_is_an_error_or_a_warning(quick):
    with pytest.raises(ConfigurationError, match=r"watches 'loss', which was not logged\. Logged were no metrics"):
        fitted(quick, Scheduled(plateau=True, log=False), 1)
    module = Scheduled(plateau=True, log=False, strict=False)
    with pytest.warns(RuntimeWarning, match="watches 'loss', which was not logged"):
        fitted(quick, module, 1)
    assert module.stepped == []


def test_in_manual_optimization_schedulers_are_the_modules_affair(quick):
    module = Scheduled()
    module.automatic_optimization = False
    fitted(quick, module, 2)
    assert module.stepped == []
