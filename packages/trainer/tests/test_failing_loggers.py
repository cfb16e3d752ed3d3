"""A logger that raises, wherever and from whenever on, ends no run and costs the other loggers nothing."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.fabric.rank_zero import warned
from fulmen.trainer.callbacks.lr_monitor import LearningRateMonitor
from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.loggers.base import Logger
from fulmen.trainer.profilers.simple import SimpleProfiler
from fulmen.trainer.trainer import Trainer

METHODS = ["keep_in", "log_hyperparams", "log_graph", "log_metrics", "save", "after_save_checkpoint", "finalize"]
PROPERTIES = ["name", "version", "save_dir", "root_dir", "log_dir", "versions_dir", "experiment", "opens_first"]
ERRORS = [RuntimeError, OSError, AttributeError, ValueError, KeyError, StopIteration, MemoryError]


class Kept(Logger):
    """Keeps what it gets."""

    opens_first = True

    def __init__(self, folder: Any) -> None:
        self._folder = str(folder)
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.hparams: list[Any] = []
        self.checkpoints = 0
        self.ends: list[str] = []

    @property
    def name(self) -> str:
        return "kept"

    @property
    def version(self) -> int:
        return 0

    @property
    def save_dir(self) -> str:
        return self._folder

    @property
    def experiment(self) -> None:
        return None

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self.hparams.append(params)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self.checkpoints += 1

    def finalize(self, status: str) -> None:
        self.ends.append(status)


class Broken(Kept):
    """Raises in the methods and properties of these names, after so many calls of any of them that went well."""

    def __init__(self, folder: Any, names: frozenset[str], kind: type[Exception], after: int) -> None:
        super().__init__(folder)
        self.names, self.kind, self.after = names, kind, after

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name not in super().__getattribute__("names"):
            return super().__getattribute__(name)
        if name in PROPERTIES:
            self._fail(name)
            return super().__getattribute__(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._fail(name)
            return super(Broken, self).__getattribute__(name)(*args, **kwargs)

        return call

    def _fail(self, name: str) -> None:
        self.after -= 1
        if self.after < 0:
            raise self.kind(f"no {name}")


class Net(BoringModel):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.log("rises", float(batch_idx), on_step=True, on_epoch=True)
        return super().training_step(batch, batch_idx)


def fit(folder: Any, loggers: list[Logger], **flags: Any) -> Trainer:
    torch.manual_seed(1)
    quiet: dict[str, Any] = {"accelerator": "cpu", "enable_model_summary": False, "enable_progress_bar": False}
    trainer = Trainer(
        **{**quiet, **flags},
        default_root_dir=folder,
        logger=loggers,
        max_epochs=2,
        limit_train_batches=3,
        limit_val_batches=1,
        num_sanity_val_steps=1,
        log_every_n_steps=1,
    )
    trainer.fit(Net())
    return trainer


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: Any) -> Kept:
    folder = tmp_path_factory.mktemp("alone")
    logger = Kept(folder)
    fit(folder, [logger], callbacks=[LearningRateMonitor(), ModelCheckpoint(save_top_k=1, monitor=None)])
    assert len(logger.rows) > 6
    return logger


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    names=st.frozensets(st.sampled_from(METHODS + PROPERTIES), min_size=1, max_size=4),
    kind=st.sampled_from(ERRORS),
    after=st.integers(0, 12),
    is_first=st.booleans(),
    bar=st.booleans(),
)
@example(names=frozenset(METHODS + PROPERTIES), kind=RuntimeError, after=0, is_first=True, bar=True)
@example(names=frozenset(METHODS + PROPERTIES), kind=RuntimeError, after=0, is_first=False, bar=False)
@example(names=frozenset({"version"}), kind=OSError, after=0, is_first=True, bar=False)
@example(names=frozenset({"log_metrics"}), kind=RuntimeError, after=3, is_first=True, bar=False)
def test_a_logger_that_raises_ends_nothing(
    names: frozenset[str],
    kind: type[Exception],
    after: int,
    is_first: bool,
    bar: bool,
    undisturbed: Kept,
    tmp_path_factory: Any,
    capsys: Any,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    broken, good = Broken(folder / "of the broken one", names, kind, after), Kept(folder)
    loggers: list[Logger] = [broken, good] if is_first else [good, broken]
    checkpoints = ModelCheckpoint(save_top_k=1, monitor=None)
    trainer = fit(
        folder,
        loggers,
        callbacks=[LearningRateMonitor(), checkpoints],
        enable_progress_bar=bar,
        profiler=SimpleProfiler(filename="report"),
    )
    capsys.readouterr()
    assert trainer.state.finished
    assert trainer.global_step == 6
    assert good.rows == undisturbed.rows
    assert good.hparams == undisturbed.hparams
    assert good.checkpoints == undisturbed.checkpoints
    assert good.ends == ["success"]
    assert torch.load(checkpoints.best_model_path, weights_only=True)["global_step"] == 6
    if "log_metrics" not in names:
        assert broken.rows == undisturbed.rows
    if "finalize" not in names:
        assert broken.ends == ["success"]


def test_it_is_reported_by_name_once(tmp_path: Any) -> None:
    warned.clear()
    with pytest.warns(UserWarning, match="A logger never ends a run") as caught:
        fit(tmp_path, [Broken(tmp_path, frozenset({"log_hyperparams", "version", "save"}), OSError, 0)])
    said = [str(one.message) for one in caught]
    for name in ("log_hyperparams", "version", "save"):
        assert sum(f"Broken.{name} failed: OSError: no {name}. A logger never ends a run" in one for one in said) == 1
    assert (tmp_path / "checkpoints").is_dir(), "as without a logger"


def test_a_wrong_argument_of_a_logger_is_said_before_any_work(tmp_path: Any) -> None:
    for name in ("experiment", "log_hyperparams", "save", "keep_in", "version"):
        with pytest.raises(ConfigurationError, match=f"no {name}"):
            fit(tmp_path, [Broken(tmp_path, frozenset({name}), ConfigurationError, 0)])


class Leaves(Kept):
    def finalize(self, status: str) -> None:
        super().finalize(status)
        raise SystemExit(7)


def test_one_that_leaves_while_it_is_finalized_takes_no_turn_from_the_others(tmp_path: Any) -> None:
    loggers: list[Any] = [Leaves(tmp_path), Kept(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, loggers)
    assert caught.value.code == 7
    assert [logger.ends for logger in loggers] == [["success"], ["success"]]
