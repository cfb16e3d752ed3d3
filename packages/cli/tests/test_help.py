import inspect
import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from fulmen.cli.cli import LightningCLI
from fulmen.cli.help import choices_of, kind_of
from fulmen.trainer import Callback, Trainer
from fulmen.trainer.demos import BoringModel


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["fit", "--help"], ["predict", "-h"], ["fit", "--trainer.callbacks.help", "EarlyStopping"]],
    ids=" ".join,
)
def test_every_line_fits_the_terminal(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, width: int, arguments: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    ended = command(*arguments)
    assert ended.code == 0
    # A single word is not broken: the name of an option, a variable, a path.
    long = [line for line in ended.out.splitlines() if len(line) > min(width, 110) and len(line.split()) > 1]
    assert long == []
    assert ended.out.startswith("usage: lightning-cli")


def test_every_option_is_there_once_and_trainer_options_by_purpose(command: Callable[..., Any]) -> None:
    shown = command("fit", "--help").out
    for name in inspect.signature(Trainer).parameters:
        assert len(re.findall(rf"^  --trainer\.{name}(?:\[\+\])? ", shown, re.MULTILINE)) == 1, name
    titles = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert titles[:5] == ["Options", "Model", "Data", "Optimizer", "Learning rate scheduler"]
    assert all(title.startswith("Trainer: ") for title in titles[5:])
    assert "Trainer: further arguments" not in titles, "a new argument of Trainer needs its place in help.py"
    assert "FULMEN_FIT__TRAINER__MAX_EPOCHS=3" in shown
    assert "fulmen.trainer." not in shown, "short names will do"
    assert {"FSDPStrategy", "AdamW"} <= set(words := re.findall(r"\w+", shown))
    assert {"OnXLA", "ParallelStrategy", "EngineOptimizer"}.isdisjoint(words), "nobody chooses these"


def test_the_root_lists_the_words_of_the_command(command: Callable[..., Any]) -> None:
    shown = command("--help").out
    for word in ("fit", "validate", "test", "predict", "init NAME", "examples", "completion SHELL"):
        assert re.search(rf"^  {word}  +\S", shown, re.MULTILINE), word


def test_a_fixed_class_shows_its_own_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    class Net(BoringModel):
        """A net.

        Args:
            width: How wide it is.
            mode: Which way.
            rate: Linked.
        """

        def __init__(self, width: int = 3, mode: Literal["a", "b"] = "a", rate: float = 0.1, needed: str = ...) -> None:  # type: ignore[assignment]
            super().__init__()

    class Mine(Callback):
        def __init__(self, patience: int = 3) -> None: ...

    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_lightning_class_args(Mine, "mine")
            parser.link_arguments("trainer.max_epochs", "model.rate")

    with pytest.raises(SystemExit):
        Own(Net, args=["fit", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Model: A net: " in shown
    assert "--model.width INT How wide it is. Default: 3." in shown
    assert "--model.mode CHOICE Which way. One of a, b. Default: a." in shown
    assert "--mine.patience INT Default: 3." in shown
    assert "--model.rate Taken from trainer.max_epochs." in shown


class Color(Enum):
    RED = 1


@pytest.mark.parametrize(
    ("hint", "kind"),
    [
        (int, "INT"),
        (int | None, "INT"),
        (bool | Literal["warn"] | None, "BOOL|CHOICE"),
        (Color, "CHOICE"),
        (dict[str, int], "DICT"),
        (Path, "PATH"),
        (Any, "VALUE"),
        (list[Callback] | Callback | None, "CLASS"),
        (Callable[[int], Callback], "CLASS"),
        (Callable, "FUNCTION"),
        (float | torch.Tensor, "FLOAT"),
        (tuple[int, ...], "LIST"),
    ],
)
def test_kinds(hint: Any, kind: str) -> None:
    assert kind_of(hint) == kind


def test_choices() -> None:
    assert list(choices_of(Literal[16, 32] | Literal["16", "bf16"] | None)) == [16, 32, "bf16"]
    assert list(choices_of(Color)) == ["RED"]
    assert list(choices_of(int)) == []
