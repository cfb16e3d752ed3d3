import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.callbacks.checkpoint import Checkpoint
from fulmen.trainer.callbacks.early_stopping import EarlyStopping
from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.trainer.callbacks.model_summary import ModelSummary
from fulmen.trainer.callbacks.timer import Timer
from fulmen.trainer.callbacks.tqdm_progress_bar import TQDMProgressBar
from fulmen.trainer.connectors.callbacks import (
    SameStateKeyError,
    check_state_keys,
    choose_callbacks,
    ordered,
    with_callbacks_of,
)
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.run.settings import Settings


class Tuning(Callback):
    tunes = True


class Keeping(Checkpoint):
    """Keeps nothing."""


def chosen(callbacks=None, settings=None, **flags):
    flags = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary")) | flags
    return choose_callbacks(callbacks, settings or Settings(), **flags)


def names(callbacks):
    return [type(callback).__name__ for callback in callbacks]


@given(st.lists(st.sampled_from([Callback, Tuning, Keeping])))
def test_tuners_come_first_checkpoints_last_and_each_group_stays_in_order(kinds):
    callbacks = [kind() for kind in kinds]
    result = ordered(callbacks)
    groups = [[callback for callback in callbacks if isinstance(callback, kind)] for kind in (Tuning, Keeping)]
    assert result[: len(groups[0])] == groups[0]
    assert result[len(result) - len(groups[1]) :] == groups[1]
    rest = [callback for callback in callbacks if type(callback) is Callback]
    assert result[len(groups[0]) : len(result) - len(groups[1])] == rest


@given(
    *[st.sampled_from([None, True, False])] * 3,
    st.lists(st.sampled_from([ModelCheckpoint, TQDMProgressBar, ModelSummary]), unique=True),
)
def test_a_default_is_added_where_it_is_wanted_and_missing(checkpointing, bar, summary, given_kinds):
    flags = {ModelCheckpoint: checkpointing, TQDMProgressBar: bar, ModelSummary: summary}
    arguments = {"enable_checkpointing": checkpointing, "enable_progress_bar": bar, "enable_model_summary": summary}
    contradicted = [kind for kind in (ModelCheckpoint, TQDMProgressBar) if kind in given_kinds and flags[kind] is False]
    callbacks = [kind() for kind in given_kinds]
    if contradicted:
        with pytest.raises(ConfigurationError, match=r"Trainer\(callbacks=\[.*\]\) contradicts enable_.*=False"):
            chosen(callbacks, **arguments)
        return
    found = chosen(callbacks, **arguments)
    for kind, flag in flags.items():
        assert names(found).count(kind.__name__) == (kind in given_kinds or flag is not False)
    assert all(callback in found for callback in callbacks)


def test_a_bound_of_time_is_a_timer():
    assert names(chosen(settings=Settings(max_time="00:00:00:09")))[0] == "Timer"
    timer = Timer("00:00:00:01")
    assert [one for one in chosen([timer], Settings(max_time="00:00:00:09")) if isinstance(one, Timer)] == [timer]


def test_barebones_adds_nothing_and_wants_nothing():
    assert chosen(settings=Settings(barebones=True)) == []
    with pytest.raises(ConfigurationError, match=r"Trainer\(barebones=True, enable_progress_bar=True\)"):
        chosen(settings=Settings(barebones=True), enable_progress_bar=True)
    with pytest.raises(ConfigurationError, match="contradicts enable_checkpointing=False"):
        chosen(ModelCheckpoint(), Settings(barebones=True))


@pytest.mark.parametrize(
    ("callbacks", "says"),
    [
        ("foo", "holds 'foo': a str, not a Callback"),
        ([3], "holds 3: a int, not a Callback"),
        ([Timer], r"a class, not an object.*Pass Timer\(\.\.\.\)"),
        (Timer, r"a class, not an object"),
    ],
)
def test_what_is_no_callback_is_refused(callbacks, says):
    with pytest.raises(ArgumentTypeError, match=says):
        chosen(callbacks)


def test_two_states_need_two_keys():
    with pytest.raises(SameStateKeyError, match="two callbacks with the state key"):
        chosen([EarlyStopping("a"), EarlyStopping("a")])
    check_state_keys([EarlyStopping("a"), EarlyStopping("b"), Callback(), Callback()])


def test_two_bars_would_write_over_each_other():
    with pytest.raises(ConfigurationError, match="has 2 progress bars: TQDMProgressBar, TQDMProgressBar"):
        chosen([TQDMProgressBar(), TQDMProgressBar()])


def test_of_one_type_the_modules_callback_replaces_the_trainers():
    class Configuring(BoringModel):
        def configure_callbacks(self):
            return [own]

    given, own = [EarlyStopping("a"), ModelCheckpoint()], EarlyStopping("b")
    assert with_callbacks_of(Configuring(), given) == [own, given[1]]
    assert with_callbacks_of(BoringModel(), given) == given
