"""Metrics in CSV files, as they lie on the disk."""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.loggers.csv import CSVLogger, MetricsFile, read_metrics
from fulmen.fabric.loggers.waiting_rows import WorkRation, read_waiting_rows
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


class Watched(MetricsFile):
    """Counts how often it is written anew, by a clock of its own."""

    now_s = 0.0

    def __init__(self, log_dir: str, work_s: float) -> None:
        super().__init__(log_dir)
        self.num_widened = 0
        self._work_s = work_s
        self._ration = WorkRation(share=0.01, burst_s=0.0, clock=lambda: self.now_s)

    def _widen(self, rows: list[dict[str, Any]]) -> None:
        super()._widen(rows)
        self.num_widened += 1
        self._ration = WorkRation(share=0.01, burst_s=0.0, clock=lambda: self.now_s)
        self._ration.spend(self._work_s)


def everything(file: MetricsFile) -> list[str]:
    """The steps in the file and beside it, in order."""
    return [str(row["step"]) for row in read_metrics(file.metrics_file_path)]


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 40)), min_size=1, max_size=40))
@settings(deadline=None, max_examples=40)
def test_new_names_write_the_file_anew_no_more_often_than_the_clock_allows(tmp_path_factory: Any, calls: Any) -> None:
    """Whatever comes when: at any moment every row is in the file or beside it, once, and in order."""
    file = Watched(str(tmp_path_factory.mktemp("run")), work_s=0.1)
    for step, (name, passed_s) in enumerate(calls):
        file.now_s += passed_s
        file.log_metrics({f"name_{name}": step}, step)
        file.save()
        assert everything(file) == [str(number) for number in range(step + 1)]
        assert file.num_widened <= 1 + file.now_s / 10
    file.close()
    header, *rows = table(Path(file.metrics_file_path))
    assert header == sorted({"step", *(f"name_{name}" for name, _ in calls)})
    assert [
        dict(zip(header, row, strict=True))[f"name_{name}"] for row, (name, _) in zip(rows, calls, strict=True)
    ] == [str(step) for step in range(len(calls))]
    assert [path.name for path in Path(file.log_dir).iterdir()] == ["metrics.csv"]


def test_hundreds_of_new_names_write_the_file_anew_a_few_times(tmp_path: Path) -> None:
    file = Watched(str(tmp_path), work_s=1.0)
    inodes = set()
    for step in range(300):
        file.log_metrics({f"name_{step}": step}, step)
        file.save()
        inodes.add(Path(file.metrics_file_path).stat().st_ino)
    assert file.num_widened == 1  # no time has passed
    file.close()
    assert file.num_widened == 2
    assert len(table(tmp_path / "metrics.csv")[300]) == 301


def kill_while_waiting(folder: Path) -> None:
    file = Watched(str(folder), work_s=100.0)
    for step in range(50):
        file.log_metrics({"loss": step, **({f"name_{step}": 1.0} if step % 10 == 0 else {})}, step)
        file.save()
    os.kill(os.getpid(), signal.SIGKILL)


def test_kill_9_loses_no_row_that_was_flushed(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=kill_while_waiting, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert read_waiting_rows(str(tmp_path / "metrics.waiting.jsonl"))
    assert [int(row["step"]) for row in read_metrics(str(tmp_path / "metrics.csv"))] == list(range(50))
    with pytest.warns(UserWarning, match="removed"):  # a run of the same version begins
        MetricsFile(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_for_a_while_costs_no_row(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version="v", flush_logs_every_n_steps=1)
    for step in range(2):
        logger.log_metrics({"loss": step}, step)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # The file may grow by three bytes more: the next row does not fit.
    resource.setrlimit(resource.RLIMIT_FSIZE, (Path(logger.log_dir, "metrics.csv").stat().st_size + 3, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            logger.log_metrics({"loss": 2}, 2)
        with pytest.raises(OSError, match="too large"):
            logger.log_metrics({"loss": 2, "new": 1}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    for step in range(2, 4):  # tried again
        logger.log_metrics({"loss": step}, step)
    logger.finalize("success")
    assert table(Path(logger.log_dir, "metrics.csv")) == [["loss", "step"], *([str(n), str(n)] for n in range(4))]


def test_waiting_rows_that_cannot_be_removed_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(path)

    file = MetricsFile(str(tmp_path))
    monkeypatch.setattr(WorkRation, "is_open", property(lambda ration: file.metrics_keys == []))
    for step, name in enumerate(["a", "b", "c"]):
        file.log_metrics({name: step}, step)
        file.save()
    assert (tmp_path / "metrics.waiting.jsonl").exists()
    monkeypatch.setattr("fulmen.fabric.loggers.waiting_rows.remove", refuse)
    file.close()
    file.save()
    assert everything(file) == ["0", "1", "2"]


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


def test_on_an_object_store_a_killed_run_keeps_every_row(bucket: str) -> None:
    file = Watched(f"{bucket}/killed", work_s=100.0)
    for step in range(6):
        file.log_metrics({"loss": step / 2, **({"val": 1} if step == 4 else {})}, step)
        file.save()
    # It has got no further. Most rows need no new column; an object store cannot append.
    rows = list(read_metrics(file.metrics_file_path))
    assert [(str(row["step"]), float(row["loss"]), row.get("val")) for row in rows] == [
        (str(step), step / 2, 1 if step == 4 else None) for step in range(6)
    ]
    file.close()
    rows = list(read_metrics(file.metrics_file_path))
    assert [(row["step"], row["loss"], row["val"]) for row in rows] == [
        (str(step), str(step / 2), "1" if step == 4 else "") for step in range(6)
    ]


def test_rows_that_were_taken_in_right_before_a_kill_are_read_once(tmp_path: Path) -> None:
    """The table is written anew before the file beside it goes."""
    file = Watched(str(tmp_path), work_s=100.0)
    for step in range(4):
        new = {1: {"c": "text"}, 2: {"d": True}}.get(step, {})
        file.log_metrics({"a": step / 3, "b": None if step else math.inf, **new}, step)
        file.save()
    beside = tmp_path / "metrics.waiting.jsonl"
    content = beside.read_text()
    assert content.count("\n") == 2
    file.close()
    beside.write_text(content)
    assert everything(file) == ["0", "1", "2", "3"]
    beside.write_text(content + '{"a": 9, "step": 4}\n{"a": ')
    assert everything(file) == ["0", "1", "2", "3", "4"]


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


@pytest.mark.parametrize("names", [["a"] * 6, ["a", "a", "b", "c", "c", "c"]])
@pytest.mark.parametrize("removed_at", [1, 3, 6])
def test_a_folder_that_is_removed_in_the_run_is_there_again_with_all_its_rows(
    tmp_path: Path, names: list[str], removed_at: int
) -> None:
    logger = CSVLogger(tmp_path, version="v", flush_logs_every_n_steps=1)
    for step, name in enumerate(names):
        if step == removed_at:
            shutil.rmtree(tmp_path)
            with pytest.warns(UserWarning, match=r"metrics\.csv' was removed while .* Nothing of it is lost"):
                logger.log_metrics({name: step}, step)
        else:
            logger.log_metrics({name: step}, step)
    if removed_at == len(names):
        shutil.rmtree(tmp_path)
        with pytest.warns(UserWarning, match="Nothing of it is lost"):
            logger.finalize("success")
    logger.finalize("success")
    rows = list(read_metrics(os.path.join(logger.log_dir, "metrics.csv")))
    assert [row["step"] for row in rows] == [str(step) for step in range(len(names))]
    assert [row[name] for row, name in zip(rows, names, strict=True)] == [row["step"] for row in rows]


def test_a_folder_that_was_removed_after_the_run_begins_anew(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version="v", flush_logs_every_n_steps=1)
    logger.log_metrics({"a": 0}, 0)
    logger.finalize("success")
    shutil.rmtree(tmp_path)
    logger.log_metrics({"a": 1}, 1)
    logger.finalize("success")
    assert table(Path(logger.log_dir, "metrics.csv")) == [["a", "step"], ["1", "1"]]


def test_another_file_in_its_place_is_said_and_left_alone(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version="v", flush_logs_every_n_steps=1)
    logger.log_metrics({"a": 0}, 0)
    other = Path(logger.log_dir, "metrics.csv")
    other.unlink()
    other.write_text("of somebody else")
    with pytest.raises(FileExistsError, match="was replaced by another one"):
        logger.log_metrics({"a": 1}, 1)
    assert other.read_text() == "of somebody else"
    other.unlink()
    with pytest.warns(UserWarning, match="Nothing of it is lost"):
        logger.log_metrics({"a": 1}, 1)
    logger.finalize("success")
    assert [row["a"] for row in read_metrics(str(other))] == ["0", "1"]
