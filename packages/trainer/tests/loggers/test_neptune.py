"""Neptune for real, offline: its operations are read back."""

import json
import pickle

import pytest

pytest.importorskip("neptune")

from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.loggers import NeptuneLogger

OFFLINE = {"mode": "offline", "git_ref": False, "source_files": [], "capture_hardware_metrics": False}
OFFLINE |= {"capture_stdout": False, "capture_stderr": False, "capture_traceback": False}


class Model(BoringModel):
    def __init__(self, lr=0.1, model=None):
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch, batch_idx):
        self.log("a", float(batch_idx))
        return super().training_step(batch, batch_idx)


def operations(folder):
    """What waits in the folder of the client, as it writes it: one JSON object after the other."""
    decoder, found = json.JSONDecoder(), []
    for path in sorted(folder.rglob("data-*.log")):
        text, position = path.read_text(), 0
        while position < len(text.rstrip()):
            one, position = decoder.raw_decode(text, position + len(text[position:]) - len(text[position:].lstrip()))
            found.append(one["obj"])
    return found


def test_an_offline_run_is_what_was_logged(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = NeptuneLogger(project="w/p", **OFFLINE)
    assert logger.version is None
    flags = {"log_every_n_steps": 1, "limit_train_batches": 5, "limit_val_batches": 0, "enable_checkpointing": True}
    trainer = quick(logger=logger, **flags)
    trainer.fit(Model(model={"width": 3}))
    assert pickle.loads(pickle.dumps(logger))._run is None
    logger.run.stop()
    done = operations(tmp_path / ".neptune")
    values = [(one["values"][0]["step"], one["values"][0]["value"]) for one in done if one["path"] == ["training", "a"]]
    assert values == [(n, float(n)) for n in range(5)]
    assigned = {"/".join(one["path"]): one.get("value") for one in done if one["type"].startswith("Assign")}
    assert assigned["training/hyperparams/model/width"] == 3
    assert assigned["training/status"] == "success"
    uploads = ["/".join(one["path"]) for one in done if one["type"] == "UploadFile"]
    assert uploads == ["training/model/checkpoints/epoch=0-step=5"]


def test_a_run_that_was_begun_elsewhere_needs_no_more():
    with pytest.raises(ConfigurationError, match="name='n'"):
        NeptuneLogger(run=object(), name="n")
