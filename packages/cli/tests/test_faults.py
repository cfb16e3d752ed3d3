"""What the user's own code raises is shown as it is, and jsonargparse makes nothing else of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fulmen.cli.cli import LightningCLI
from fulmen.cli.faults import fault_in_class, fault_in_module
from fulmen.trainer.demos import BoringModel

KINDS = [ValueError, TypeError, AttributeError, ImportError, AssertionError, KeyError, ZeroDivisionError, SystemError]


class Fails(BoringModel):
    def __init__(self, kind: str = "ValueError") -> None:
        super().__init__()
        self._fail(kind)

    def _fail(self, kind: str) -> None:
        raise next(one for one in KINDS if one.__name__ == kind)("my own problem")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subclass_mode", [True, False])
def test_an_error_in_a_class_stays_that_error(kind: type[Exception], subclass_mode: bool) -> None:
    chosen = ["--model=Fails"] if subclass_mode else []
    with pytest.raises(kind, match="my own problem") as raised:
        LightningCLI(
            Fails, args=[*chosen, f"--model.kind={kind.__name__}"], run=False, subclass_mode_model=subclass_mode
        )
    frames = [entry.name for entry in raised.traceback]
    assert frames[-2:] == ["__init__", "_fail"]
    assert not any("jsonargparse" in str(entry.path) for entry in raised.traceback)
    assert raised.value.__suppress_context__


def test_our_own_errors_in_a_class_are_told(command: Callable[..., Any], folder: Path) -> None:
    wrong = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=x", "--trainer.callbacks.mode=up"]
    ended = command("fit", "--model=cliapp.Model", *wrong)
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("lightning-cli: error: EarlyStopping(mode='up')")


def test_nothing_is_found_where_nothing_of_the_user_is() -> None:
    error = ValueError("plain")
    assert fault_in_module(None) is None
    assert fault_in_module(error) is None
    assert fault_in_class(error) is None
