from __future__ import annotations

import copy
import pickle

import pytest

from fulmen.fabric import errors


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (errors.ConfigurationError, (errors.MisconfigurationException, ValueError)),
        (errors.HardwareError, (errors.MisconfigurationException, ValueError, RuntimeError)),
        (errors.ArgumentTypeError, (errors.MisconfigurationException, TypeError)),
        (errors.MissingPackageError, (errors.MisconfigurationException, ModuleNotFoundError)),
        (errors.NotLaunchedError, (errors.MisconfigurationException, RuntimeError)),
        (errors.ForwardBypassedError, (errors.MisconfigurationException, RuntimeError)),
        (errors.UnknownMethodError, (errors.MisconfigurationException, AttributeError)),
        (errors.CheckpointError, (RuntimeError,)),
        (errors.CheckpointKeyError, (errors.CheckpointError, KeyError)),
        (errors.CheckpointNotFoundError, (errors.CheckpointError, FileNotFoundError)),
        (errors.CheckpointDamagedError, (errors.CheckpointError,)),
        (errors.ProcessFailedError, (RuntimeError,)),
    ],
)
def test_an_error_is_caught_as_each_of_its_families_and_travels_between_processes(
    kind: type[Exception], bases: tuple[type[Exception], ...]
) -> None:
    error = kind("What happened. Why. What to do.")
    assert all(isinstance(error, base) for base in bases)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert str(twin) == "What happened. Why. What to do."


def test_what_fails_later_is_no_bad_input() -> None:
    for kind in (errors.CheckpointError, errors.ProcessFailedError):
        assert not issubclass(kind, errors.MisconfigurationException)


@pytest.mark.parametrize(
    "kind",
    [
        errors.CheckpointError,
        errors.CheckpointKeyError,
        errors.CheckpointNotFoundError,
        errors.CheckpointDamagedError,
    ],
)
def test_names_from_a_file_steer_no_terminal(kind: type[Exception]) -> None:
    error = kind("It holds \x1b[2Jmodel\nDone.")
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert str(one) == r"It holds \x1b[2Jmodel\nDone."
