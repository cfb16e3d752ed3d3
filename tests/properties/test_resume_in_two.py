"""Two processes that are stopped and resumed are bit by bit the two that never stopped; one group runs every case."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.support.resume_scenarios import Cut, Scenario, fit
from tests.support.two_processes import in_two_processes

FLAGS = {
    "devices": 2,
    "strategy": "ddp",
    "max_epochs": 2,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "val_check_interval": 2,
}
PLAIN = Scenario(
    loaders=[("shuffle", 21)],
    validations=[8],  # as many batches for either process: who saves in one must not be alone there
    schedulers=[("plateau", "step", 1)],
    callbacks=["best of validation"],
    flags=FLAGS,
)
WINDOWS = Scenario(loaders=[("weighted", 20)], validations=[8], flags={**FLAGS, "accumulate_grad_batches": 3})
SEVERAL = Scenario(loaders=[("generator", 20), ("stream", 9)], callbacks=["ema"], validations=[8, 4], flags=FLAGS)
MANUAL = Scenario(loaders=[("own batches", 24)], validations=[8], manual=True, flags={**FLAGS, "precision": "64-true"})
WORKERS = {"batch_size": 3, "num_workers": 2}
# Validation follows the first batch after the window that was cut: each process by its own running means.
CUT_WINDOW = Scenario(
    loaders=[("shuffle", 25)],
    reading=WORKERS,
    validations=[8],
    flags={**FLAGS, "accumulate_grad_batches": 3, "limit_train_batches": 0.7, "val_check_interval": 0.5},
)
BY_THE_CLOCK = Scenario(
    loaders=[("weighted", 25), ("told its epoch", 19)],
    together="min_size",
    reading={**WORKERS, "persistent_workers": True},
    validations=[8],
    flags={**FLAGS, "accumulate_grad_batches": 2, "val_check_interval": "01:00:00:00", "check_val_every_n_epoch": None},
)
# The processes agree on a later place, which is the one between the two epochs here, or behind it.
SIGNAL = Scenario(
    loaders=[("generator", 13)],
    validations=[8],
    callbacks=["every other step"],
    flags={**FLAGS, "val_check_interval": 1.0},
)
TORCHDATA = Scenario(
    loaders=[("torchdata, shuffle", 25)],
    reading=WORKERS,
    validations=[8],
    flags={**FLAGS, "accumulate_grad_batches": 3},
)
CASES = {
    "on a batch that triggers validation": (PLAIN, Cut("on_train_batch_end", 2)),
    "inside validation": (PLAIN, Cut("on_validation_batch_end", 2)),
    "at the end of an epoch": (PLAIN, Cut("on_train_epoch_end", 1)),
    "by max_steps": (PLAIN, Cut("on_train_batch_end", 3, "steps over")),
    "inside an accumulation window": (WINDOWS, Cut("on_train_batch_end", 2)),
    "several loaders": (SEVERAL, Cut("on_train_batch_end", 3)),
    "by hand": (MANUAL, Cut("on_train_batch_end", 3)),
    "inside a window, with workers": (CUT_WINDOW, Cut("on_train_batch_end", 2)),
    "in the second epoch, with workers that are kept": (BY_THE_CLOCK, Cut("on_train_batch_end", 5)),
    "by a signal between two epochs": (SIGNAL, Cut("on_train_epoch_end", 1, "signal")),
}
if importlib.util.find_spec("torchdata") is not None:
    CASES["torchdata, with workers"] = (TORCHDATA, Cut("on_train_batch_end", 2))


def differences(scenario: Scenario, cut: Cut, folder: Path) -> list[str]:
    """What a resumed run has not in common with one that never stopped, in this process."""
    for name in ("cut", "whole"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    part, saver = fit(scenario, folder / "cut", cut=cut)
    assert saver is not None
    if saver.mark is None:
        return ["there was no such moment"]
    whole, _ = fit(scenario, folder / "whole")
    resumed, _ = fit(scenario, folder / "cut", ckpt_path=saver.path, seed=77)
    tape, rows = saver.mark
    found = [] if part.tape[:tape] == whole.tape[:tape] else ["what was before the save"]
    found += [] if resumed.tape == whole.tape[tape:] else ["samples and losses"]
    found += [] if repr(resumed.rows) == repr(whole.rows[rows:]) else ["rows"]
    return found + [what for what, value in whole.end.items() if resumed.end[what] != value]


def one_of_two(rank: int, folder: Path) -> None:
    logging.disable(logging.WARNING)
    found = {name: differences(*case, folder / str(number)) for number, (name, case) in enumerate(CASES.items())}
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(one_of_two, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_resumed_processes_are_bit_by_bit_the_two_that_never_stopped(
    case: str, found: list[dict[str, Any]]
) -> None:
    assert [of_rank[case] for of_rank in found] == [[], []]
