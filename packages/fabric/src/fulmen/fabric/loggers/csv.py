"""Metrics in a CSV file: one row per call, one column per name, readable while the run goes on."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Iterable, Mapping
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
from fulmen.fabric.loggers.params import add_prefix, as_number
from fulmen.fabric.loggers.versions import VersionedLogger
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
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are held back."""
        self.experiment.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that are held back, if there was anything to log."""
        if self._experiment is not None:
            self.save()
            self._experiment.close()


class MetricsFile:
    """A CSV file that grows at its end; a row with a new name makes the columns anew.

    Args:
        log_dir: Its folder, which is made. A file of an earlier run there is removed, with a warning.
    """

    NAME_METRICS_FILE = "metrics.csv"

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir
        self.metrics: list[dict[str, Any]] = []  # not written yet
        self.metrics_keys: list[str] = []  # the columns of the file
        self.metrics_file_path = join(log_dir, self.NAME_METRICS_FILE)
        self._num_counted = 0
        self._first_step: int | None = None
        self._appending: IO[str] | None = None  # the open file: opening it for each row would cost more than the row
        if exists(self.metrics_file_path):
            rank_zero_warn(
                f"The folder {log_dir!r} exists and is not empty: {self.NAME_METRICS_FILE} of an earlier run is in it."
                " That file is removed, because this run has the same version. Pass another version to keep both."
            )
            remove(self.metrics_file_path)
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
        """Write the rows that are held back."""
        if not self.metrics:
            return
        rows, self.metrics = self.metrics, []
        self._first_step = int(rows[-1]["step"]) + 1
        names = {name for row in rows for name in row}
        if names <= set(self.metrics_keys) and is_local(self.log_dir):
            if self._appending is None:
                path = local_path(self.metrics_file_path)
                self._appending = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115  # until close()
            self._write(self._appending, rows)
            self._appending.flush()
        else:
            # Names are new a few times in a run: when it validates for the first time, when an epoch ends. Object
            # stores cannot append at all.
            self.metrics_keys = sorted(names | set(self.metrics_keys))
            self.close()
            self._write_anew(rows)

    def close(self) -> None:
        """Let go of the open file; the next row opens it again."""
        if self._appending is not None:
            self._appending.close()
            self._appending = None

    def __getstate__(self) -> dict[str, Any]:
        # An open file cannot be sent to another process.
        return {**self.__dict__, "_appending": None}

    def _write_anew(self, rows: list[dict[str, Any]]) -> None:
        with atomic_open(self.metrics_file_path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.metrics_keys)
            if exists(self.metrics_file_path):
                with _open_text(self.metrics_file_path) as written:
                    # By the place of a cell and not by its name: with hundreds of columns that is ten times faster.
                    before = csv.reader(written)
                    place = {name: index for index, name in enumerate(next(before, []))}
                    # What is new is the empty cell behind the last one.
                    places = [place.get(name, len(place)) for name in self.metrics_keys]
                    writer.writerows([cells[index] for index in places] for row in before if (cells := [*row, ""]))
            self._write(file, rows)

    def _write(self, file: IO[str], rows: Iterable[dict[str, Any]]) -> None:
        csv.DictWriter(file, self.metrics_keys).writerows(rows)


def _open_text(path: str) -> IO[str]:
    if is_local(path):
        return open(local_path(path), newline="", encoding="utf-8")
    remote: IO[str] = get_filesystem(path).open(path, "r", newline="", encoding="utf-8")
    return remote
