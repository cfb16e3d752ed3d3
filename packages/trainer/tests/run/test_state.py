import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.run.state import RunState
from fulmen.trainer.stages import EntryPoint, Stage, Status


@given(st.lists(st.sampled_from(Stage), max_size=5), st.none() | st.integers(0, 4))
def test_what_is_entered_is_left_again_also_on_errors(stages, fails_at):
    state = RunState()

    def enter(depth):
        assert state.stage == (stages[depth - 1] if depth else None)
        if depth == fails_at:
            raise ZeroDivisionError
        if depth < len(stages):
            before = state.stage
            try:
                with state.inside(stages[depth]):
                    enter(depth + 1)
            finally:
                assert state.stage == before

    if fails_at is not None and fails_at <= len(stages):
        with pytest.raises(ZeroDivisionError):
            enter(0)
    else:
        enter(0)
    assert state.stage is None


@pytest.mark.parametrize(
    ("status", "finished", "stopped"),
    [
        (Status.INITIALIZING, False, False),
        (Status.RUNNING, False, False),
        (Status.FINISHED, True, True),
        (Status.INTERRUPTED, False, True),
    ],
)
def test_a_run_has_stopped_when_it_has_ended_in_whatever_way(status, finished, stopped):
    state = RunState()
    state.status = status
    assert (state.finished, state.stopped) == (finished, stopped)


@given(st.lists(st.sampled_from([None, *Stage]), max_size=5), st.lists(st.sampled_from(Stage), max_size=3))
def test_a_stage_that_is_set_holds_until_the_one_around_it_is_left(changes, stages):
    state = RunState(stage=Stage.TRAIN)
    for stage in stages:
        with state.inside(stage):
            for change in changes:
                state.stage = change
                assert state.stage == change or change is None
        assert state.stage is Stage.TRAIN or None in changes
    assert RunState().stage is None


def test_a_state_can_be_built_as_it_is():
    state = RunState(Status.RUNNING, EntryPoint.FIT, Stage.VALIDATE)
    assert (state.status, state.fn, state.stage) == (Status.RUNNING, EntryPoint.FIT, Stage.VALIDATE)
