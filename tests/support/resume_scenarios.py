"""Fits that can be cut anywhere: modules and callbacks of many kinds, and what a run of them leaves.

`Scenario` says what is trained, `fit` trains it, `Outcome` holds all that a resumed run must have in common with one
that never stopped.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fulmen.fabric.seeding import collect_rng_state
from fulmen.trainer import Callback, LightningModule, Trainer, seed_everything
from fulmen.trainer.callbacks import (
    Checkpoint,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from fulmen.trainer.data import CombinedLoader
from fulmen.trainer.loggers import Logger
from tests.support.resume_data import LOADERS


@dataclass
class Scenario:
    """What is trained.

    Attributes:
        loaders: Kind and number of samples of each training loader.
        together: How several training loaders are combined: "dict", "list", or a mode of `CombinedLoader`.
        reading: `batch_size`, `drop_last`, `num_workers` and such of the training loaders.
        validations: Numbers of samples of the validation loaders.
        validating: Kind of the validation loaders, and `num_workers` and such.
        norm: Is there a batch norm? Each process has running means of its own.
        manual: Is the optimization manual, with two optimizers?
        schedulers: (scheduler, interval, frequency) each.
        callbacks: Names in `CALLBACKS`.
        flags: Of the Trainer.
    """

    loaders: list[tuple[str, int]]
    together: str = "dict"
    reading: dict[str, Any] = field(default_factory=lambda: {"batch_size": 3})
    validations: list[int] = field(default_factory=lambda: [5])
    validating: tuple[str, dict[str, Any]] = ("in order", {})
    norm: bool = True
    manual: bool = False
    schedulers: list[tuple[str, str, int]] = field(default_factory=list)
    callbacks: list[str] = field(default_factory=list)
    flags: dict[str, Any] = field(default_factory=dict)

    def training_loaders(self) -> Any:
        made = [LOADERS[kind](size, **self.reading) for kind, size in self.loaders]
        if len(made) == 1:
            return made[0]
        if self.together == "list":
            return made
        named = {f"loader {number}": loader for number, loader in enumerate(made)}
        return named if self.together == "dict" else CombinedLoader(named, self.together)  # type: ignore[arg-type]

    def validation_loaders(self) -> list[Any]:
        kind, reading = self.validating
        return [LOADERS[kind](size, **({"batch_size": 2} | reading)) for size in self.validations]


@dataclass
class Outcome:
    """What a run leaves.

    Attributes:
        tape: What happened, in order: each batch with its content and its loss.
        rows: What a logger got, in order.
        end: What there is at the end.
    """

    tape: list[Any] = field(default_factory=list)
    rows: list[tuple[int | None, dict[str, float]]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)


class Rows(Logger):
    """Keeps what it gets."""

    def __init__(self, rows: list[Any]) -> None:
        super().__init__()
        self.rows = rows

    name = version = "rows"  # type: ignore[assignment]

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


class Net(LightningModule):
    """Batch norm, dropout and noise; logs in every way; writes each batch on a tape."""

    def __init__(self, scenario: Scenario, tape: list[Any]) -> None:
        super().__init__()
        self.scenario, self.tape = scenario, tape
        self.automatic_optimization = not scenario.manual
        norm = nn.BatchNorm1d(4) if scenario.norm else nn.Identity()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (4, 2)), norm, nn.Flatten(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 1)

    def _loss(self, batch: Any) -> Tensor:
        inputs = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
        pairs = list(zip(inputs[::2], inputs[1::2], strict=True))
        return torch.stack([nn.functional.mse_loss(self.head(self.body(x)), y) for x, y in pairs]).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = self._loss(batch) * (1 + 0.1 * torch.rand(())) + 0.01 * random.random()
        where = ("train", self.current_epoch, self.global_step, batch_idx)
        self.tape.append((*where, _digest(batch), loss.item()))
        # What schedulers and callbacks decide by is the same in all processes.
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max", prog_bar=True)
        self.log("last", loss, batch_size=1 + batch_idx % 3)
        if self.automatic_optimization:
            return loss
        self._step_by_hand(loss, batch_idx)
        return None

    def _step_by_hand(self, loss: Tensor, batch_idx: int) -> None:
        self.manual_backward(loss)
        body, head = self.optimizers()  # type: ignore[misc]  # there are two
        if batch_idx % 2:
            body.step()
            body.zero_grad()
        if batch_idx % 3 == 0:
            head.step()
            head.zero_grad()
            for scheduler in self._schedulers():
                scheduler.step()

    def _schedulers(self) -> list[Any]:
        found = self.lr_schedulers() or []
        return found if isinstance(found, list) else [found]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss = self._loss(batch) + 0.01 * torch.rand(())
        where = ("validate", self.current_epoch, self.global_step, dataloader_idx, batch_idx)
        if not self.trainer.sanity_checking:
            self.tape.append((*where, _digest(batch), loss.item()))
        name = "val_more" if dataloader_idx else "val"
        self.log(name, loss, add_dataloader_idx=dataloader_idx != 0, sync_dist=True)
        self.log("val_step", loss, on_step=True, on_epoch=False)

    def configure_optimizers(self) -> Any:
        if self.scenario.manual:
            optimizers = [
                torch.optim.SGD(self.body.parameters(), 0.05, momentum=0.9),
                torch.optim.Adam(self.head.parameters(), 0.01),
            ]
        else:
            optimizers = [torch.optim.Adam(self.parameters(), 0.01)]
        return optimizers, [_scheduler(optimizers[0], *how) for how in self.scenario.schedulers]


def _digest(batch: Any) -> str:
    """The samples by number, and the bits of all that is in the batch."""
    content = hashlib.blake2b(repr(_comparable(tree_leaves(batch))).encode(), digest_size=6).hexdigest()
    return f"{[leaf.flatten().tolist()[:4:4] for leaf in tree_leaves(batch) if leaf is not None]} {content}"


def _scheduler(optimizer: torch.optim.Optimizer, kind: str, interval: str, frequency: int) -> dict[str, Any]:
    made: Any
    if kind == "plateau":
        made = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
    elif kind == "cosine":
        made = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    else:
        made = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    return {"scheduler": made, "interval": interval, "frequency": frequency, "monitor": "loss", "strict": False}


CALLBACKS: dict[str, Callable[[Path], Callback]] = {
    "early stopping": lambda _: EarlyStopping("loss", patience=1, strict=False),
    "early stopping on validation": lambda _: EarlyStopping("val", patience=2, strict=False),
    "best of validation": lambda folder: ModelCheckpoint(folder / "best", monitor="val", save_top_k=2, save_last=True),
    "every other step": lambda folder: ModelCheckpoint(folder / "steps", every_n_train_steps=2, save_top_k=-1),
    "swa": lambda _: StochasticWeightAveraging(0.02, swa_epoch_start=1, annealing_epochs=2),
    "ema": lambda _: EMAWeightAveraging(decay=0.8),
    "lr monitor": lambda _: LearningRateMonitor(),
    "windows by epoch": lambda _: GradientAccumulationScheduler({0: 1, 1: 3, 2: 2}),
}

MOMENTS = (
    "on_train_epoch_start",
    "on_train_batch_end",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_end",
)


BY_STEPS = ("max_steps", "steps over", "after")
AVERAGES = {"swa", "ema"}


class Crash(Exception):
    """The power fails."""


@dataclass
class Cut:
    """Where a run is saved and how it ends.

    Attributes:
        moment: The hook in which it is saved.
        nth: How often it is heard before.
        ending: "crash"; a "signal", after which the run saves itself; a "callback" that asks for a stop or "max_steps",
            which end with the save; "steps over": saved when `max_steps` have ended an epoch, or "after" the whole fit.
        later: How many moments it goes on after the save, before a crash.
    """

    moment: str
    nth: int
    ending: str = "crash"
    later: int = 0


class Saver(Checkpoint):
    """Saves as a `Cut` says, when all others have heard the moment: hooks behind a save are not run again."""

    def __init__(self, cut: Cut, path: Path, outcome: Outcome) -> None:
        self.cut, self.path, self.outcome = cut, path, outcome
        self.later = cut.later
        self.heard = 0
        self.mark: tuple[int, int] | None = None
        self.stopped = self.is_over = False
        self._begun: tuple[int, int] | None = None
        for name in sorted({*MOMENTS}):
            setattr(self, name, partial(self._hear, name))

    def place(self) -> tuple[int, int]:
        return len(self.outcome.tape), len(self.outcome.rows)

    def _hear(self, name: str, trainer: Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            return
        if name == "on_validation_start":
            self._begun = self.place()  # what is saved inside a pass begins it anew
        if self.mark is not None:
            self.later -= 1
        elif self.cut.ending in ("steps over", "after"):
            self.stopped |= trainer.should_stop  # by an early stopping
            if name == "on_train_epoch_end" and trainer.global_step >= trainer.max_steps:
                self.mark = self.place()
                if self.cut.ending == "steps over":
                    trainer.save_checkpoint(self.path)
        elif name == self.cut.moment:
            self.heard += 1
            if self.heard == self.cut.nth:
                inside = name in ("on_validation_start", "on_validation_batch_end", "on_validation_epoch_end")
                self.mark = self._begun if inside else self.place()
                self.stopped = trainer.should_stop
                trainer.should_stop |= self.cut.ending == "callback"
                self._save(trainer)
        if self.mark is not None and self.cut.ending == "crash" and self.later < 0:
            raise Crash

    def _save(self, trainer: Trainer) -> None:
        self.is_over = self.cut.moment == "on_train_epoch_end" and self.cut.nth == trainer.max_epochs
        if self.cut.ending == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            trainer.save_checkpoint(self.path)


def fit(
    scenario: Scenario, folder: Path, *, cut: Cut | None = None, ckpt_path: Path | None = None, seed: int = 3
) -> tuple[Outcome, Saver | None]:
    """Train; with `cut`, as far as it says."""
    seed_everything(seed, verbose=False)
    outcome = Outcome()
    callbacks = [CALLBACKS[name](folder) for name in scenario.callbacks]
    saver = None if cut is None else Saver(cut, folder / "cut.ckpt", outcome)
    if saver is not None:
        callbacks.append(saver)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            logger=Rows(outcome.rows),
            callbacks=callbacks,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **scenario.flags | ({"max_steps": cut.nth} if cut is not None and cut.ending in BY_STEPS else {}),
        )
        module = Net(scenario, outcome.tape)
        try:
            trainer.fit(module, scenario.training_loaders(), scenario.validation_loaders(), ckpt_path=ckpt_path)
        except Crash:
            return outcome, saver
        except SystemExit:  # the signal was heard: the batch and all that follows it was done
            assert saver is not None
            saver.mark = saver.place()
            saver.path = max(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
            return outcome, saver
    if saver is not None and saver.cut.ending in ("steps over", "after"):
        saver.is_over = not trainer.fit_loop.epoch_loop.was_cut and trainer.current_epoch == trainer.max_epochs
    if saver is not None and saver.cut.ending == "after":
        if not trainer.fit_loop.epoch_loop.was_cut:  # its row is out; an average may have looked at data behind it
            tape, rows = saver.place()
            saver.mark = saver.mark[0] if saver.mark is not None else tape, rows
        trainer.save_checkpoint(saver.path)
    outcome.end = _end(trainer, module)
    return outcome, saver


def _end(trainer: Trainer, module: Net) -> dict[str, Any]:
    states = {key: _comparable(value) for key, value in _callback_states(trainer).items()}
    return {
        "counts": (trainer.current_epoch, trainer.global_step, trainer.fit_loop.counts.stepped_batches),
        "weights": _comparable(module.state_dict()),
        "optimizers": [_comparable(optimizer.state_dict()) for optimizer in trainer.optimizers],
        "schedulers": [_comparable(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
        "scaler": _comparable(trainer.precision_plugin.state_dict()),
        "callback_metrics": _comparable(trainer.callback_metrics),
        "logged_metrics": _comparable(trainer.logged_metrics),
        "callbacks": states,
        "rng": _comparable(collect_rng_state()),
    }


def _callback_states(trainer: Trainer) -> dict[str, Any]:
    # A path names the folder of its run; a saver has none of the scenario's state.
    kept: dict[str, Any] = {}
    for callback in trainer.callbacks:
        state = callback.state_dict()
        if isinstance(callback, ModelCheckpoint):
            state = {"score": state["best_model_score"], "ranked": list(state["best_k_models"].values())}
        if state and not isinstance(callback, Saver):
            kept[callback.state_key] = state
    return kept


def _comparable(value: Any) -> Any:
    """In plain data, which `==` compares bit by bit; a number that is none by its name."""
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), value.detach().contiguous().flatten().view(torch.uint8).tolist()]
    if isinstance(value, dict):
        return {str(key): _comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    return repr(value)
