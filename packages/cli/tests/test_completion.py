"""The scripts complete, in the shells that they are for."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fulmen.cli.completion import SHELLS, Completions, completions_of, script
from fulmen.cli.run import parser_of_command

ASK = """
source ./script
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _lightning_cli; echo "${COMPREPLY[*]}"; }
"""


@pytest.fixture(scope="module")
def completions() -> Completions:
    return completions_of(parser_of_command())


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash(tmp_path: Path, completions: Completions) -> None:
    (tmp_path / "script").write_text(script("bash", completions))
    (tmp_path / "mine.ckpt").touch()
    cases = {
        ("va",): "validate",
        ("i",): "init",
        ("fit", "--trainer.max_ep"): "--trainer.max_epochs",
        ("fit", "--trainer.precision", "bf16-"): "bf16-true bf16-mixed",
        ("fit", "--trainer.precision", "=", "bf16-"): "bf16-true bf16-mixed",
        ("fit", "--trainer.callbacks+", "Early"): "EarlyStopping",
        ("fit", "--trainer.callbacks.help", "Early"): "EarlyStopping",
        ("fit", "--trainer.accelerator", "c"): "cpu cuda",
        ("fit", "--trainer.benchmark", ""): "true false",
        ("fit", "--optimizer", "SG"): "SGD",
        ("test", "--ckpt_path", "b"): "best",
        ("test", "--ckpt_path", "m"): "mine.ckpt",
        ("completion", ""): "bash zsh",
        ("fit", "--config", ""): "",  # left to the shell
        ("validate", "--verb"): "--verbose",
        ("fit", "--verb"): "",
    }
    asked = "\n".join(f"ask lightning-cli {' '.join(map(repr, words))}" for words in cases)
    ended = subprocess.run(["bash", "-c", ASK + asked], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    assert dict(zip(cases, ended.stdout.split("\n"), strict=False)) == cases


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_can_read_its_script(tmp_path: Path, completions: Completions) -> None:
    (tmp_path / "script").write_text(script("zsh", completions))
    ended = subprocess.run(["zsh", "-n", "script"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stderr == ""


def test_the_command_prints_it(command: Callable[..., Any]) -> None:
    for shell in SHELLS:
        ended = command("completion", shell)
        assert ended.code == 0
        assert f"lightning-cli completion {shell}" in ended.out
        assert "--trainer.max_epochs" in ended.out
    ended = command("completion", "tcsh")
    assert ended.code == 2
    assert "tcsh" in ended.err
