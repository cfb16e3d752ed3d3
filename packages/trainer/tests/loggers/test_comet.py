"""Comet for real, offline: the archive is read back."""

import json
import pickle
import zipfile

import pytest

pytest.importorskip("comet_ml")

from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.loggers import CometLogger


class Model(BoringModel):
    def __init__(self, lr=0.1, model=None):
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch, batch_idx):
        self.log("a", float(batch_idx))
        return super().training_step(batch, batch_idx)


def test_an_offline_experiment_is_what_was_logged(quick, tmp_path):
    quiet = {"log_code": False, "log_env_details": False, "display_summary_level": 0}
    logger = CometLogger(online=False, offline_directory=str(tmp_path), project="p", prefix="pre", tags=["x"], **quiet)
    assert (logger.name, logger.version, logger.save_dir) == ("p", None, str(tmp_path))
    model = Model(model={"width": 3})
    quick(logger=logger, log_every_n_steps=1, limit_train_batches=5, limit_val_batches=0).fit(model)
    key = logger.version
    assert pickle.loads(pickle.dumps(logger)).version == key
    logger.experiment.end()
    [archive] = tmp_path.glob(f"{key}*.zip")
    with zipfile.ZipFile(archive) as files:
        messages = [json.loads(line)["payload"] for line in files.read("messages.json").splitlines()]
    metrics = [payload["metric"] for payload in messages if "metric" in payload]
    rows = [(one["metricName"], float(one["metricValue"]), one["step"], one["epoch"]) for one in metrics]
    assert [row for row in rows if row[0] == "pre_a"] == [("pre_a", float(n), n, 0) for n in range(5)], metrics
    text = json.dumps(messages)
    assert '"model/width"' in text
    assert '"Status"' in text
    assert "success" in text


def test_bad_input():
    with pytest.raises(ConfigurationError, match="mode='x'"):
        CometLogger(mode="x")
