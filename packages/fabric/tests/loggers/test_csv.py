"""Metrics in CSV files, as they lie on the disk."""

from __future__ import annotations

import csv
import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.loggers.csv import CSVLogger
from fulmen.fabric.rank_zero import rank_zero_only


def table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def on_rank_one() -> Iterator[None]:
    rank_zero_only.rank = 1
    yield
    rank_zero_only.rank = 0


metrics = st.dictionaries(
    st.sampled_from(["loss", "val/acc", "epoch", "a,b", 'quo"te']), st.integers(-9, 9) | st.floats()
)


@given(st.lists(st.tuples(metrics, st.sampled_from(["", "save"])), max_size=12), st.integers(1, 5))
def test_the_file_says_what_was_logged(tmp_path_factory: Any, calls: list[Any], every: int) -> None:
    logger = CSVLogger(tmp_path_factory.mktemp("root"), flush_logs_every_n_steps=every)
    for step, (row, then) in enumerate(calls):
        logger.log_metrics(row, step)
        if then:
            logger.save()
    logger.finalize("success")
    if not calls:
        assert list(Path(logger.root_dir).iterdir()) == []
        return
    with Path(logger.log_dir, "metrics.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        assert reader.fieldnames == sorted({"step"}.union(*(row for row, _ in calls)))
    expected = [{"step": str(step), **{k: str(v) for k, v in row.items()}} for step, (row, _) in enumerate(calls)]
    assert [{name: text for name, text in row.items() if text} for row in rows] == expected


def test_the_layout_is_that_of_the_reference(tmp_path: Path) -> None:
    """`csv_prefix_version_str` of logging_layout.yaml."""
    logger = CSVLogger(tmp_path, name="n", version="v", prefix="pre")
    logger.log_metrics({"m": torch.tensor(1.0)}, step=0)
    logger.save()
    logger.log_metrics({"k": 3, "m": 2.0}, step=5)
    logger.save()
    logger.log_metrics({"z": 1})
    logger.finalize("success")
    assert (logger.name, logger.version, logger.log_dir) == ("n", "v", str(tmp_path / "n" / "v"))
    assert table(tmp_path / "n" / "v" / "metrics.csv") == [
        ["pre-k", "pre-m", "pre-z", "step"],
        ["", "1.0", "", "0"],
        ["3", "2.0", "", "5"],
        ["", "", "1", "0"],
    ]


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ({}, "lightning_logs/version_0"),
        ({"name": ""}, "version_0"),
        ({"name": None}, "version_0"),
        ({"name": "n", "version": 7}, "n/version_7"),
    ],
)
def test_folders_are_those_of_the_reference(tmp_path: Path, arguments: dict[str, Any], folder: str) -> None:
    logger = CSVLogger(tmp_path, **arguments)
    logger.log_metrics({"a": 1})
    logger.save()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.csv")] == [f"{folder}/metrics.csv"]
    assert logger.name == (arguments.get("name", "lightning_logs") or "")


def test_rows_are_appended_while_the_columns_stay(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=10)
    inodes = []
    for step in range(60):
        logger.log_metrics({"loss": step, **({"val": 1} if step >= 30 else {})}, step)
        path = Path(logger.log_dir, "metrics.csv")
        if (step + 1) % 10 == 0:
            assert len(table(path)) == step + 2
            inodes.append(path.stat().st_ino)
    # Written anew once, when "val" came.
    assert len(set(inodes[:3])) == len(set(inodes[3:])) == 1


def test_rows_far_apart_are_written_too(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=100)
    for step in range(0, 1000, 50):
        logger.log_metrics({"loss": step}, step)
    assert len(table(Path(logger.log_dir, "metrics.csv"))) > 15


def test_rows_without_a_step_are_counted_on(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=2)
    for _ in range(5):
        logger.log_metrics({"loss": 1})
    logger.finalize("success")
    assert [row[1] for row in table(Path(logger.log_dir, "metrics.csv"))] == ["step", "0", "1", "2", "3", "4"]


def race(root: Path, number: int, start: Any, versions: Any) -> None:
    logger = CSVLogger(root)
    start.wait()
    logger.log_metrics({"who": number})
    logger.finalize("success")
    versions.put((number, logger.version))


def test_runs_that_start_at_once_get_a_version_each(tmp_path: Path) -> None:
    (tmp_path / "lightning_logs" / "version_3").mkdir(parents=True)
    # Forked: torch is loaded already.
    context = multiprocessing.get_context("fork")
    start, versions = context.Barrier(4), context.Queue()
    racers = [context.Process(target=race, args=(tmp_path, number, start, versions)) for number in range(4)]
    for racer in racers:
        racer.start()
    taken = [versions.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    assert {version for _, version in taken} == {4, 5, 6, 7}
    for number, version in taken:
        assert table(tmp_path / "lightning_logs" / f"version_{version}" / "metrics.csv")[1] == ["0", str(number)]


def test_an_older_file_of_the_same_version_is_removed_with_a_warning(tmp_path: Path) -> None:
    for number in (1, 2):
        logger = CSVLogger(tmp_path, version="v")
        if number == 2:
            with pytest.warns(UserWarning, match="not empty"):
                logger.log_metrics({"b": 2})
        else:
            logger.log_metrics({"a": 1})
        logger.finalize("success")
    assert table(tmp_path / "lightning_logs" / "v" / "metrics.csv") == [["b", "step"], ["2", "0"]]


@pytest.mark.usefixtures("on_rank_one")
def test_only_rank_zero_writes(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1})
    logger.experiment.log_metrics({"a": 1})
    logger.save()
    logger.finalize("success")
    assert logger.version == 0
    assert list(tmp_path.iterdir()) == []


def test_an_object_store_is_written_to(tmp_path: Path) -> None:
    import fsspec

    logger = CSVLogger("memory://test_csv", flush_logs_every_n_steps=1)
    for step in range(3):
        logger.log_metrics({"a": step}, step)
    assert fsspec.open("memory://test_csv/lightning_logs/version_0/metrics.csv", "rb").open().read().split() == [
        b"a,step",
        b"0,0",
        b"1,1",
        b"2,2",
    ]
    assert CSVLogger("memory://test_csv").version == 1


def test_bad_arguments_are_answered_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="flush_logs_every_n_steps=0"):
        CSVLogger(tmp_path, flush_logs_every_n_steps=0)
    with pytest.raises(NotImplementedError, match="lr"):
        CSVLogger(tmp_path).log_hyperparams({"lr": 1})


def test_rows_go_on_through_a_copy_of_a_logger_whose_file_is_open(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version=0)
    for step in range(2):  # the second row is appended, and the file stays open for the next one
        logger.log_metrics({"loss": step}, step)
        logger.save()
    written = tmp_path / "lightning_logs" / "version_0" / "metrics.csv"
    assert table(written) == [["loss", "step"], ["0", "0"], ["1", "1"]]
    copy = pickle.loads(pickle.dumps(logger))
    copy.log_metrics({"loss": 2}, 2)
    copy.finalize("success")
    logger.finalize("success")
    assert table(written)[1:] == [["0", "0"], ["1", "1"], ["2", "2"]]
