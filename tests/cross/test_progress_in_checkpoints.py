"""What a checkpoint says of progress, at every hook in which it could be saved, is what the reference says there."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer import Callback, LightningModule, Trainer
from fulmen.trainer.progress.legacy import write_evaluation, write_fit

REFERENCE: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "data" / "progress_state.yaml").read_text())
Shown = dict[str, Any]  # "a > b" to a value, as the reference shows it
_ORDER = ("ready", "started", "processed", "completed")
_STEP = "epoch_loop.automatic_optimization.optim_progress > optimizer"
_VALIDATION = "epoch_loop.val_loop.batch_progress"


@dataclass(frozen=True)
class Deviation:
    """Where ours differ on purpose.

    Attributes:
        reason: Why.
        applies: To a moment, by its text in the file and whether training has started.
        keys: Which counters differ, by a pattern that matches them from the start.
        ours: What stands there, from the reference's value and all of its values at that moment.
    """

    reason: str
    applies: Callable[[str, bool], bool]
    keys: str
    ours: Callable[[Any, Shown], Any]


def nought(value: Any, _: Shown) -> Any:
    return False if isinstance(value, bool) else re.sub(r"\d+", "0", value)


def not_yet_counted(value: str, _: Shown) -> str:
    return re.sub(r"ready=\d+", f"ready={value.rpartition('=')[2]}", value)


DEVIATIONS = [
    Deviation(
        "The sanity check is a rehearsal: it leaves no trace, and counts for itself.",
        lambda moment, training: not training,
        _VALIDATION,
        nought,
    ),
    Deviation(
        "Steps and zero_grads are counted once, when they are done: nothing resumes inside of one.",
        lambda moment, training: moment.startswith(("on_before_zero_grad", "on_before_optimizer_step")),
        _STEP,
        not_yet_counted,
    ),
    Deviation(
        "The counts of an epoch begin with the epoch, before its first hook; there, after it.",
        lambda moment, training: moment.startswith("on_train_epoch_start"),
        rf"epoch_loop\..* > current|epoch_loop\.batch_progress > is_last_batch|{_VALIDATION} > total",
        nought,
    ),
    Deviation(
        "That goes for the batches of validation in this epoch too; there, `current` is left as it was until the next.",
        lambda moment, training: moment.startswith(("on_train_batch", "on_before_")),
        f"{_VALIDATION} > current",
        lambda value, all_of_them: all_of_them[f"{_VALIDATION} > total"],
    ),
]


def shown(state: Mapping[str, Any], at: str = "") -> Shown:
    """A saved loop on one level: groups of counters are one line each."""
    found: Shown = {}
    for key, value in state.items():
        name = f"{at} > {key}" if at else key
        if isinstance(value, Mapping) and "ready" in value:
            found[name] = " ".join(f"{word}={value[word]}" for word in _ORDER if word in value)
        elif isinstance(value, Mapping) and value:
            found |= shown(value, name)
        else:
            found[name] = str(value) if value == {} else value
    return found


class Recorder(Callback):
    """Keeps the saved form of the fit loop at every hook that it hears."""

    def __init__(self, hooks: set[str]) -> None:
        self.moments: dict[str, Shown] = {}
        for name in hooks:
            setattr(self, name, partial(self._note, name))

    def _note(self, name: str, trainer: Trainer, module: Any, *args: Any) -> None:
        batch = f" batch {args[-1]}" if "_batch_" in name else ""
        where = f"(epoch {trainer.current_epoch}, step {trainer.global_step})"
        self.moments[f"{name}{batch} {where}"] = shown(write_fit(trainer.fit_loop.counts))


class Net(LightningModule):
    """One linear layer; with `several`, two optimizers that the module steps itself."""

    def __init__(self, interval: str = "epoch", *, several: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.interval = interval
        self.automatic_optimization = not several

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        if self.automatic_optimization:
            return self._step(batch)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self._step(batch))
            optimizer.step()
        return None

    def _step(self, batch: list[Tensor]) -> Tensor:
        loss: Tensor = self.layer(batch[0]).sum()
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None: ...

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None: ...

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        if not self.automatic_optimization:
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.interval}}


def loader(batches: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(batches, 4)), batch_size=1)


def make_trainer(folder: Path, *callbacks: Callback, **flags: Any) -> Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), **(off | flags))


def loops(trainer: Trainer) -> dict[str, Any]:
    """The saved form of all loops."""
    return {
        "fit_loop": write_fit(trainer.fit_loop.counts),
        "validate_loop": write_evaluation(trainer.validate_loop.counts),
        "test_loop": write_evaluation(trainer.test_loop.counts),
        "predict_loop": write_evaluation(trainer.predict_loop.counts, is_last_batch=False),
    }


def record(case: str, folder: Path, module: Net, batches: int, **flags: Any) -> dict[str, Shown]:
    """Our counters at the moments at which the reference's were measured."""
    hooks = {moment.split()[0] for moment in REFERENCE[case]["moments"] if moment.startswith("on_")}
    recorder = Recorder(hooks)
    trainer = make_trainer(folder, recorder, **flags)
    trainer.fit(module, loader(batches), loader(1))
    if "after fit() returned" in REFERENCE[case]["moments"]:
        recorder.moments["after fit() returned"] = shown(write_fit(trainer.fit_loop.counts))
    return recorder.moments


def expected(case: str, used: set[str]) -> Iterator[tuple[str, Shown]]:
    """The reference's moments in full, with our deviations; the file holds what changed from one to the next.

    Args:
        case: Which run.
        used: Takes the reasons of the deviations that change something.
    """
    now: Shown = {}
    training = False
    for moment, changes in REFERENCE[case]["moments"].items():
        now = now | ({} if changes == "no change" else changes)
        training = training or moment.startswith(("on_train", "on_before"))
        ours = dict(now)
        for deviation in DEVIATIONS:
            for key in now if deviation.applies(moment, training) else ():
                if re.match(deviation.keys, key):
                    ours[key] = deviation.ours(now[key], now)
                    used |= {deviation.reason} if ours[key] != now[key] else set()
        yield moment, ours


CASES: dict[str, Callable[[Path], dict[str, Shown]]] = {
    "fit_changes": lambda folder: record("fit_changes", folder, Net(), 2, max_epochs=2, num_sanity_val_steps=1),
    "accumulate_grad_batches_2": lambda folder: record(
        *("accumulate_grad_batches_2", folder, Net("step"), 3),
        max_epochs=1,
        accumulate_grad_batches=2,
        num_sanity_val_steps=0,
    ),
    "manual_two_optimizers": lambda folder: record(
        "manual_two_optimizers", folder, Net(several=True), 2, max_epochs=1, num_sanity_val_steps=0
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_counters_at_each_hook(case: str, tmp_path: Path) -> None:
    ours, theirs = CASES[case](tmp_path), dict(expected(case, set()))
    assert list(ours) == list(theirs)
    for moment, counters in theirs.items():
        assert (moment, ours[moment]) == (moment, counters)


def test_no_deviation_is_listed_in_vain() -> None:
    used: set[str] = set()
    for case in CASES:
        list(expected(case, used))
    assert used == {deviation.reason for deviation in DEVIATIONS}


def test_a_trainer_that_has_run_nothing_has_counted_nothing(tmp_path: Path) -> None:
    assert loops(make_trainer(tmp_path)) == REFERENCE["initial"]


def test_the_other_loops_after_they_ran(tmp_path: Path) -> None:
    trainer, module, facts = make_trainer(tmp_path), Net(), dict(REFERENCE["after_validate_test_predict"])
    trainer.validate(module, loader(1), verbose=False)
    trainer.test(module, loader(1), verbose=False)
    trainer.predict(module, loader(1))
    saved = loops(trainer)
    assert saved.pop("fit_loop")["epoch_progress"] == facts.pop("fit_loop.epoch_progress")
    assert saved == facts
