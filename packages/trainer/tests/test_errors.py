import signal

import pytest

from fulmen.fabric import errors as fabric_errors
from fulmen.trainer import errors
from fulmen.trainer.errors import InterruptedBySignal, SIGTERMException


def test_a_signal_passes_through_except_exception_and_sets_the_exit_code():
    assert not issubclass(InterruptedBySignal, Exception)
    with pytest.raises(SystemExit) as caught:
        raise InterruptedBySignal(signal.SIGTERM)
    assert (caught.value.code, caught.value.signum) == (143, signal.SIGTERM)
    assert SIGTERMException().code == 143


def test_errors_about_input_are_those_of_fabric():
    for name in ("MisconfigurationException", "ConfigurationError", "CheckpointDamagedError"):
        assert getattr(errors, name) is getattr(fabric_errors, name)
