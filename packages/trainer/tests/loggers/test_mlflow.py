"""MLflow for real, in a folder; what needs its server is in test_mlflow_server.py."""

import pickle
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

mlflow = pytest.importorskip("mlflow")

from fulmen.trainer.callbacks import ModelCheckpoint  # noqa: E402
from fulmen.trainer.delivery.backlog import read_entries  # noqa: E402
from fulmen.trainer.demos import BoringModel  # noqa: E402
from fulmen.trainer.errors import ConfigurationError  # noqa: E402
from fulmen.trainer.loggers import MLFlowLogger, deliver  # noqa: E402
from fulmen.trainer.loggers.csv import CSVLogger  # noqa: E402


@pytest.fixture(autouse=True)
def folders_are_allowed(monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


class Model(BoringModel):
    def __init__(self, lr=0.1, model=None, fails=False):
        super().__init__()
        self.save_hyperparameters(ignore="fails")
        self.fails = fails

    def training_step(self, batch, batch_idx):
        self.log("train/a", float(batch_idx))
        if self.fails and batch_idx == 3:
            raise RuntimeError("of the test")
        return super().training_step(batch, batch_idx)


SHORT = {"log_every_n_steps": 1, "limit_train_batches": 5, "limit_val_batches": 0, "enable_checkpointing": True}


def history(logger, name):
    return [(metric.step, metric.value) for metric in logger.experiment.get_metric_history(logger.run_id, name)]


def test_a_run_is_what_was_logged_beside_another_logger(quick, tmp_path):
    logger = MLFlowLogger("e", "r", save_dir=str(tmp_path / "mlruns"), tags={"t": 1}, prefix="p", log_model=True)
    model = Model(model={"width": 3})
    trainer = quick(logger=[logger, CSVLogger(tmp_path)], callbacks=[ModelCheckpoint()], **SHORT)
    trainer.fit(model)
    run = logger.experiment.get_run(logger.run_id)
    assert history(logger, "p-train/a") == [(n, float(n)) for n in range(5)]
    assert run.data.params == {"lr": "0.1", "model/width": "3"}
    assert (run.info.status, run.info.run_name, run.data.tags["t"]) == ("FINISHED", "r", "1")
    folder = tmp_path / "mlruns" / logger.name / logger.version
    assert (logger.name, logger.version) == (run.info.experiment_id, run.info.run_id)
    assert logger.save_dir == str(tmp_path / "mlruns")
    assert Path(trainer.checkpoint_callback.best_model_path) == folder / "checkpoints" / "epoch=0-step=5.ckpt"
    uploaded = folder / "artifacts" / "model" / "checkpoints" / "epoch=0-step=5"
    assert sorted(path.name for path in uploaded.iterdir()) == ["aliases.txt", "epoch=0-step=5.ckpt", "metadata.yaml"]
    assert yaml.safe_load((uploaded / "metadata.yaml").read_text())["ModelCheckpoint"]["save_top_k"] == 1
    assert (uploaded / "aliases.txt").read_text() == "['latest', 'best']"
    trainer.test(model, verbose=False)  # the same run goes on
    assert logger.run_id == run.info.run_id


def test_a_run_that_failed_is_marked_so(quick, tmp_path):
    logger = MLFlowLogger(save_dir=str(tmp_path / "mlruns"))
    with pytest.raises(RuntimeError, match="of the test"):
        quick(logger=logger, **SHORT).fit(Model(fails=True))
    assert logger.experiment.get_run(logger.run_id).info.status == "FAILED"
    assert history(logger, "train/a") == [(n, float(n)) for n in range(3)]


def test_a_run_is_gone_on_with(tmp_path):
    first = MLFlowLogger("e", save_dir=str(tmp_path / "mlruns"), synchronous=True)
    first.log_metrics({"a": 1.0}, 0)
    assert history(first, "a") == [(0, 1.0)]  # there when the call returns
    for second in (
        MLFlowLogger(save_dir=str(tmp_path / "mlruns"), run_id=first.run_id),
        pickle.loads(pickle.dumps(first)),
    ):
        second.log_metrics({"a": 2.0}, 1)
        second.finalize("success")
        assert (second.version, second.name) == (first.version, first.name)
    assert sorted(set(history(first, "a"))) == [(0, 1.0), (1, 2.0)]


def test_one_that_logs_nothing_makes_nothing(tmp_path):
    MLFlowLogger(save_dir=str(tmp_path / "mlruns")).finalize()
    assert not (tmp_path / "mlruns").exists()


def test_what_mlflow_refuses_is_set_aside_and_the_rest_arrives(tmp_path):
    logger = MLFlowLogger(save_dir=str(tmp_path / "mlruns"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        logger.log_hyperparams({"lr": 1})
        logger.finalize()
        logger.log_hyperparams({"a": 1, "lr": 2, "b": 3})  # MLflow never changes a parameter
        logger.log_metrics({"loss, of %": 1.0, "text": "no number"}, 0)
        logger.finalize()
    assert logger.experiment.get_run(logger.run_id).data.params == {"a": "1", "lr": "1", "b": "3"}
    assert history(logger, "loss of ") == [(0, 1.0)]
    [path] = tmp_path.rglob("refused-MLFlowLogger.jsonl")
    assert [(entry["name"], entry["value"]) for entry in read_entries(path)] == [("lr", "2")]
    assert any("was refused 1 of the things" in str(warning.message) for warning in said)


def test_nobody_there_costs_no_step_and_loses_nothing(quick, tmp_path):
    from threading import get_ident

    logger = MLFlowLogger("e", tracking_uri="http://127.0.0.1:9")  # the port that discards: nobody listens
    logger.patience_s = 0.1
    take, senders = logger.take, []
    logger.take = lambda entries: (senders.append(get_ident()), take(entries))[1]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quick(logger=logger, **SHORT).fit(Model())
    messages = [str(warning.message) for warning in said]
    assert senders
    assert get_ident() not in senders
    assert sum("cannot reach 'http://127.0.0.1:9'" in message for message in messages) == 1
    assert sum("cannot send what is logged" in message for message in messages) == 1
    [path] = tmp_path.rglob("undelivered-MLFlowLogger.jsonl")
    assert any(f"deliver({str(path)!r}, MLFlowLogger(tracking_uri='http://127.0.0.1:9'" in text for text in messages)
    later = MLFlowLogger("e", save_dir=str(tmp_path / "mlruns"))
    deliver(path, later)
    assert history(later, "train/a") == [(n, float(n)) for n in range(5)]
    assert later.experiment.get_run(later.run_id).info.status == "FINISHED"


def test_a_checkpoint_that_is_removed_while_it_waits_arrives(tmp_path):
    """A callback that keeps only the best removes what it saved before the server is back."""
    logger = MLFlowLogger("e", tracking_uri="http://127.0.0.1:9", log_model="all")
    logger.keep_in(str(tmp_path))
    logger.patience_s = 0.1
    paths = []
    for kind in ("file", "folder"):
        path = tmp_path / f"{kind}.ckpt"
        if kind == "folder":
            path.mkdir()
        (path if kind == "file" else path / "shard").write_text(kind)
        paths.append(path)
        logger.after_save_checkpoint(SimpleNamespace(best_model_path=str(path), save_top_k=1))
    paths[0].unlink()
    shutil.rmtree(paths[1])
    with pytest.warns(UserWarning, match="undelivered"):
        logger.finalize()
    [undelivered] = tmp_path.rglob("undelivered-MLFlowLogger.jsonl")
    later = MLFlowLogger("e", save_dir=str(tmp_path / "mlruns"))
    deliver(undelivered, later)
    arrived = {path.read_text() for path in (tmp_path / "mlruns").rglob("model/checkpoints/*/*.ckpt") if path.is_file()}
    arrived |= {path.read_text() for path in (tmp_path / "mlruns").rglob("folder.ckpt/shard")}
    assert arrived == {"file", "folder"}
    assert not list(tmp_path.rglob("waiting-checkpoints"))


def test_a_checkpoint_that_is_gone_before_its_turn_is_said(tmp_path):
    logger = MLFlowLogger(save_dir=str(tmp_path / "mlruns"))
    logger.delivery.put("file", path=str(tmp_path / "gone.ckpt"), metadata={}, aliases=[])
    with pytest.warns(UserWarning, match="removed before it could be uploaded"):
        logger.finalize()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"log_model": "some"}, "log_model='some'"), ({"run_id": "0" * 32}, "cannot begin a run")],
)
def test_bad_input(tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        _ = MLFlowLogger(save_dir=str(tmp_path / "mlruns"), **options).experiment


def test_where_it_writes(monkeypatch, tmp_path):
    assert MLFlowLogger(save_dir="here").save_dir == "here"
    assert MLFlowLogger(tracking_uri="file:///there/runs").save_dir == "/there/runs"
    assert MLFlowLogger(tracking_uri="sqlite:////there/m.db").save_dir == "/there"
    assert MLFlowLogger(tracking_uri="http://host").save_dir is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    assert MLFlowLogger(save_dir="here").save_dir is None
