import os

import pytest
import torch
import torch._dynamo  # DDP imports it, which takes seconds; forked processes have what is there already
from torch.utils.data import DataLoader

from fulmen.trainer.callbacks.early_stopping import EarlyStopping
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.demos import BoringModel, RandomDataset
from fulmen.trainer.errors import InterruptedBySignal
from fulmen.trainer.loggers.csv import CSVLogger
from fulmen.trainer.stages import EntryPoint, Status

FORKED = {"devices": 2, "strategy": "ddp_fork"}


class Logging(BoringModel):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", float(batch_idx), prog_bar=True, sync_dist=True)

    def predict_step(self, batch, batch_idx):
        return os.getpid()


def test_what_the_first_process_found_out_comes_home(quick, tmp_path):
    module, stopping = Logging(), EarlyStopping("val_loss", patience=9)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = quick(max_epochs=2, limit_val_batches=2, callbacks=[stopping], logger=CSVLogger(tmp_path), **FORKED)
    trainer.fit(module, DataLoader(RandomDataset(32, 8)), DataLoader(RandomDataset(32, 4)))
    assert any(not torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert (trainer.current_epoch, trainer.global_step) == (2, 8)
    assert (trainer.state.status, trainer.state.fn) == (Status.FINISHED, EntryPoint.FIT)
    assert trainer.callback_metrics["val_loss"] == 0.5
    assert trainer.progress_bar_metrics == {"val_loss": 0.5}
    assert stopping.wait_count == 1
    assert trainer.log_dir == str(tmp_path / "lightning_logs" / "version_0")
    assert module.trainer is trainer
    # It goes on from there, in this process or in others.
    pid, *_ = trainer.predict(module, DataLoader(RandomDataset(32, 2)))
    assert pid != os.getpid()
    assert trainer.validate(module, DataLoader(RandomDataset(32, 4)), verbose=False) == [{"val_loss": 0.5}]


class Failing(Callback):
    def __init__(self, error):
        self.error = error

    def on_train_batch_start(self, *_):
        raise self.error


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), InterruptedBySignal(), SystemExit(3)])
def test_a_failure_comes_home_too(error, quick):
    trainer = quick(callbacks=[Failing(error)], **FORKED)
    with pytest.raises(type(error)) as caught:
        trainer.fit(BoringModel())
    assert caught.value.args == error.args
    assert trainer.interrupted
