"""Where metrics and hyperparameters go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from fulmen.fabric.rank_zero import rank_zero_only

T = TypeVar("T")


class Logger(ABC):
    """Base of all loggers; subclass it to bring your own.

    Only the process of rank zero writes: put `rank_zero_only` on what does.

    `saves_by_itself`: does it write rows within seconds without being told? All others are told by `save`, after each
    row that a Trainer logs.
    """

    saves_by_itself: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str | None:
        """The name of the experiment."""

    @property
    @abstractmethod
    def version(self) -> int | str | None:
        """Which run of the experiment this is."""

    @property
    def root_dir(self) -> str | None:
        """The folder that all experiments are written to; None if nothing is written to files."""
        return None

    @property
    def log_dir(self) -> str | None:
        """The folder of this run; None if nothing is written to files."""
        return None

    @property
    def versions_dir(self) -> str | None:
        """The folder of all versions of the experiment, of which this run is the next; None if its version was given.

        A run that is started anew finds there what the runs before it have left.
        """
        return None

    @property
    def group_separator(self) -> str:
        """What stands between a group and the name of a metric in it."""
        return "/"

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record numbers.

        Args:
            metrics: Names and numbers.
            step: The step they belong to.
        """

    @abstractmethod
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record hyperparameters; the further arguments are the logger's own."""

    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Record the graph of `model`, traced with `input_array`; loggers that cannot do nothing."""
        return None

    def save(self) -> None:
        """Write down what is held back."""
        return None

    def finalize(self, status: str) -> None:
        """Write down what is held back: the run has ended, with `status` "success", "failed" or another word."""
        self.save()


class SilentExperiment:
    """Takes every call and every item, and does nothing: the experiment of processes that do not write."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return _do_nothing

    def __getitem__(self, _: Any) -> SilentExperiment:
        return self

    def __setitem__(self, *_: Any) -> None:
        return None


def _do_nothing(*_: Any, **__: Any) -> None:
    return None


def rank_zero_experiment(fn: Callable[..., T]) -> Callable[..., T]:
    """For the `experiment` of a logger: the real one on rank zero, elsewhere one that takes every call in silence."""

    @wraps(fn)
    def experiment(self: Any) -> T:
        if rank_zero_only.rank == 0:
            return fn(self)
        silent: Any = SilentExperiment()
        return silent  # type: ignore[no-any-return]

    return experiment
