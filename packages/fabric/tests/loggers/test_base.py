"""A logger of one's own."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from fulmen.fabric.loggers.base import Logger, rank_zero_experiment
from fulmen.fabric.rank_zero import rank_zero_only


class Remembering(Logger):
    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.num_saves = 0

    @property
    def name(self) -> str:
        return "n"

    @property
    def version(self) -> int:
        return 3

    @property
    @rank_zero_experiment
    def experiment(self) -> list[Any]:
        return self.rows

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.experiment.append((dict(metrics), step))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self.experiment.append(params)

    def save(self) -> None:
        self.num_saves += 1


def test_four_names_are_the_users_and_the_rest_does_nothing() -> None:
    assert Logger.__abstractmethods__ == {"name", "version", "log_metrics", "log_hyperparams"}
    logger = Remembering()
    logger.log_graph(torch.nn.Linear(1, 1))
    assert (logger.root_dir, logger.log_dir, logger.group_separator) == (None, None, "/")
    logger.finalize("success")
    assert logger.num_saves == 1


def test_the_experiment_is_silent_on_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = Remembering()
    logger.log_metrics({"a": 1.0}, 2)
    assert logger.experiment is logger.rows
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger.log_metrics({"a": 2.0}, 3)
    silent: Any = logger.experiment
    silent.anything(1, key=2)
    silent["key"] = 1
    assert silent["key"]["other"].method() is None
    assert logger.rows == [({"a": 1.0}, 2)]
