import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.launchers.failures import (
    Failure,
    Weight,
    describe,
    ended_unheard,
    failure_from_error,
    failure_from_exit,
    first_failure,
    is_request,
)

_failures = st.builds(
    Failure,
    rank=st.integers(0, 7),
    time_s=st.floats(0, 10),
    weight=st.sampled_from(Weight),
    text=st.sampled_from(["", "Traceback ...\n"]),
    exit_code=st.integers(-15, 3),
)


@given(st.lists(_failures, min_size=1, unique_by=lambda failure: failure.rank))
def test_the_first_has_no_heavier_cause_before_it_and_does_not_depend_on_the_order(failures):
    first = first_failure(failures)
    assert first in failures
    assert all((first.weight, first.time_s) <= (failure.weight, failure.time_s) for failure in failures)
    assert first_failure(reversed(failures)) == first


def test_an_error_of_its_own_goes_before_the_echo_that_was_heard_earlier():
    echo = failure_from_error(0, RuntimeError("[gloo/transport/tcp] Connection closed by peer [127.0.0.1]:1"), 1.0)
    cause = failure_from_error(1, ValueError("wrong"), 2.0)
    assert echo.weight is Weight.ECHO
    assert first_failure([echo, cause]) is cause


def test_an_echo_is_known_through_what_it_caused():
    error = ValueError("training failed")
    error.__cause__ = RuntimeError("Connection reset by peer")
    assert failure_from_error(0, error, 0.0).weight is Weight.ECHO


def test_a_process_that_the_kernel_killed_is_a_cause_and_one_that_was_asked_is_not():
    assert failure_from_exit(1, -9, 0.0).weight is Weight.CAUSE
    assert failure_from_exit(1, 7, 0.0).weight is Weight.SILENT
    for code in (-15, 143, -2, 130, -1, 129):
        assert failure_from_exit(1, code, 0.0).weight is Weight.REQUESTED
        assert is_request(code)
    assert not is_request(1)


def test_who_was_killed_by_a_request_has_not_heard_it():
    assert [code for code in range(-64, 256) if ended_unheard(code)] == [-15, -1]


@pytest.mark.parametrize(
    ("error", "weight", "exit_code"),
    [
        (KeyboardInterrupt(), Weight.REQUESTED, 130),
        (SystemExit(143), Weight.REQUESTED, 143),
        (SystemExit(3), Weight.SILENT, 3),
        (SystemExit("a word"), Weight.SILENT, 1),
    ],
)
def test_who_leaves_by_itself_is_weighed_by_its_exit_code(error, weight, exit_code):
    failure = failure_from_error(1, error, 0.0)
    assert (failure.weight, failure.exit_code) == (weight, exit_code)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (failure_from_exit(1, -9, 0.0), "was killed by SIGKILL"),
        (failure_from_exit(1, -99, 0.0), "was killed by signal 99"),
        (failure_from_exit(1, -15, 0.0), "was killed by SIGTERM. Somebody asked it to end"),
        (failure_from_exit(1, 7, 0.0), "ended with exit code 7"),
    ],
)
def test_a_silent_failure_is_described(failure, expected):
    text = describe(failure, 4)
    assert text.startswith("Rank 1 of 4 failed first; the other 3 processes were ended")
    assert expected in text


def test_the_traceback_comes_last():
    text = describe(failure_from_error(1, ValueError("wrong"), 0.0), 2)
    assert text.endswith("ValueError: wrong\n")
