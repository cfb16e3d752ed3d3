"""Event files, read back by TensorBoard's own reader."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fulmen.fabric import Fabric
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, MissingPackageError
from fulmen.fabric.loggers import TensorBoardLogger, tensorboard
from fulmen.fabric.rank_zero import rank_zero_only

reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")


def read(root: Path) -> dict[str, Any]:
    """Folder below `root` to what its event files hold."""
    found = {}
    for path in root.rglob("events.out.tfevents.*"):
        events = reader.EventAccumulator(str(path.parent))
        events.Reload()
        found[str(path.parent.relative_to(root))] = events
    return found


def scalars(events: Any) -> dict[str, list[tuple[int, float]]]:
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def _on_rank_one() -> Iterator[None]:
    rank_zero_only.rank = 1
    yield
    rank_zero_only.rank = 0


def test_scalars_as_the_reference_lays_them_out(tmp_path: Path) -> None:
    """`fabric_tensorboard` of logging_layout.yaml."""
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"m": torch.tensor(0.5)})
    logger.log_hyperparams({"lr": 1})
    logger.finalize("success")
    assert (logger.name, logger.version, logger.root_dir) == ("lightning_logs", 0, str(tmp_path))
    assert logger.log_dir == str(tmp_path / "lightning_logs" / "version_0")
    ((folder, events),) = read(tmp_path).items()
    assert folder == "lightning_logs/version_0"
    assert scalars(events) == {"m": [(0, 0.5)], "hp_metric": [(0, -1.0)]}


def test_every_option_as_the_reference_lays_it_out(tmp_path: Path) -> None:
    """`tensorboard_options` of logging_layout.yaml."""
    logger = TensorBoardLogger(
        tmp_path, name="n", version="v", sub_dir="s", prefix="pre", default_hp_metric=False, filename_suffix=".x"
    )
    logger.log_hyperparams({"a": 1, "b": {"c": [1, 2]}}, {"hm": 0.25})
    logger.log_metrics({"m": 2.0, "group": {"x": 1, "y": torch.tensor(2)}}, step=3)
    logger.finalize("success")
    assert (logger.sub_dir, logger.log_dir) == ("s", str(tmp_path / "n" / "v" / "s"))
    assert all(path.name.endswith(".x") for path in (tmp_path / "n" / "v" / "s").glob("events*"))
    assert {folder: scalars(events) for folder, events in read(tmp_path).items()} == {
        "n/v/s": {"pre-hm": [(0, 0.25)], "pre-m": [(3, 2.0)]},
        "n/v/s/pre-group_x": {"pre-group": [(3, 1.0)]},
        "n/v/s/pre-group_y": {"pre-group": [(3, 2.0)]},
    }


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ({"name": None}, "version_0"),
        ({"name": ""}, "version_0"),
        ({"version": 4}, "lightning_logs/version_4"),
        ({"version": "abc"}, "lightning_logs/abc"),
    ],
)
def test_folders_are_those_of_the_reference(tmp_path: Path, arguments: dict[str, Any], folder: str) -> None:
    logger = TensorBoardLogger(tmp_path, **arguments)
    logger.log_metrics({"a": 1})
    logger.finalize("success")
    assert list(read(tmp_path)) == [folder]
    assert logger.name == (arguments.get("name", "lightning_logs") or "")


def test_the_next_run_takes_the_next_folder(tmp_path: Path) -> None:
    assert [TensorBoardLogger(tmp_path).version for _ in range(3)] == [0, 1, 2]


@dataclass
class Options:
    width: int = 3


@pytest.mark.parametrize("metrics", [None, {"acc": 0.5}, 0.75])
def test_hyperparameters_are_shown_flat_and_readable(tmp_path: Path, metrics: Any) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams(Namespace(lr=0.1, options=Options(), layers=[1, 2], act=nn.ReLU, none=None), metrics, step=2)
    logger.finalize("success")
    (events,) = read(tmp_path).values()
    start = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    shown = {name: value.string_value or value.number_value for name, value in start.session_start_info.hparams.items()}
    assert shown == {
        "lr": 0.1,
        "options/width": 3.0,
        "layers": "[1, 2]",
        "act": "<class 'torch.nn.modules.activation.ReLU'>",
        "none": "None",
    }
    expected = {None: {"hp_metric": -1.0}, 0.75: {"hp_metric": 0.75}}.get(
        metrics if not isinstance(metrics, dict) else "", metrics
    )
    assert {name: value for name, [(step, value)] in scalars(events).items()} == expected


def test_without_a_metric_hyperparameters_are_not_shown(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    logger.log_hyperparams({"lr": 1})
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")  # torch.utils.tensorboard knows no other way
def test_the_graph_of_a_module_that_was_set_up(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    fabric = Fabric(accelerator="cpu", precision="bf16-mixed", loggers=logger)
    model = fabric.setup(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    with pytest.warns(UserWarning, match="The graph of this FabricModule is not logged"):
        logger.log_graph(model)
    assert logger._experiment is None
    model.module.example_input_array = torch.ones(1, 2)
    logger.log_graph(model)
    fabric.log_dict({"loss": torch.tensor(1.0), "n": 3}, step=5)
    logger.finalize("success")
    (events,) = read(tmp_path).values()
    assert events.Tags()["graph"]
    assert any("addmm" in node.op or "linear" in node.op for node in read_graph(events).node)
    assert scalars(events) == {"loss": [(5, 1.0)], "n": [(5, 3.0)]}


def read_graph(events: Any) -> Any:
    return events.Graph()


def test_what_is_saved_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, flush_secs=10_000)
    logger.save()
    for step in range(3):
        logger.log_metrics({"loss": step}, step)
        logger.save()
        (events,) = read(tmp_path).values()
        assert scalars(events) == {"loss": [(s, float(s)) for s in range(step + 1)]}
    logger.finalize("success")
    logger.log_metrics({"late": 1}, 9)
    logger.finalize("success")
    assert scalars(next(iter(read(tmp_path).values())))["late"] == [(9, 1.0)]


def wait_until(is_so: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + 60
    while not is_so() and time.monotonic() < ends_s:
        time.sleep(0.02)
    assert is_so()


def test_rows_are_on_the_disk_soon_and_a_killed_process_loses_no_more(tmp_path: Path) -> None:
    code = """
import sys, time
from fulmen.fabric.loggers import TensorBoardLogger
logger = TensorBoardLogger(sys.argv[1])
logger.log_metrics({"loss": 1.0, "group": {"x": 1, "y": 2}}, 0)
logger.log_metrics({"loss": 2.0}, 1)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as process:
        try:
            wait_until(lambda: len(read(tmp_path)) == 3)
            wait_until(lambda: len(scalars(read(tmp_path)["lightning_logs/version_0"]).get("loss", ())) == 2)
        finally:
            process.kill()
    assert {folder: scalars(events) for folder, events in read(tmp_path).items()} == {
        "lightning_logs/version_0": {"loss": [(0, 1.0), (1, 2.0)]},
        "lightning_logs/version_0/group_x": {"group": [(0, 1.0)]},
        "lightning_logs/version_0/group_y": {"group": [(0, 2.0)]},
    }


def test_a_process_that_ends_without_a_word_has_written_its_rows(tmp_path: Path) -> None:
    code = "import sys; from fulmen.fabric.loggers import TensorBoardLogger as T; T(sys.argv[1], flush_secs=999)"
    code += ".log_metrics({'loss': 1.0}, 3)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    assert scalars(read(tmp_path)["lightning_logs/version_0"]) == {"loss": [(3, 1.0)]}


def test_a_row_is_one_event_and_keeps_the_time_at_which_it_was_logged(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, flush_secs=10_000)
    logger.log_metrics({"a": 1, "b": True, "c": 2.5}, 4)
    logged_s = time.time()
    time.sleep(0.05)
    logger.finalize("success")
    [path] = tmp_path.rglob("events*")
    *_, event = loader.LegacyEventFileLoader(str(path)).Load()
    assert [(value.tag, value.simple_value) for value in event.summary.value] == [("a", 1.0), ("b", 1.0), ("c", 2.5)]
    assert event.step == 4
    assert event.wall_time <= logged_s


def test_a_look_at_the_writer_and_a_full_queue_write_what_is_held(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, flush_secs=10_000, max_queue=2)
    logger.log_metrics({"a": 1}, 0)
    logger.experiment.flush()
    assert scalars(read(tmp_path)["lightning_logs/version_0"]) == {"a": [(0, 1.0)]}
    for step in (1, 2):
        logger.log_metrics({"a": 1}, step)
    assert scalars(read(tmp_path)["lightning_logs/version_0"]) == {"a": [(0, 1.0), (1, 1.0), (2, 1.0)]}
    logger.finalize("success")


def test_a_writer_that_has_failed_is_followed_by_another_that_gets_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = TensorBoardLogger(tmp_path, flush_secs=10_000, purge_step=7)
    logger.log_metrics({"a": 1}, 0)
    with monkeypatch.context() as broken:
        broken.setattr(type(logger.experiment), "flush", full_disk)
        logger.log_metrics({"a": 2}, 1)
        for call in (logger.save, lambda: logger.log_metrics({"a": 3}, 2)):
            with pytest.raises(OSError, match="no space"):
                call()
    logger.log_metrics({"a": 4}, 3)
    logger.finalize("success")
    (events,) = read(tmp_path).values()
    assert dict(scalars(events)["a"]) == {0: 1.0, 1: 2.0, 3: 4.0}
    purged = [path for path in tmp_path.rglob("events*") if any(e.HasField("session_log") for e in events_of(path))]
    assert len(purged) == 1


def full_disk(*_: Any) -> None:
    raise OSError("no space")


def events_of(path: Path) -> list[Any]:
    return list(loader.LegacyEventFileLoader(str(path)).Load())


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"flush_secs": "1"}, ArgumentTypeError, r"TensorBoardLogger\(flush_secs='1'\) got a str"),
        ({"flush_secs": -1}, ConfigurationError, r"flush_secs=-1\) is no such number"),
        ({"max_queue": 1.5}, ArgumentTypeError, r"max_queue=1.5\) got a float"),
        ({"max_queue": -1}, ConfigurationError, r"max_queue=-1\) is too small"),
    ],
)
def test_options_of_the_writer_are_checked(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        TensorBoardLogger(tmp_path, **arguments)


@pytest.mark.usefixtures("_on_rank_one")
def test_only_rank_zero_writes(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"a": 1})
    logger.log_hyperparams({"a": 1})
    logger.log_graph(nn.Linear(1, 1), torch.ones(1, 1))
    logger.experiment.add_scalar("a", 1)
    logger.save()
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"a": 1}, 0)
    copied = pickle.loads(pickle.dumps(logger))
    copied.log_metrics({"a": 2}, 1)
    for each in (logger, copied):
        each.finalize("success")
    (events,) = read(tmp_path).values()
    assert scalars(events) == {"a": [(0, 1.0), (1, 2.0)]}


@pytest.mark.parametrize("value", ["text", torch.ones(2), None, object()])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"log_metrics\(\{'bad': .* cannot be written"):
        TensorBoardLogger(tmp_path).log_metrics({"bad": value})


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "is_installed", lambda name: name != "tensorboard")
    with pytest.raises(MissingPackageError, match=r"TensorBoardLogger\(root_dir='.*pip install tensorboard"):
        TensorBoardLogger(tmp_path)
