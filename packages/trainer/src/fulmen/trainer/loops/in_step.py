"""Evaluation in which all processes make the same number of steps, though some have fewer batches.

Where parameters are split over processes, each step gathers them from all. A process that has no batch left makes its
last step again, and forgets what came of it: every sample counts once.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.run.context import RunContext


class InStep:
    """Counts the steps of one pass, and makes up for those that other processes make beside.

    Args:
        run: Its strategy says how many processes there are.
        length: How many batches this process has.

    Raises:
        ConfigurationError: If a process does not know how many batches it has, or has none.
    """

    def __init__(self, run: RunContext, length: int | float) -> None:
        strategy = run.strategy
        lengths = strategy.gather_objects(length)
        if math.inf in lengths:
            raise ConfigurationError(
                f"{type(strategy).__name__} cannot evaluate on data without a length. Each step gathers parameters"
                " from all processes, so they must know how many steps there are."
                " Pass limit_val_batches (limit_test_batches, limit_predict_batches) as an int."
            )
        if 0 in lengths and any(lengths):
            raise ConfigurationError(
                f"{type(strategy).__name__} cannot evaluate: the processes have {lengths} batches, and one without any"
                " has no step to take with the others. Use more samples, smaller batches, or fewer processes."
            )
        self._run = run
        self._missing = int(max(lengths))
        self._last: Callable[[], Any] | None = None

    def counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """`step`, whose calls are counted."""

        def call(*args: Any) -> Any:
            self._missing -= 1
            self._last = lambda: step(*args)
            return step(*args)

        return call

    def catch_up(self, module: LightningModule) -> None:
        """Make the steps that other processes make beside, and leave no trace of them."""
        if self._missing <= 0 or self._last is None:
            return
        with _unheard(self._run, module), _metrics_kept(module):
            for _ in range(self._missing):
                self._last()


class _Nobody:
    """Drops what is logged."""

    def log(self, *_: Any, **__: Any) -> None:
        """Nothing."""


@contextmanager
def _unheard(run: RunContext, module: LightningModule) -> Iterator[None]:
    trainer: Any = run.hooks.trainer
    module.attach(trainer, _Nobody())
    try:
        yield
    finally:
        module.attach(trainer, run.metrics)


@contextmanager
def _metrics_kept(module: nn.Module) -> Iterator[None]:
    """Metric objects of torchmetrics that a step updates are afterwards as they were."""
    torchmetrics = sys.modules.get("torchmetrics")
    metrics = [] if torchmetrics is None else [m for m in module.modules() if isinstance(m, torchmetrics.Metric)]
    kept = [{name: _copy(value) for name, value in vars(metric).items() if name[:2] != "__"} for metric in metrics]
    try:
        yield
    finally:
        for metric, attributes in zip(metrics, kept, strict=True):
            vars(metric).update(attributes)


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter):
        return value.clone()
    return list(value) if type(value) is list else value
