"""Metrics in a CSV file: one row per call, one column per name, readable while the run goes on."""

from __future__ import annotations

import csv
import io
import os
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from fulmen.fabric.arguments import check_count
from fulmen.fabric.filesystem import (
    atomic_open,
    exists,
    get_filesystem,
    is_local,
    join,
    local_path,
    make_dirs,
    remove,
)
from fulmen.fabric.loggers.base import rank_zero_experiment
from fulmen.fabric.loggers.growing_file import GrowingFile
from fulmen.fabric.loggers.params import add_prefix, as_number
from fulmen.fabric.loggers.versions import VersionedLogger
from fulmen.fabric.loggers.waiting_rows import WaitingRows, WorkRation, read_waiting_rows
from fulmen.fabric.rank_zero import rank_zero_only, rank_zero_warn


class CSVLogger(VersionedLogger):
    """Writes `root_dir/name/version_N/metrics.csv`.

    Args:
        root_dir: The folder of all experiments.
        name: The folder of this experiment below it; None or "" for none.
        version: A number N for the folder `version_N`, or its name. None takes the next free number, and the folder
            with it: runs that start at the same time get different ones.
        prefix: Stands before the name of each metric, with "-" between.
        flush_logs_every_n_steps: Rows are written when so many steps have passed since the last time.

    Raises:
        ArgumentTypeError: If an argument has another type.
        ConfigurationError: If `flush_logs_every_n_steps` is below 1.
    """

    LOGGER_JOIN_CHAR = "-"

    def __init__(
        self,
        root_dir: str | Path,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(root_dir, name, version, prefix)
        check_count(self, "flush_logs_every_n_steps", flush_logs_every_n_steps, "Rows are written after so many steps.")
        self._experiment: MetricsFile | None = None
        self._flush_logs_every_n_steps = flush_logs_every_n_steps

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsFile:
        """The file being written; on processes other than rank zero, something that takes every call."""
        if self._experiment is None:
            with self._saying_where():
                self._experiment = MetricsFile(self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Not possible: a table of metrics has no place for hyperparameters.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.log_hyperparams({params!r}) has nowhere to write to. A CSV file of metrics has no"
            " place for hyperparameters. Write them to a file of your own, or use another logger for them."
        )

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """One row of the file; tensors of one element are read. Without a step, such rows are counted from 0."""
        experiment: MetricsFile = self.experiment
        experiment.log_metrics(add_prefix(metrics, self._prefix, self.LOGGER_JOIN_CHAR), step)
        if experiment.num_steps_unwritten >= self._flush_logs_every_n_steps:
            try:
                self.save()
            except Exception:
                experiment.metrics.pop()  # whoever tries again brings this row again
                raise

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are held back; see `MetricsFile` for those with new columns."""
        self.experiment.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that are held back, if there was anything to log."""
        if self._experiment is not None:
            self.save()
            self._experiment.close()


class MetricsFile:
    """A CSV file that grows at its end. A new name is a new column, for which the whole file is written anew.

    That may take a hundredth of the time that passes. Until it is due again, rows wait in `metrics.waiting.jsonl`
    beside the file, and so does what comes after them: a new name costs as little as a known one.

    A local file that somebody removes in the middle of a run is written again, with a warning and all its rows.

    Args:
        log_dir: Its folder, which is made. A file of an earlier run there is removed, with a warning.
    """

    NAME_METRICS_FILE = "metrics.csv"
    NAME_WAITING_FILE = "metrics.waiting.jsonl"

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir
        self.metrics: list[dict[str, Any]] = []  # not written yet
        self.metrics_keys: list[str] = []  # the columns of the file
        self.metrics_file_path = join(log_dir, self.NAME_METRICS_FILE)
        self._waiting = WaitingRows(join(log_dir, self.NAME_WAITING_FILE))
        self._ration = WorkRation(share=0.01, burst_s=0.05)
        self._num_counted = 0
        self._first_step: int | None = None
        self._file = GrowingFile(local_path(self.metrics_file_path)) if is_local(log_dir) else None
        if exists(self.metrics_file_path):
            rank_zero_warn(
                f"The folder {log_dir!r} exists and is not empty: {self.NAME_METRICS_FILE} of an earlier run is in it."
                " That file is removed, because this run has the same version. Pass another version to keep both."
            )
            remove(self.metrics_file_path)
        self._waiting.clear()
        make_dirs(log_dir)

    @property
    def num_steps_unwritten(self) -> int:
        """How many steps the rows that are held back reach over; at least one for each row."""
        if not self.metrics or self._first_step is None:
            return 0
        return max(int(self.metrics[-1]["step"]) - self._first_step + 1, len(self.metrics))

    def log_metrics(self, metrics_dict: Mapping[str, Any], step: int | None = None) -> None:
        """Hold one row; see `CSVLogger.log_metrics`."""
        if step is None:
            step = self._num_counted
            self._num_counted += 1
        row = {name: as_number(value) for name, value in metrics_dict.items()}
        row["step"] = step
        if self._first_step is None:
            self._first_step = step
        self.metrics.append(row)

    def save(self) -> None:
        """Write the rows that are held back: to the file, or to those that wait for new columns.

        Raises:
            OSError: If that fails. The rows are still held back, and the file is as it was.
        """
        self._look_after_the_file()
        rows = self.metrics
        if not self._waiting.rows and (not rows or self._append(rows)):
            pass
        elif self._ration.is_open:
            self._widen([*self._waiting.rows, *rows])
        elif rows:
            self._waiting.add(rows)
        if rows:
            self._first_step = int(rows[-1]["step"]) + 1
            self.metrics = []

    def restored(self) -> None:
        """Somebody had removed the folder, and it is there again: write what else belongs into it."""

    def close(self) -> None:
        """Nothing waits any more, and the file is let go of; the next row opens it again."""
        if self._waiting.rows:
            self._widen(self._waiting.rows)
        if self._file is not None:
            self._file.close()

    def _look_after_the_file(self) -> None:
        """If somebody has removed it, or its folder, it is made again."""
        if self._file is None:
            return
        if self._file.restore():
            self.restored()
        elif not self._file.is_there:  # removed while it was closed, and nobody wrote it
            make_dirs(self.log_dir)
            self.metrics_keys = []

    def _append(self, rows: list[dict[str, Any]]) -> bool:
        """Write these at the end of the file, if it has their columns."""
        if self._file is None:  # object stores cannot append
            return False
        names = {name for row in rows for name in row}
        columns = self.metrics_keys or sorted(names)
        if not names <= set(columns):
            return False
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        if not self.metrics_keys:
            writer.writerow(columns)
        writer.writerows(_cells(rows, columns))
        self._file.append(text.getvalue())
        self.metrics_keys = columns
        return True

    def _widen(self, rows: list[dict[str, Any]]) -> None:
        """Write the file anew, with the columns that these need, and these at its end."""
        begun_s = time.monotonic()
        columns = sorted({name for row in rows for name in row} | set(self.metrics_keys))
        with atomic_open(self.metrics_file_path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            if self.metrics_keys and exists(self.metrics_file_path):
                with _open_text(self.metrics_file_path) as written:
                    # By the place of a cell and not by its name: with hundreds of columns that is ten times faster.
                    before = csv.reader(written)
                    place = {name: index for index, name in enumerate(next(before, []))}
                    # What is new is the empty cell behind the last one.
                    places = [place.get(name, len(place)) for name in columns]
                    writer.writerows([cells[index] for index in places] for row in before if (cells := [*row, ""]))
            writer.writerows(_cells(rows, columns))
        self.metrics_keys = columns
        if self._file is not None:
            self._file.reopen()
        with suppress(OSError):  # the table has the rows now; who reads both files sees that it has their columns
            self._waiting.clear()
        self._ration.spend(time.monotonic() - begun_s)


def read_metrics(csv_path: str) -> Iterator[dict[str, Any]]:
    """Every row that a `CSVLogger` has written: those of the table, then those that wait for new columns beside it.

    At any time of a run, and also when it was killed.

    Args:
        csv_path: The table, local or remote.

    Returns:
        Its cells by column, as text; what waited as it was logged.
    """
    with _open_text(csv_path) as file:
        table = csv.reader(file)
        columns = next(table, [])
        waiting = read_waiting_rows(join(os.path.dirname(csv_path), MetricsFile.NAME_WAITING_FILE))
        written = set()
        for cells in table:
            if waiting:
                written.add(tuple(cells))
            yield dict(zip(columns, cells, strict=False))
    for row in waiting:
        cells = ["" if row.get(name) is None else str(row[name]) for name in columns]
        # Who was killed right after it had taken rows in has left them here, too.
        if row.keys() - set(columns) or tuple(cells) not in written:
            yield row


def _cells(rows: Iterable[dict[str, Any]], columns: list[str]) -> Iterable[list[Any]]:
    return ([row.get(name, "") for name in columns] for row in rows)


def _open_text(path: str) -> IO[str]:
    if is_local(path):
        return open(local_path(path), newline="", encoding="utf-8")
    remote: IO[str] = get_filesystem(path).open(path, "r", newline="", encoding="utf-8")
    return remote
