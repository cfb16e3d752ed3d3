"""Each step of a migration, over all forms that it meets: a law for each.

Whatever the step: it does nothing the second time, and leaves alone what is not its own.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.checkpoint import migrate
from fulmen.trainer.checkpoint.migrate import MIGRATIONS, Checkpoint, migrate_checkpoint
from fulmen.trainer.format_version import VERSION_KEY
from fulmen.trainer.progress import legacy
from fulmen.trainer.progress.counts import FitCounts

numbers = st.integers(0, 9)
others = st.dictionaries(st.sampled_from(["state_dict", "hparams", "own", "datamodule"]), numbers)
Old = st.SearchStrategy[Checkpoint]


def some(*names: Any, values: Any = numbers) -> Any:
    """A dict with some of these keys, in any order."""
    return st.lists(st.sampled_from(names), unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries(dict.fromkeys(chosen, values))
    )


def beside(**parts: Any) -> Old:
    """Such parts, each there or not, and what belongs to others."""
    chosen = st.fixed_dictionaries({}, optional=parts)
    return st.builds(lambda other, own: {**other, **own}, others, chosen)


FLAT = {
    "checkpoint_callback_best_model_score": ("ModelCheckpoint", "best_model_score"),
    "checkpoint_callback_best": ("ModelCheckpoint", "best_model_score"),
    "checkpoint_callback_best_model_path": ("ModelCheckpoint", "best_model_path"),
    "early_stop_callback_wait": ("EarlyStopping", "wait_count"),
    "early_stop_callback_patience": ("EarlyStopping", "patience"),
}


def callbacks_are_nested(old: Checkpoint, new: Checkpoint) -> None:
    assert not {*FLAT} & {*new}
    before = old.get("callbacks", {})
    for key, (callback, name) in FLAT.items():
        if key in old and callback not in before:
            synonyms = [old[other] for other, place in FLAT.items() if place == (callback, name) and other in old]
            assert new["callbacks"][callback][name] == synonyms[0]
    assert {key: new["callbacks"][key] for key in before} == before


class Stopper:
    class Inner: ...


def classes_are_named(old: Checkpoint, new: Checkpoint) -> None:
    named = [key if isinstance(key, str) else key.__qualname__ for key in old.get("callbacks", {})]
    assert [*new.get("callbacks", {})] == named
    assert [*new.get("callbacks", {}).values()] == [*old.get("callbacks", {}).values()]


def _counters(epoch: int) -> dict[str, Any]:
    return {"total": dict.fromkeys(_FOUR, epoch), "current": dict.fromkeys(_FOUR, epoch)}


_FOUR = ("ready", "completed", "started", "processed")
LOOPS_OF_1_5 = st.sampled_from([{}, {"fit_loop": {}}, {"fit_loop": {"epoch_progress": _counters(1)}}])


def epochs_and_steps_are_counted(old: Checkpoint, new: Checkpoint) -> None:
    if not {"epoch", "global_step"} <= {*old}:
        assert new == old
        return
    fit = new["loops"]["fit_loop"]
    assert fit["epoch_progress"]["current"]["completed"] == old["epoch"]
    step = fit["epoch_loop.batch_loop.optimizer_loop.optim_progress"]["optimizer"]["step"]["total"]
    assert step == {"ready": old["global_step"], "completed": old["global_step"]}


def batches_that_stepped_are_there(old: Checkpoint, new: Checkpoint) -> None:
    loops = old.get("loops", {})
    if "fit_loop" in loops and "global_step" in old:
        known = loops["fit_loop"].get("epoch_loop.state_dict", {})
        expected = {"_batches_that_stepped": old["global_step"]} | known
        assert new["loops"]["fit_loop"]["epoch_loop.state_dict"] == expected
    else:
        assert new == old


KEYS = [
    "ModelCheckpoint",
    "ModelCheckpoint{'monitor': 'a', 'every_n_epochs': 1, 'save_on_train_epoch_end': True}",
    "ModelCheckpoint{'monitor': 'b', 'save_on_train_epoch_end': None, 'every_n_epochs': 1}",
    "Other{'monitor': 'b', 'save_on_train_epoch_end': None}",
]


def keys_tell_no_epoch_end(old: Checkpoint, new: Checkpoint) -> None:
    def plain(key: str) -> str:
        words = (", 'save_on_train_epoch_end': True", ", 'save_on_train_epoch_end': None")
        return key.replace(words[0], "").replace(words[1], "") if key.startswith("ModelCheckpoint") else key

    before = old.get("callbacks", {})
    assert new.get("callbacks", {}) == {plain(key): state for key, state in before.items()}


def apex_is_gone(old: Checkpoint, new: Checkpoint) -> None:
    assert new == {key: value for key, value in old.items() if key != "amp_scaling_state"}


SCALERS = ("MixedPrecision", "native_amp_scaling_state", "NativeMixedPrecisionPlugin", "MixedPrecisionPlugin")


def the_scaler_has_one_name(old: Checkpoint, new: Checkpoint) -> None:
    found = [old[name] for name in SCALERS if name in old]
    assert [new[name] for name in SCALERS if name in new] == found[:1]
    assert {*new} & {*SCALERS} <= {"MixedPrecision"}


TAILS = st.sampled_from(["state_dict", "batch_progress", "optim_progress", "own"])
FIT_PREFIXES = sorted(prefix for prefix in migrate._RENAMED_IN_FIT if prefix.endswith("."))
fit_loops = st.dictionaries(
    st.builds("".join, st.tuples(st.sampled_from([*FIT_PREFIXES, "", "epoch_loop.", "epoch_loop.val_loop."]), TAILS)),
    numbers,
)
evaluation_loops = st.dictionaries(st.builds("".join, st.tuples(st.sampled_from(["epoch_loop.", ""]), TAILS)), numbers)


def loops_are_flat(old: Checkpoint, new: Checkpoint) -> None:
    loops = old.get("loops", {})
    assert {*new.get("loops", {})} == {*loops}
    for name, before in loops.items():
        after = new["loops"][name]
        inner = (
            ("epoch_loop.batch_loop.", "epoch_loop.val_loop.epoch_loop.") if name == "fit_loop" else ("epoch_loop.",)
        )
        assert not [key for key in after if key.startswith(inner)]
        assert {*after.values()} <= {*before.values()}  # nothing is made up
        untouched = {key: value for key, value in before.items() if not key.startswith((*inner, "epoch_loop."))}
        assert untouched.items() <= after.items() or {*before} & {f"epoch_loop.{key}" for key in untouched}


LAWS: dict[Callable[[Checkpoint], None], tuple[Old, Callable[[Checkpoint, Checkpoint], None]]] = {
    migrate.nest_callback_states: (
        st.builds(
            lambda flat, rest: {**flat, **rest},
            some(*FLAT),
            beside(callbacks=some("ModelCheckpoint", "Timer", values=some("a", "b"))),
        ),
        callbacks_are_nested,
    ),
    migrate.name_callbacks_by_text: (
        beside(callbacks=some(Stopper, Stopper.Inner, "Timer", "Timer{'x': 1}")),
        classes_are_named,
    ),
    migrate.count_epochs_and_steps: (
        beside(epoch=numbers, global_step=numbers, loops=LOOPS_OF_1_5.map(copy.deepcopy)),
        epochs_and_steps_are_counted,
    ),
    migrate.count_batches_that_stepped: (
        beside(
            global_step=numbers,
            loops=some("fit_loop", values=some("epoch_loop.state_dict", values=some("_batches_that_stepped", "own"))),
        ),
        batches_that_stepped_are_there,
    ),
    migrate.drop_epoch_end_from_keys: (beside(callbacks=some(*KEYS)), keys_tell_no_epoch_end),
    migrate.drop_apex: (beside(amp_scaling_state=numbers), apex_is_gone),
    migrate.name_scaler_by_precision: (
        st.builds(lambda scalers, rest: {**scalers, **rest}, some(*SCALERS), others),
        the_scaler_has_one_name,
    ),
    migrate.flatten_loops: (
        beside(loops=st.fixed_dictionaries({}, optional={"fit_loop": fit_loops, "validate_loop": evaluation_loops})),
        loops_are_flat,
    ),
}


def test_every_step_has_a_law() -> None:
    assert [*LAWS] == [step for steps in MIGRATIONS.values() for step in steps]


@pytest.mark.parametrize("step", LAWS, ids=lambda step: step.__name__)
@given(data=st.data())
def test_its_law(step: Callable[[Checkpoint], None], data: Any) -> None:
    olds, law = LAWS[step]
    old = data.draw(olds)
    new = copy.deepcopy(old)
    step(new)
    law(old, new)
    again = copy.deepcopy(new)
    step(again)
    assert again == new
    assert {key: new[key] for key in ("state_dict", "hparams", "own", "datamodule") if key in new} == {
        key: old[key] for key in ("state_dict", "hparams", "own", "datamodule") if key in old
    }


@given(numbers, st.integers(0, 99), st.sampled_from(["0.9.0", "1.4.9", "1.5.10"]))
def test_a_run_of_before_there_were_loops_goes_on_behind_its_last_epoch(epoch: int, steps: int, version: str) -> None:
    old = {VERSION_KEY: version, "epoch": epoch, "global_step": steps, "state_dict": {}}
    new, done = migrate_checkpoint(old)
    counts = FitCounts()
    legacy.read_fit(counts, new["loops"]["fit_loop"])
    assert (counts.epoch.total, counts.global_step, counts.stepped_batches) == (epoch, steps, steps)
    assert [*done] == [
        one for one in MIGRATIONS if tuple(map(int, one.split("."))) > tuple(map(int, version.split(".")))
    ]
