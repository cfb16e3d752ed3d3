"""Every example is listed with a command, and the command runs."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fulmen.cli.example_list import describe, example_names

FEW = [
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--curves=false",
]


def test_they_are_listed(command: Callable[..., Any]) -> None:
    shown = command("examples").out
    assert example_names() == ["chars", "gan", "spirals"]
    for name in example_names():
        title, started = describe(name)
        assert f"{name}: {title}" in shown
        assert started.startswith("lightning-cli fit --model fulmen.cli.examples.")
        assert started in " ".join(shown.replace("\\\n", "").split())


def test_one_is_printed_to_begin_from(command: Callable[..., Any]) -> None:
    from fulmen.cli.examples import spirals

    assert command("examples", "spirals").out == Path(spirals.__file__).read_text()
    ended = command("examples", "nope")
    assert ended.code == 2
    assert "spirals" in ended.err


@pytest.mark.parametrize("name", example_names())
def test_it_runs(command: Callable[..., Any], folder: Path, name: str) -> None:
    words = shlex.split(describe(name)[1])
    ended = command(*words[1:], *FEW)
    assert ended.code == 0, ended.err
    assert (folder / "lightning_logs" / "version_0" / "config.yaml").is_file()


def test_the_classifier_tests_and_predicts(command: Callable[..., Any], folder: Path) -> None:
    classes = ["--model=fulmen.cli.examples.spirals.Classifier", "--data=fulmen.cli.examples.spirals.Spirals"]
    for subcommand in ("test", "predict"):
        ended = command(subcommand, *classes, "--trainer.logger=false", "--trainer.enable_progress_bar=false")
        assert ended.code == 0, ended.err
