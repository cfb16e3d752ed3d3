"""Every mistake gets its three sentences, exit code 2, and no traceback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FILES = {
    "key.yaml": "trainer:\n  max_epoch: 3\nmodel: cliapp.Model\n",
    "group.yaml": "trainr:\n  max_epochs: 3\nmodel: cliapp.Model\n",
    "init.yaml": "model:\n  class_path: cliapp.Model\n  init_args: {widht: 4}\n",
    "type.yaml": "trainer:\n  max_epochs: three\nmodel: cliapp.Model\n",
    "init_type.yaml": "model:\n  class_path: cliapp.Model\n  init_args:\n    width: wide\n",
    "callback.yaml": "model: cliapp.Model\n"
    "trainer:\n  callbacks:\n  - class_path: ModelCheckpoint\n    init_args: {monitr: a}\n",
    "class.yaml": "model:\n  class_path: cliapp.Nope\n",
    "broken.yaml": "trainer: [1,\nmodel: x\n",
    "root.yaml": "fit:\n  model: cliapp.Model\n  trainer: {max_epoch: 3}\n",
}

CASES = [
    ("--nope=1", ["--nope is unknown", "subcommand"]),
    ("", ["No subcommand", "fit, validate, test, predict"]),
    ("fitt", ["'fitt' is no subcommand", "Did you mean fit?"]),
    ("fit", ["lacks --model", "--model my_module.MyModel"]),
    ("fit --nope=1 --model cliapp.Model", ["--nope is unknown", "lightning-cli fit --help"]),
    ("fit --trainer.max_epoch 3 --model cliapp.Model", ["--trainer.max_epoch is unknown", "--trainer.max_epochs?"]),
    ("fit stray --model cliapp.Model", ["'stray' was not expected"]),
    ("fit --model cliapp.Model --data", ["--data has no value"]),
    ("fit --model cliapp.Mode", ["--model names 'cliapp.Mode'", "Did you mean cliapp.Model?"]),
    ("fit --model nomodule.Net", ["'nomodule.Net', which cannot be found", "There is no module 'nomodule'"]),
    ("fit --model Nope", ["'Nope', which cannot be found", "my_module.Nope"]),
    (
        "fit --model cliapp.NotModule",
        ["'cliapp.NotModule', which is no LightningModule", "class NotModule(LightningModule)"],
    ),
    ("fit --model cliapp.Model --data cliapp.Model", ["--data names 'cliapp.Model', which is no LightningDataModule"]),
    ("fit --model cliapp.Model --trainer.callbacks cliapp.Model", ["which is no Callback"]),
    ("fit --model cliapp.Model --model.widht 3", ["--model.widht is unknown", "takes width, lr, name", "mean width?"]),
    ("fit --model cliapp.Model --model.width wide", ["--model.width is 'wide'", "must be int"]),
    ("fit --model.width 5 --model cliapp.Model", ["came before a class was chosen"]),
    ("fit --model cliapp.Model --trainer.max_epochs three", ["--trainer.max_epochs is 'three'", "int or null"]),
    ("fit --model cliapp.Model --trainer.accelerator.foo 3", ["--trainer.accelerator.foo is unknown"]),
    ("fit --model cliapp.Model --trainer.precision 12", ["--trainer.precision is '12'", "'bf16-mixed'"]),
    ("fit --model cliapp.Model --seed_everything=null", ["--seed_everything is null", "bool or int"]),
    ("fit --model cliapp.Model --optimizer Nope", ["--optimizer names 'Nope'"]),
    ("fit --model cliapp.Model --optimizer SGD --optimizer.lrr 3", ["--optimizer.lrr is unknown", "Did you mean lr?"]),
    ("fit --model cliapp.Model --lr_scheduler StepLR", ["lacks step_size", "--lr_scheduler.step_size"]),
    ("fit --model cliapp.Model --trainer.callbacks EarlyStopping", ["lacks monitor"]),
    ("fit --model cliapp.Model --print_config=comments", ["comments"]),
    ("fit --config nofile.yaml", ["nofile.yaml' does not exist"]),
    ("fit --config keyy.yaml", ["keyy.yaml' does not exist", "Did you mean key.yaml?"]),
    ("fit --config nofolder/c.yaml", ["There is no folder"]),
    ("--config nofile.yaml fit", ["nofile.yaml' does not exist"]),
    ("fit --config key.yaml", ["trainer.max_epoch (key.yaml, line 2) is unknown", "Did you mean trainer.max_epochs?"]),
    ("fit --config group.yaml", ["trainr.max_epochs (group.yaml, line 2) is unknown", "trainer.max_epochs?"]),
    ("fit --config init.yaml", ["model.init_args.widht (init.yaml, line 3) is unknown", "Did you mean width?"]),
    ("fit --config type.yaml", ["trainer.max_epochs (type.yaml, line 2) is 'three'", "int or null"]),
    ("fit --config init_type.yaml", ["model.init_args.width (init_type.yaml, line 4) is 'wide'", "must be int"]),
    ("fit --config callback.yaml", ["trainer.callbacks.init_args.monitr (callback.yaml, line 5)", "mean monitor?"]),
    ("fit --config class.yaml", ["The key model (class.yaml, line 1) names 'cliapp.Nope'"]),
    ("fit --config broken.yaml", ["'broken.yaml' is no YAML", "line"]),
    ("--config root.yaml fit", ["trainer.max_epoch", "root.yaml, line 3", "trainer.max_epochs?"]),
]


@pytest.fixture(autouse=True)
def files(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize(("arguments", "words"), CASES, ids=[arguments or "nothing" for arguments, _ in CASES])
def test_a_mistake_is_explained(command: Callable[..., Any], arguments: str, words: list[str]) -> None:
    ended = command(*arguments.split())
    assert ended.code == 2, ended.err
    message = ended.err.strip()
    assert "Traceback" not in message
    assert "\n" not in message
    assert message.startswith("lightning-cli")
    assert " error: " in message
    for word in words:
        assert word in message
    assert message.count(". ") >= 2, "what happened, why, what to do"
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("import nothere_at_all\n", "ModuleNotFoundError: No module named 'nothere_at_all'"),
        ("def x(:\n", "SyntaxError: invalid syntax"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_an_error_in_the_users_module_is_shown_as_python_shows_it(
    command: Callable[..., Any], folder: Path, text: str, last: str
) -> None:
    (folder / "broken_app.py").write_text(text)
    ended = command("fit", "--model", "broken_app.Net")
    assert ended.code == 1
    assert ended.err.strip().endswith(last)
    assert "broken_app.py" in ended.err
    assert "jsonargparse" not in ended.err
    assert "fulmen" not in ended.err


def test_in_a_list_of_callbacks_too(command: Callable[..., Any], folder: Path) -> None:
    (folder / "broken_callback.py").write_text("import nothere_at_all\n")
    ended = command("fit", "--model", "cliapp.Model", "--trainer.callbacks", "broken_callback.Mine")
    assert ended.code == 1
    assert ended.err.strip().endswith("No module named 'nothere_at_all'")


def test_other_ranks_are_silent(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    ended = command("fit", "--nope")
    assert (ended.code, ended.err) == (2, "")
