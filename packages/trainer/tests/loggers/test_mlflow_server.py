"""MLflow for real: a server that dies and comes back, and the databases that MLflow writes itself."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings

import pytest

pytest.importorskip("sqlalchemy", reason="only the whole of MLflow has a server and a database")
pytest.importorskip("flask")
mlflow = pytest.importorskip("mlflow")

from fulmen.trainer.demos import BoringModel  # noqa: E402
from fulmen.trainer.errors import ConfigurationError  # noqa: E402
from fulmen.trainer.loggers import MLFlowLogger, deliver  # noqa: E402

pytestmark = pytest.mark.timeout(900)


def _port_of_ones_own():
    """Free now, and none of those that the system gives to others while the server is away."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("all ports are taken")


def wait_until(is_so):
    while not is_so():  # the test has a time limit
        time.sleep(0.1)


def asked_until_answered(ask):
    """What a busy server says in the end: its database may be locked for a while, and it answers by an error then."""
    while True:
        try:
            return ask()
        except (ConnectionError, mlflow.exceptions.MlflowException) as error:
            warnings.warn(f"The server of the test did not answer: {error}", stacklevel=2)
            time.sleep(1)


class Server:
    """`mlflow server` on a port of its own, which it keeps when it comes back."""

    def __init__(self, folder):
        self._folder = folder
        self.port = _port_of_ones_own()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process = None

    def start(self):
        database = f"sqlite:///{self._folder / 'mlflow.db'}"
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, *options]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        while True:
            try:
                assert self._process.poll() is None, (self._folder / "server.log").read_text()
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
            else:
                return

    def kill(self):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        # Its children die when they are next given a processor; until then they hold the port.
        wait_until(lambda: not self._is_listening())

    def _is_listening(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


class Model(BoringModel):
    """Logs a number per step, and calls `at` before some of them."""

    def __init__(self, at=None, lr=0.1):
        super().__init__()
        self.save_hyperparameters(ignore=["at"])
        self.at = at or {}

    def training_step(self, batch, batch_idx):
        self.at.get(batch_idx, lambda: None)()
        self.log("a", float(batch_idx))
        return super().training_step(batch, batch_idx)


def history(logger):
    client = mlflow.tracking.MlflowClient(logger._tracking_uri)
    metrics = asked_until_answered(lambda: client.get_metric_history(logger.run_id, "a"))
    return [(metric.step, metric.value) for metric in metrics]


def run_of(logger):
    client = mlflow.tracking.MlflowClient(logger._tracking_uri)
    return asked_until_answered(lambda: client.get_run(logger.run_id))


STEPS = 12
ALL = [(step, float(step)) for step in range(STEPS)]


@pytest.fixture(autouse=True)
def a_server_may_be_slow(monkeypatch):
    monkeypatch.setattr(MLFlowLogger, "patience_s", 500.0)


def fit(quick, logger, model, **flags):
    quick(logger=logger, log_every_n_steps=1, limit_train_batches=STEPS, limit_val_batches=0, **flags).fit(model)


def test_a_server_that_dies_and_comes_back_costs_no_metric_and_no_step(quick, server):
    from threading import get_ident

    logger, senders = MLFlowLogger("dies", tracking_uri=server.uri), set()
    take = logger.take
    logger.take = lambda entries: (senders.add(get_ident()), take(entries))[1]
    waiting = []
    at = {3: server.kill, 8: lambda: waiting.append(logger.delivery.num_waiting), 9: server.start}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(quick, logger, Model(at))
    assert sum("cannot send" in str(warning.message) for warning in said) == 1
    assert waiting[0] >= 4  # the steps went on while nobody listened
    assert senders
    assert get_ident() not in senders  # no step has sent anything itself
    assert history(logger) == ALL
    assert run_of(logger).info.status == "FINISHED"
    assert run_of(logger).data.params == {"lr": "0.1"}


def test_one_that_stays_away_leaves_a_file_and_one_that_comes_late_gets_everything(quick, server, tmp_path):
    logger = MLFlowLogger("stays away", tracking_uri=server.uri)
    logger.patience_s = 0.5

    def kill():
        wait_until(lambda: logger.run_id)  # a server that answered late has not said it when the run began
        server.kill()

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(quick, logger, Model({5: kill}))
    message = next(str(warning.message) for warning in said if "could not deliver" in str(warning.message))
    [path] = tmp_path.rglob("undelivered-*.jsonl")
    assert str(path) in message

    late = MLFlowLogger("comes late", tracking_uri=server.uri)
    with pytest.warns(UserWarning, match="cannot reach"):
        fit(quick, late, Model({6: server.start}))
    assert history(late) == ALL
    assert run_of(late).info.status == "FINISHED"

    program = message.split('python -c "')[1].split('"')[0]
    # What the message tells to do. What the server did not take stays in the file, and the same sends it.
    asked_until_answered(lambda: exec(program))
    assert history(logger) == ALL
    assert run_of(logger).info.status == "FINISHED"
    assert not path.exists()


def test_one_that_was_never_there_is_made_when_it_is_sent(quick, server, tmp_path):
    logger = MLFlowLogger("never", tracking_uri="http://127.0.0.1:9")
    logger.patience_s = 0.1
    with pytest.warns(UserWarning, match="could not deliver"):
        fit(quick, logger, Model())
    [path] = tmp_path.rglob("undelivered-*.jsonl")
    later = MLFlowLogger("never", tracking_uri=server.uri)
    num_waiting = len(path.read_text().splitlines())
    assert num_waiting == STEPS + 2  # a hyperparameter, and the end
    assert 0 < asked_until_answered(lambda: deliver(path, later)) <= num_waiting
    assert history(later) == ALL


def test_a_run_that_fails_is_marked_so_and_checkpoints_go_through_http(quick, server):
    from fulmen.trainer.callbacks import ModelCheckpoint

    def fail():
        raise RuntimeError("of the test")

    logger = MLFlowLogger("fails", "a name", tracking_uri=server.uri, log_model="all", tags={"team": "a"})
    saves = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(every_n_train_steps=4, save_top_k=-1)]}
    with pytest.raises(RuntimeError, match="of the test"):
        fit(quick, logger, Model({9: fail}), **saves)
    run = run_of(logger)
    assert run.info.status == "FAILED"
    assert (run.info.run_name, run.data.tags["team"]) == ("a name", "a")
    folders = [file.path for file in logger.experiment.list_artifacts(logger.run_id, "model/checkpoints")]
    assert folders == ["model/checkpoints/epoch=0-step=4", "model/checkpoints/epoch=0-step=8"]
    files = [file.path for file in logger.experiment.list_artifacts(logger.run_id, folders[0])]
    assert [file.rsplit("/", 1)[1] for file in files] == ["aliases.txt", "epoch=0-step=4.ckpt", "metadata.yaml"]


def test_without_a_uri_a_database_in_save_dir(quick, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    logger = MLFlowLogger(save_dir=str(tmp_path / "mlruns"))
    fit(quick, logger, Model())
    assert history(logger) == ALL
    assert logger.save_dir == str(tmp_path / "mlruns")
    assert (tmp_path / "mlruns" / "mlflow.db").exists()


def test_what_the_server_refuses_is_said_at_once(server):
    logger = MLFlowLogger("x" * 5000, tracking_uri=server.uri)
    with pytest.raises(ConfigurationError, match="cannot begin a run"):
        _ = logger.experiment
    unknown = MLFlowLogger(tracking_uri=server.uri, run_id="0" * 32)
    with pytest.raises(ConfigurationError, match="cannot begin a run"):
        _ = unknown.experiment
