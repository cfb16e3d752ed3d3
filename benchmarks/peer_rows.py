"""The rows of peers.py: which framework does a job of peer_work.py by which function."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from peer_others import with_ignite, with_keras, with_skorch, with_transformers
from peer_runs import predict_by_hand, train_by_hand, validate_by_hand, with_accelerate, with_fabric, with_trainer
from peer_work import Job
from step_overhead import SETTINGS

Run = Callable[[Job], None]


@dataclass(frozen=True, slots=True)
class Framework:
    """One row. `needs` is what `pip install` calls the package; `exact`: it must come to the plain loop's weights."""

    key: str
    title: str
    module: str  # what a program that uses it imports
    train: Run
    validate: Run
    predict: Run
    needs: str = ""
    paired: bool = False
    exact: bool = True


def rows_of(key: str, title: str, module: str, run: Callable[..., None], **options: Any) -> Framework:
    """A row whose function takes what to do as its last argument but one."""
    train, validate, predict = (functools.partial(run, do) for do in ("train", "validate", "predict"))
    return Framework(key, title, module, train, validate, predict, **options)


def trainer_rows(key: str, title: str, module: str, needs: str = "") -> Iterator[Framework]:
    """A Trainer in all settings of step_overhead.py."""
    for setting, words in SETTINGS.items():
        run = functools.partial(with_trainer, module, setting)
        yield rows_of(f"{key}{setting}", f"{title}Trainer, {words}", module, run, needs=needs)


def two_settings(key: str, title: str, module: str, run: Callable[..., None], **options: Any) -> Iterator[Framework]:
    """Nothing but the loop, and what it draws and keeps when asked for little."""
    for setting, words in {"off": "all off", "bar": "with bar"}.items():
        yield rows_of(f"{key}.{setting}", f"{title}, {words}", module, functools.partial(run, setting), **options)


FRAMEWORKS: tuple[Framework, ...] = (
    Framework("plain", "the plain loop again", "torch", train_by_hand, validate_by_hand, predict_by_hand),
    rows_of("fabric", "**Fulmen** Fabric", "fulmen.fabric", functools.partial(with_fabric, "fulmen.fabric")),
    *trainer_rows("", "**Fulmen** ", "fulmen.trainer"),
    rows_of(
        "lightning.fabric",
        "Lightning Fabric",
        "lightning.fabric",
        functools.partial(with_fabric, "lightning.fabric"),
        needs="lightning",
    ),
    *trainer_rows("lightning.", "Lightning ", "lightning.pytorch", "lightning"),
    rows_of("accelerate", "Accelerate", "accelerate", with_accelerate, needs="accelerate"),
    *two_settings("ignite", "Ignite", "ignite.engine", with_ignite, needs="pytorch-ignite"),
    *two_settings(
        "transformers", "Transformers Trainer", "transformers", with_transformers, needs="transformers", paired=True
    ),
    *two_settings("skorch", "skorch", "skorch", with_skorch, needs="skorch", paired=True),
    *two_settings("keras", "Keras on torch", "keras", with_keras, needs="keras", paired=True, exact=False),
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No advice from anybody: which settings to take was decided."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
