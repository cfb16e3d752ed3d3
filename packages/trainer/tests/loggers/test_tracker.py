import pickle
import subprocess
import sys
import warnings
from argparse import Namespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.trainer import loggers
from fulmen.trainer.delivery.backlog import read_entries, write_entries
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import MissingPackageError
from fulmen.trainer.loggers import deliver
from fulmen.trainer.loggers.base import Logger
from fulmen.trainer.loggers.tracker import Tracker, flat_texts

NAMES = {"MLFlowLogger": "mlflow", "WandbLogger": "wandb", "CometLogger": "comet_ml"}
NAMES |= {"NeptuneLogger": "neptune", "LitLogger": "litlogger"}


class Memory(Tracker):
    """A tracker of lists; `raises` is what each call raises first."""

    package = "json"
    name, version, save_dir = "memory", "v", None

    def __init__(self, raises=(), **options):
        super().__init__(**options)
        self.raises = list(raises)
        self.taken = []
        self.ended = []

    @property
    def experiment(self):
        return None

    def log_hyperparams(self, params):
        self.delivery.put("params", params=flat_texts(params))

    def take(self, entries):
        error = self.raises.pop(0) if self.raises else None
        if error is not None:
            raise error
        self.taken += [
            (entry["kind"], entry.get("metrics", entry.get("params")), entry.get("step")) for entry in entries
        ]
        return len(entries)

    def finalize(self, status):
        self.ended.append(status)
        self.close()


class Sink(Logger):
    """An ordinary logger."""

    name, version = "sink", 0

    def __init__(self, fails_at=None):
        self.rows = []
        self.fails_at = fails_at

    def log_hyperparams(self, *_, **__): ...

    def log_metrics(self, metrics, step=None):
        if step == self.fails_at:
            raise ConnectionError("down")
        self.rows.append((step, metrics))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a tracker without a Trainer keeps what waits here


@pytest.mark.parametrize(("name", "package"), NAMES.items())
def test_a_missing_package_is_said_when_the_logger_is_made(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"{name} needs .*`python -m pip install {package}`") as raised:
        getattr(loggers, name)()
    assert "\n" not in str(raised.value)


def test_no_tracker_is_imported_by_importing_ours():
    names = ", ".join(NAMES)
    heavy = sorted(NAMES.values())
    program = f"import sys; from fulmen.trainer.loggers import {names}; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_numbers_are_prefixed_and_plain():
    logger = Memory(prefix="run")
    logger.log_metrics({"a": torch.tensor(0.5), "b": 2}, step=3)
    logger.log_hyperparams(Namespace(lr=0.1, model={"width": 3, "act": torch.relu}, none=None))
    assert logger.taken[0] == ("metrics", {"run-a": 0.5, "run-b": 2}, 3)
    assert logger.taken[1][1]["model/width"] == 3
    assert logger.taken[1][1]["none"] == "None"
    assert isinstance(logger.taken[1][1]["model/act"], str)


def test_other_ranks_hand_over_nothing(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "_rank", 1)
    logger = Memory(threaded=True)
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    assert logger._delivery is None


def test_in_another_process_nothing_waits(monkeypatch):
    logger = Memory([ConnectionError("down")])
    with pytest.warns(UserWarning, match="cannot send"):
        logger.log_metrics({"a": 1.0}, 0)
    copied = pickle.loads(pickle.dumps(logger))
    assert copied.delivery.num_waiting == 0
    with warnings.catch_warnings(record=True):
        logger.close()
    assert logger.taken == [("metrics", {"a": 1.0}, 0)]


class Model(BoringModel):
    def training_step(self, batch, batch_idx):
        self.log("a", float(batch_idx))
        return super().training_step(batch, batch_idx)


def test_in_a_run_what_waits_is_in_the_folder_of_the_run_and_the_message_says_how_to_send_it(quick, tmp_path):
    bad, good = Memory([ConnectionError("down")] * 99), Memory(threaded=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quick(logger=[bad, good], log_every_n_steps=1, limit_train_batches=4, limit_val_batches=0).fit(Model())
    assert (bad.ended, good.ended) == (["success"], ["success"])
    assert [step for _, _, step in good.taken] == [0, 1, 2, 3]
    path = tmp_path / "memory" / "v" / "undelivered-Memory.jsonl"
    assert any(f"deliver({str(path)!r}, Memory(...))" in str(warning.message) for warning in said)
    bad.raises.clear()
    assert deliver(path, bad) == 4
    assert bad.taken == good.taken
    assert not path.exists()


def test_what_is_no_number_is_reported_and_ends_nothing():
    def fails():
        raise RuntimeError("down")

    with pytest.warns(UserWarning, match="Memory could not log a picture: RuntimeError: down"):
        Memory().directly(fails, "a picture")


@given(count=st.integers(0, 12), fails_at=st.one_of(st.none(), st.integers(0, 12)))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_sent_later_is_sent_once_also_if_it_stops_in_the_middle(tmp_path_factory, count, fails_at):
    path = tmp_path_factory.mktemp("later") / "undelivered.jsonl"
    write_entries(path, [{"kind": "metrics", "metrics": {"a": n / 3}, "step": n, "time": 0.0} for n in range(count)])
    logger = Sink(fails_at)
    if fails_at is not None and fails_at < count:
        with pytest.raises(ConnectionError):
            deliver(path, logger)
        assert [entry["step"] for entry in read_entries(path)] == list(range(fails_at, count))
        logger.fails_at = None
    deliver(path, logger)
    assert logger.rows == [(n, {"a": n / 3}) for n in range(count)]
    assert not path.exists()
