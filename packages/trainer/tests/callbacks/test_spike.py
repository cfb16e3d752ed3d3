import json

import pytest
import torch
from torch.utils.data import DataLoader

from fulmen.fabric.measure.spikes import TrainingSpikeException
from fulmen.trainer.callbacks.spike import SpikeDetection
from fulmen.trainer.demos import BoringModel


class Spiky(BoringModel):
    def __init__(self, at, value=1e6, *, as_dict=False):
        super().__init__()
        self.at, self.value, self.as_dict = at, value, as_dict

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).sum() * 0 + (self.value if batch_idx == self.at else 1.0)
        return {"loss": loss} if self.as_dict else loss

    def train_dataloader(self):
        return DataLoader(torch.ones(12, 32), batch_size=1)


@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_a_spike_ends_the_fit_and_is_written_down(value, as_dict, quick, tmp_path):
    detection = SpikeDetection(exclude_batches_path=tmp_path)
    with pytest.raises(TrainingSpikeException) as spike:
        quick(callbacks=detection, limit_val_batches=0).fit(Spiky(7, value, as_dict=as_dict))
    assert spike.value.batch_idx == 7
    assert json.loads((tmp_path / "skip_batches.json").read_text()) == [6, 7]


def test_a_calm_loss_ends_nothing(quick, tmp_path):
    detection = SpikeDetection(exclude_batches_path=tmp_path)
    quick(callbacks=detection, limit_val_batches=0).fit(Spiky(99))
    assert not list(tmp_path.glob("*.json"))
    again = SpikeDetection()
    again.load_state_dict(detection.state_dict())
    assert again.running_mean == detection.running_mean == 1.0
