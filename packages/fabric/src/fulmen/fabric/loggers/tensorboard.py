"""Metrics, hyperparameters and the graph of a model in TensorBoard's event files."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from fulmen.fabric.arguments import check_amount, check_count, check_flag, check_location
from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, MissingPackageError
from fulmen.fabric.filesystem import join
from fulmen.fabric.loggers.base import rank_zero_experiment
from fulmen.fabric.loggers.held_rows import HeldRows
from fulmen.fabric.loggers.params import add_prefix, as_number, flatten_params, params_dict, printable_params
from fulmen.fabric.loggers.versions import VersionedLogger
from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.rank_zero import rank_zero_only, rank_zero_warn

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import SummaryWriter

# A row at a time costs more than all else in it: each one wakes the thread of the writer.
_HOLD_S = 1.0
_MAX_HELD = 1000
_OF_THE_WRITER = ("comment", "purge_step", "max_queue", "flush_secs", "filename_suffix")


class TensorBoardLogger(VersionedLogger):
    """Writes `root_dir/name/version_N/sub_dir/events.out.tfevents...`.

    Rows are on the disk a second after they were logged: who kills the process loses that second. `save`, `finalize`,
    a look at `experiment` and the end of the process write them at once.

    Args:
        root_dir: The folder of all experiments.
        name: The folder of this experiment below it; None or "" for none.
        version: A number N for the folder `version_N`, or its name. None takes the next free number, and the folder
            with it: runs that start at the same time get different ones.
        default_hp_metric: Log the metric `hp_metric` with hyperparameters that come without metrics, for TensorBoard
            shows none without one.
        prefix: Stands before the name of each metric, with "-" between.
        sub_dir: A folder for the events below that of the run.
        kwargs: As for `torch.utils.tensorboard.SummaryWriter`: `filename_suffix`, `purge_step`, ... Rows wait
            `flush_secs` at most (1), and `max_queue` of them (1000).

    Raises:
        ArgumentTypeError: If an argument is unknown or has another type.
        ConfigurationError: If `flush_secs` or `max_queue` is negative.
        MissingPackageError: If TensorBoard is not installed.
    """

    LOGGER_JOIN_CHAR = "-"
    saves_by_itself = True

    def __init__(
        self,
        root_dir: str | Path,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root_dir, name, version, prefix)
        check_flag(self, "default_hp_metric", default_hp_metric)
        if sub_dir is not None:
            check_location(self, "sub_dir", sub_dir, "It is a folder for the events below that of the run.")
        for unknown in kwargs.keys() - _OF_THE_WRITER:
            raise ArgumentTypeError(
                f"{type(self).__name__}({unknown}={kwargs[unknown]!r}) is unknown. Further arguments go to"
                " torch.utils.tensorboard.SummaryWriter, which is told the folder by the logger."
                f" Pass {', '.join(_OF_THE_WRITER)}, or leave it out."
            )
        kwargs = {"flush_secs": _HOLD_S, "max_queue": _MAX_HELD, **kwargs}
        check_amount(self, "flush_secs", kwargs["flush_secs"], "So many seconds a row waits before it is written.")
        check_count(self, "max_queue", kwargs["max_queue"], "So many rows wait at most; 0 is no limit.", lowest=0)
        if not is_installed("tensorboard"):
            raise MissingPackageError(
                f"{type(self).__name__}({self.root_argument}={os.fspath(root_dir)!r}) needs the package 'tensorboard'."
                " It is not installed here. Install it with `python -m pip install tensorboard`, or use CSVLogger."
            )
        self._default_hp_metric = default_hp_metric
        self._sub_dir = None if sub_dir is None else os.fspath(sub_dir)
        self._kwargs = kwargs
        self._experiment: SummaryWriter | None = None
        self._held = self._holding()

    def _holding(self) -> HeldRows[_Row]:
        return HeldRows(self._write_rows, self._kwargs["flush_secs"], self._kwargs["max_queue"] or sys.maxsize)

    @property
    def sub_dir(self) -> str | None:
        """The folder of the events below that of the run."""
        return self._sub_dir

    @property
    def log_dir(self) -> str:
        """The folder of the events."""
        run = super().log_dir
        path = run if self._sub_dir is None else join(run, self._sub_dir)
        return os.path.expanduser(os.path.expandvars(path))

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer, made at the first look; on processes other than rank zero, something that takes every call.

        >>> logger.experiment.add_histogram("weights", weights, step)  # doctest: +SKIP
        """
        self._held.write()
        return self._writer()

    def _writer(self) -> SummaryWriter:
        if self._experiment is None:
            from torch.utils.tensorboard import SummaryWriter

            with self._saying_where():
                self._experiment = SummaryWriter(log_dir=self.log_dir, **self._kwargs)
            self._kwargs.pop("purge_step", None)  # what the run itself has written since is not purged
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """One scalar per name; a dict of numbers becomes several curves in one chart.

        Raises:
            ConfigurationError: If a value is no number.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._writer()  # what cannot be written is said by the first row
        curves: list[Summary.Value] = []
        charts: dict[str, dict[str, float]] = {}
        for name, value in add_prefix(metrics, self._prefix, self.LOGGER_JOIN_CHAR).items():
            try:
                if isinstance(value, Mapping):
                    charts[name] = {key: _curve(key, each).simple_value for key, each in value.items()}
                else:
                    curves.append(_curve(name, value))
            # What protobuf raises depends on what it was given.
            except Exception as error:
                raise ConfigurationError(
                    f"log_metrics({{{name!r}: {value!r}}}) cannot be written. TensorBoard takes a number, a tensor of"
                    f" one element, or a dict of these, and it is a {type(value).__name__} ({error}). Convert it first,"
                    " or use the methods of `logger.experiment`."
                ) from error
        at = None if step is None else int(step)
        self._held.add(_Row(Event(wall_time=time.time(), step=at, summary=Summary(value=curves)), charts))

    def _write_rows(self, rows: Sequence[_Row]) -> None:
        writer: Any = self._writer()
        try:
            for event, charts in rows:
                if event.summary.value and writer.file_writer is not None:
                    writer.file_writer.add_event(event, walltime=event.wall_time)
                else:  # it was closed, and opens again by a method of its own
                    for value in event.summary.value:
                        writer.add_scalar(value.tag, value.simple_value, event.step, event.wall_time)
                for name, curves in charts.items():
                    writer.add_scalars(name, curves, event.step, event.wall_time)
            writer.flush()
        except Exception:
            self._experiment = None  # its thread has ended, and takes nothing more: another one gets these rows
            raise

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Show the run in the table of hyperparameters.

        Args:
            params: Nested ones are flattened; what is no number or text is shown as text.
            metrics: To compare runs by. None takes `hp_metric`, unless the logger was told otherwise.
            step: Of the metrics.
        """
        flat = printable_params(flatten_params(params_dict(params)))
        if metrics is None:
            metrics = {"hp_metric": -1} if self._default_hp_metric else {}
        elif not isinstance(metrics, dict):
            metrics = {"hp_metric": metrics}
        if not metrics:
            return
        self.log_metrics(metrics, 0 if step is None else step)
        from torch.utils.tensorboard.summary import hparams

        shown = add_prefix(metrics, self._prefix, self.LOGGER_JOIN_CHAR)
        writer: Any = self.experiment
        for summary in hparams(flat, shown):
            writer.file_writer.add_summary(summary)

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Trace the model and show its graph.

        Args:
            model: Must be traceable by `torch.jit.trace`.
            input_array: A batch to trace it with; None takes the model's `example_input_array`, and warns if it has
                none.
        """
        example = getattr(model, "example_input_array", None) if input_array is None else input_array
        if example is None:
            rank_zero_warn(
                f"The graph of this {class_name(model)} is not logged: it is traced with a batch, and there is none."
                " Pass input_array, or set `example_input_array` on the model."
            )
            return
        writer: Any = self.experiment
        writer.add_graph(model, example)

    @rank_zero_only
    def save(self) -> None:
        """Write what is held back."""
        self._held.write()
        if self._experiment is not None:
            self._experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is held back, and close the file. What is logged later opens it again."""
        self._held.write()
        if self._experiment is not None:
            self._experiment.flush()
            self._experiment.close()

    def __getstate__(self) -> dict[str, Any]:
        # The writer has a thread, which cannot be sent to another process; the rows that wait are written by this one.
        return {name: value for name, value in self.__dict__.items() if name != "_held"} | {"_experiment": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._held = self._holding()


def _curve(name: str, value: Any) -> Summary.Value:
    from tensorboard.compat.proto.summary_pb2 import Summary

    number = as_number(value)
    if number is None:
        raise TypeError("protobuf takes None for 0")
    return Summary.Value(tag=name, simple_value=number)


class _Row(NamedTuple):
    """What one call has logged."""

    event: Event
    charts: Mapping[str, dict[str, float]]  # dicts of numbers, each several curves in one chart
