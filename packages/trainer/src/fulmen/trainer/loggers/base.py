"""Logger, as the trainer uses it: fabric's, with a say in when it opens and what happens to checkpoints."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from fulmen.fabric.loggers.base import Logger as FabricLogger
from fulmen.fabric.loggers.base import SilentExperiment
from fulmen.fabric.loggers.base import rank_zero_experiment as rank_zero_experiment


class Logger(FabricLogger):
    """Base of the trainer's loggers; subclass it to bring your own.

    `opens_first`: is its experiment opened before the callbacks' `setup`, because they read its folder or its id?
    """

    opens_first: ClassVar[bool] = False

    @property
    def save_dir(self) -> str | None:
        """The folder under which this logger writes; None if it writes no files."""
        return None

    def keep_in(self, folder: str) -> None:
        """A run begins, and `folder` is the Trainer's: for loggers that keep files and were given no folder."""
        return None

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """A checkpoint callback has saved: the place to upload it."""
        return None


class DummyLogger(Logger):
    """Takes everything and writes nothing: the logger of `Trainer(fast_dev_run=True)`."""

    def __init__(self) -> None:
        super().__init__()
        self._experiment = SilentExperiment()

    @property
    def experiment(self) -> SilentExperiment:
        """Takes every call."""
        return self._experiment

    @property
    def name(self) -> str:
        """Empty."""
        return ""

    @property
    def version(self) -> str:
        """Empty."""
        return ""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""
        return None

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""
        return None

    def __getitem__(self, idx: int) -> "DummyLogger":
        return self  # `trainer.loggers[0].experiment` style chains go on

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)  # copying and pickling ask for dunders, and must not get a function
        return _do_nothing


def _do_nothing(*_: Any, **__: Any) -> None:
    return None


def merge_dicts(
    dicts: Sequence[Mapping[str, Any]],
    agg_key_funcs: Mapping[str, Callable[[Sequence[Any]], Any]] | None = None,
    default_func: Callable[[Sequence[float]], float] = statistics.mean,
) -> dict[str, Any]:
    """One dict of many: under each key, the aggregate of the values that they hold there; nested dicts are merged too.

    Args:
        dicts: They may have different keys.
        agg_key_funcs: How to aggregate, by key; nested as the dicts are.
        default_func: How to aggregate under all other keys.

    >>> merge_dicts([{"a": 1, "b": 2}, {"a": 3}], agg_key_funcs={"a": max})
    {'a': 3, 'b': 2}
    """
    functions = agg_key_funcs or {}
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in dicts for key in one):
        values = [one[key] for one in dicts if one.get(key) is not None]
        function: Any = functions.get(key)
        if values and all(isinstance(value, Mapping) for value in values):
            merged[key] = merge_dicts(values, function, default_func)
        elif values:
            merged[key] = (function or default_func)(values)
    return merged
