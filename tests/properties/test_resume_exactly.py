"""A run that is stopped anywhere and resumed is bit by bit the run that never stopped.

Hypothesis chooses what is trained and when it is saved; compared are samples, losses, validations, rows of loggers,
weights, optimizers, schedulers, metrics, states of callbacks and random numbers. `HYPOTHESIS_PROFILE=long` tries
thousands.
"""

import importlib.util
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from tests.support.resume_data import SIZED, TORCHDATA, UNSIZED
from tests.support.resume_scenarios import AVERAGES, MOMENTS, Cut, Scenario, fit

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
HAS_TORCHDATA = importlib.util.find_spec("torchdata") is not None
PRECISIONS = ("32-true", "32-true", "16-mixed", "64-true")
ENDINGS = ("crash", "crash", "crash", "callback", "signal", "steps over", "after")
# Where a signal may come that is not inside of a pass over validation batches.
HEARS_SIGNALS = ("on_train_batch_end", "on_train_epoch_start", "on_train_epoch_end", "on_validation_end")
TOGETHER = ("dict", "list", "min_size", "max_size", "max_size_cycle")


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Thousands of runs have nothing to say."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@st.composite
def scenarios(draw: Any) -> Scenario:
    batch_size = draw(st.integers(2, 4))
    drop_last = draw(st.booleans())
    kinds = {**SIZED, **UNSIZED, **(TORCHDATA if HAS_TORCHDATA else {})}
    pool = st.sampled_from(sorted(draw(st.sampled_from([SIZED, kinds]))))
    loaders = draw(st.lists(st.tuples(pool, st.integers(4, 11)), min_size=1, max_size=3))
    together = draw(st.sampled_from(TOGETHER))
    lengths = [batches_of(kind, size, batch_size, drop_last) for kind, size in loaders]
    batches = min(lengths) if together == "min_size" else max(lengths)
    known = all(kind in SIZED for kind, _ in loaders)
    across = draw(st.booleans())
    parts = ["01:00:00:00"] if across else [1.0, 0.5, 0.34] if known else [1.0]
    most = batches + 3 if across else batches if known else min(2, min(lengths))
    interval = draw(st.sampled_from([*parts, *range(1, most + 1)]))
    fewest = interval if isinstance(interval, int) and not across else 1
    limits = [1.0, *range(fewest, batches + 1)]
    if known and not isinstance(interval, int) and min(lengths) > 1:
        limits.append(0.6)
    manual = draw(st.booleans()) and draw(st.booleans())
    flags = {
        "val_check_interval": interval,
        "check_val_every_n_epoch": None if across else draw(st.integers(1, 2)),
        "limit_train_batches": draw(st.sampled_from(limits)),
        "limit_val_batches": draw(st.sampled_from([1.0, 1.0, 1, 0])),
        "max_epochs": draw(st.integers(2, 3)),
        "log_every_n_steps": draw(st.integers(1, 3)),
        "num_sanity_val_steps": draw(st.integers(0, 1)),
        "precision": draw(st.sampled_from(PRECISIONS)),
    }
    kinds_of_step = ["cosine", "exponential"] if manual else ["plateau", "cosine", "exponential"]
    one = st.tuples(st.sampled_from(kinds_of_step), st.sampled_from(["step", "epoch"]), st.integers(1, 3))
    callbacks = draw_callbacks(draw, manual=manual, validates=flags["limit_val_batches"] != 0)
    if not manual:
        windows = 1 if "windows by epoch" in callbacks else draw(st.integers(1, 3))
        flags |= {"accumulate_grad_batches": windows, "gradient_clip_val": draw(st.sampled_from([None, 0.1]))}
    return Scenario(
        loaders=loaders,
        together=together,
        reading={"batch_size": batch_size, "drop_last": drop_last},
        validations=draw(st.lists(st.integers(2, 6), min_size=1, max_size=2)),
        validating=(draw(st.sampled_from(["in order", *sorted(kinds)])), {}),
        manual=manual,
        schedulers=draw(st.lists(one, max_size=1 if "swa" in callbacks else 2)),
        callbacks=callbacks,
        flags=flags,
    )


def batches_of(kind: str, size: int, batch_size: int, drop_last: bool) -> int:
    """At least so many batches; of own batches only a bound is known."""
    if kind == "no DataLoader":
        return size
    if kind == "own batches":
        return -(-size // 3)
    return size // batch_size if drop_last else -(-size // batch_size)


def draw_callbacks(draw: Any, *, manual: bool, validates: bool) -> list[str]:
    names = ["early stopping", "every other step", "ema", "lr monitor"]
    if validates:
        names += ["early stopping on validation", "best of validation"]
    if not manual:
        names += ["swa", "windows by epoch"]
    chosen = draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    # One average at a time.
    return [name for name in chosen if not (name == "ema" and "swa" in chosen)]


@st.composite
def cases(draw: Any) -> tuple[Scenario, Cut]:
    """What is trained, and where it is cut; sometimes workers load, which takes time."""
    scenario = draw(scenarios())
    if LONG and draw(st.integers(0, 9)) == 0:
        working = {"num_workers": draw(st.integers(1, 2)), "persistent_workers": draw(st.booleans())}
        if "no DataLoader" not in {kind for kind, _ in scenario.loaders}:
            # Workers share what is read in one order: none of them may be left without a batch.
            scenario.reading |= {**working, "drop_last": False}
        if scenario.validating[0] != "no DataLoader":
            scenario.validating = (scenario.validating[0], working)
    ending = draw(st.sampled_from(ENDINGS))
    moment, later = draw(st.sampled_from(MOMENTS)), draw(st.integers(0, 3))
    if ending != "crash" and not (ending == "signal" and moment in HEARS_SIGNALS):
        moment = "on_train_batch_end"
    if ending == "signal" and not {"every other step", "best of validation"} & {*scenario.callbacks}:
        scenario.callbacks.append("every other step")  # without a ModelCheckpoint, nothing is kept
    return scenario, Cut(moment, draw(st.integers(1, 7)), ending, later)


def check(scenario: Scenario, cut: Cut) -> bool:
    """Is there such a moment? Then all that is promised holds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "whole").mkdir()
        (folder / "cut").mkdir()
        part, saver = fit(scenario, folder / "cut", cut=cut)
        assert saver is not None
        # Hooks of an epoch's start run again; and a stop that somebody asked for is not kept.
        # Behind the last epoch nothing is trained, and no hook of the end runs: an average is not put in place.
        if saver.is_over and AVERAGES & {*scenario.callbacks}:
            return False
        again = cut.moment == "on_train_epoch_start" and "lr monitor" in scenario.callbacks
        if saver.mark is None or saver.stopped or again:
            return False
        whole, _ = fit(scenario, folder / "whole")
        resumed, _ = fit(scenario, folder / "cut", ckpt_path=saver.path, seed=77)
    tape, rows = saver.mark
    # Saving changes nothing.
    assert part.tape[:tape] == whole.tape[:tape]
    assert repr(part.rows[:rows]) == repr(whole.rows[:rows])
    assert resumed.tape == whole.tape[tape:]
    assert repr(resumed.rows) == repr(whole.rows[rows:])
    for what, value in whole.end.items():
        assert resumed.end[what] == value, what
    return True


def one(
    kind: str,
    cut: Cut,
    *,
    size: int = 10,
    beside: Any = (),
    together: str = "dict",
    callbacks: Any = (),
    manual: bool = False,
    **flags: Any,
) -> tuple[Scenario, Cut]:
    flags = {"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0, **flags}
    scenario = Scenario(
        loaders=[(kind, size), *beside],
        together=together,
        callbacks=list(callbacks),
        manual=manual,
        flags=flags,
        validations=[5],
    )
    return scenario, cut


ENDS_BEFORE_IT_READS = Scenario(
    loaders=[("in order", 4)],
    reading={"batch_size": 2},
    validations=[2],
    validating=("generator", {}),
    callbacks=["early stopping on validation", "swa"],
    flags={"val_check_interval": 0.5, "max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0},
)

NO_LAST_ROW = Scenario(
    loaders=[("in order", 3)],
    callbacks=["every other step"],
    flags={"limit_val_batches": 0, "max_epochs": 3, "log_every_n_steps": 2, "num_sanity_val_steps": 0},
)

PLATEAU = Scenario(
    loaders=[("generator", 4)],
    schedulers=[("plateau", "epoch", 1)],
    validations=[2],
    flags={"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0},
)

UNSIZED_VALIDATION = Scenario(
    loaders=[("generator", 4)],
    validations=[2, 3],
    validating=("stream", {}),
    flags={
        "max_epochs": 2,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "val_check_interval": 1,
        "check_val_every_n_epoch": None,
    },
)


# What was wrong once: float64 weights, the row of the step, an epoch's row, gradients of one of two optimizers, the
# generator between two epochs, a step's plateau scheduler, a batch that was fetched early, rounds of unsized loaders,
# a signal between two epochs, averages of a run that ended before it read a batch, averages and plateau schedulers of
# an epoch that max_steps had cut, loaders of several lengths when max_steps came with the last batch, what was shown of
# a last batch without a row, the axis of steps of several validation loaders without a length.
@settings(
    max_examples=3000 if LONG else 25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=not LONG
)
@given(cases())
@example(one("shuffle", Cut("on_train_batch_end", 2), precision="64-true"))
@example(one("shuffle", Cut("on_train_batch_end", 5), log_every_n_steps=3, accumulate_grad_batches=2))
@example(one("generator", Cut("on_train_epoch_end", 2)))
@example(one("generator", Cut("on_train_epoch_start", 2)))
@example(one("shuffle", Cut("on_validation_batch_end", 3), manual=True))
@example(one("own batches", Cut("on_train_batch_end", 2)))
@example(one("stateful stream", Cut("on_train_batch_end", 2)))
@example(one("stream", Cut("on_validation_end", 1)))
@example(one("shuffle", Cut("on_train_batch_end", 2), size=4, beside=[("own batches", 11)], precision="16-mixed"))
@example(one("generator", Cut("on_train_batch_end", 1), size=9, beside=[("in order", 3)]))
@example(one("weighted", Cut("on_validation_end", 2), callbacks=["swa"]))
@example(one("shuffle", Cut("on_train_batch_end", 6), callbacks=["swa", "lr monitor"]))
@example(one("stateful stream", Cut("on_validation_end", 1), size=4, beside=[("generator", 9)]))
@example(one("generator", Cut("on_train_epoch_end", 1, "signal"), callbacks=["every other step"]))
@example((ENDS_BEFORE_IT_READS, Cut("on_train_batch_end", 3)))
@example(one("shuffle", Cut("on_train_batch_end", 5, "steps over"), size=9, callbacks=["swa"], max_epochs=3))
@example(one("own sampler", Cut("on_train_batch_end", 2, "steps over"), beside=[("in order", 6)], together="min_size"))
@example((NO_LAST_ROW, Cut("on_train_epoch_start", 3, "signal")))
@example((PLATEAU, Cut("on_train_batch_end", 1, "after")))
@example((UNSIZED_VALIDATION, Cut("on_train_epoch_start", 2)))
def test_a_resumed_run_is_bit_by_bit_the_one_that_never_stopped(case: tuple[Scenario, Cut]) -> None:
    scenario, cut = case
    event(f"{cut.moment}, {cut.ending}" if check(scenario, cut) else "no such moment")


needs_torchdata = pytest.mark.skipif(not HAS_TORCHDATA, reason="torchdata is not there")


@needs_torchdata
@pytest.mark.parametrize("kind", sorted(TORCHDATA))
@pytest.mark.parametrize("cut", [Cut("on_train_batch_end", 2), Cut("on_train_epoch_end", 1)])
def test_torchdata_at_the_end_of_an_epoch(kind: str, cut: Cut) -> None:
    """It has two batches, and looks for a third where it does not know."""
    assert check(*one(kind, cut, size=6))


WORKERS = {"batch_size": 3, "num_workers": 2}
KEPT = {**WORKERS, "persistent_workers": True}
# Both readings of each kind are held by packages/fabric/tests/data/test_worker_seeds.py.
WITH_WORKERS = [
    ("shuffle", WORKERS),
    ("generator", KEPT),
    ("stream", WORKERS),
    pytest.param("torchdata, shuffle", KEPT, marks=needs_torchdata),
    pytest.param("torchdata, stateful stream", WORKERS, marks=needs_torchdata),
]


@pytest.mark.parametrize(("kind", "reading"), WITH_WORKERS)
def test_with_workers_too(kind: str, reading: dict[str, Any]) -> None:
    flags = {"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0, "val_check_interval": 2}
    assert check(Scenario(loaders=[(kind, 11)], reading=reading, flags=flags), Cut("on_train_batch_end", 6))


@pytest.mark.parametrize(("kind", "sanity", "reading"), [("generator", 0, KEPT), ("stream", 1, KEPT)])
def test_validation_with_workers_too(kind: str, sanity: int, reading: dict[str, Any]) -> None:
    """Saved inside the second validation, and goes on with what the third one draws."""
    flags = {"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": sanity, "val_check_interval": 2}
    scenario = Scenario(loaders=[("shuffle", 11)], validations=[7], validating=(kind, reading), flags=flags)
    assert check(scenario, Cut("on_validation_batch_end", 4))


@pytest.mark.parametrize("ending", ["signal", "callback", "max_steps", "steps over", "after"])
@pytest.mark.parametrize("batch", [3, 4, 6])
def test_whatever_ended_the_run(ending: str, batch: int) -> None:
    """Batch 4 is the last of an epoch, and batches 2, 4, 6 are followed by validation."""
    flags = {"max_epochs": 3, "log_every_n_steps": 1, "num_sanity_val_steps": 0, "val_check_interval": 2}
    scenario = Scenario(
        loaders=[("shuffle", 10)],
        schedulers=[("plateau", "step", 1)],
        callbacks=["best of validation"],
        flags=flags,
    )
    assert check(scenario, Cut("on_train_batch_end", batch, ending))
