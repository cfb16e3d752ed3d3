"""LitLogger as far as its package goes without an account: its client is replaced at its outermost edge."""

import pickle

import pytest

litlogger = pytest.importorskip("litlogger")

from fulmen.trainer.demos import BoringModel  # noqa: E402
from fulmen.trainer.errors import ConfigurationError  # noqa: E402
from fulmen.trainer.loggers import LitLogger  # noqa: E402


class Client:
    """Checks each call against the real client, and keeps it."""

    url = "https://lightning.ai/x"

    def __init__(self, **options):
        self.options = options
        self.calls = []

    def __getattr__(self, name):
        import inspect

        def call(*args, **kwargs):
            inspect.signature(getattr(litlogger.Experiment, name)).bind(self, *args, **kwargs)
            self.calls.append((name, args, kwargs))
            return "file"

        return call


class Model(BoringModel):
    def __init__(self, lr=0.1, model=None, fails=False):
        super().__init__()
        self.save_hyperparameters(ignore="fails")
        self.fails = fails

    def training_step(self, batch, batch_idx):
        self.log("a", float(batch_idx))
        if self.fails and batch_idx == 2:
            raise RuntimeError("of the test")
        return super().training_step(batch, batch_idx)


FLAGS = {"log_every_n_steps": 1, "limit_train_batches": 5, "limit_val_batches": 0, "enable_checkpointing": True}


@pytest.fixture
def clients(monkeypatch):
    made = []

    def init(**options):
        made.append(Client(**options))
        return made[-1]

    monkeypatch.setattr(litlogger, "init", init)
    return made


def test_what_the_client_is_given(quick, tmp_path, clients):
    logger = LitLogger(tmp_path, "n", "team", metadata={"k": "v"}, log_model=True)
    quick(logger=logger, **FLAGS).fit(Model(model={"width": 3}))
    [client] = clients
    assert (client.options["name"], client.options["teamspace"], client.options["metadata"]) == (
        "n",
        "team",
        {"k": "v"},
    )
    metrics = [(args[0]["a"], kwargs["step"]) for name, args, kwargs in client.calls if name == "log_metrics"]
    assert metrics == [(float(n), n) for n in range(5)]
    assert ("log_metadata", ({"lr": "0.1", "model/width": "3"},), {}) in client.calls
    [upload] = [kwargs for name, _, kwargs in client.calls if name == "log_model_artifact"]
    assert upload["version"] == "epoch=0-step=5"
    assert logger.log_dir == str(tmp_path / "n" / logger.version)
    assert (logger.save_dir, logger.root_dir, logger.sub_dir, logger.url) == (str(tmp_path),) * 2 + (None, client.url)
    assert pickle.loads(pickle.dumps(logger)).version == logger.version


def test_files_and_models(tmp_path, clients):
    logger = LitLogger(tmp_path)
    logger.log_file("a.txt")
    logger.log_model(object(), metadata={"n": 1})
    logger.log_model_artifact("m.ckpt", version="v")
    logger.log_hyperparams({"lr": 1}, metrics={"a": 1.0})
    assert logger.get_file("a.txt") == "file"
    names = [name for name, _, _ in clients[0].calls]
    assert names == ["log_file", "log_model", "log_model_artifact", "log_metadata", "log_metrics", "get_file"]


def test_a_run_that_failed_ends_as_failed(quick, clients):
    with pytest.raises(RuntimeError, match="of the test"):
        quick(logger=LitLogger(), **FLAGS).fit(Model(fails=True))
    assert clients[0].calls[-1] == ("finalize", ("failed",), {})


def test_without_a_login_it_is_said_and_the_program_goes_on(monkeypatch):
    def init(**_):
        raise SystemExit(1)

    monkeypatch.setattr(litlogger, "init", init)
    with pytest.raises(ConfigurationError, match="Run `lightning login`"):
        _ = LitLogger().experiment
