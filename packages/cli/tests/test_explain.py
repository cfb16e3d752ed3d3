"""Every mistake gets its three sentences, exit code 2, and no traceback."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fulmen.cli.cli import LightningCLI
from fulmen.trainer.demos import BoringModel

FILES = {
    "number_for_key.yaml": "3: {class_path: cliapp.Model}\n",
    "null_for_key.yaml": "null: [cliapp.Model]\n",
    "number_below.yaml": "trainer: {3: 4}\n",
    "key.yaml": "trainer:\n  max_epoch: 3\nmodel: cliapp.Model\n",
    "group.yaml": "trainr:\n  max_epochs: 3\nmodel: cliapp.Model\n",
    "init.yaml": "model:\n  class_path: cliapp.Model\n  init_args: {widht: 4}\n",
    "type.yaml": "trainer:\n  max_epochs: three\nmodel: cliapp.Model\n",
    "init_type.yaml": "model:\n  class_path: cliapp.Model\n  init_args:\n    width: wide\n",
    "callback.yaml": "model: cliapp.Model\n"
    "trainer:\n  callbacks:\n  - class_path: ModelCheckpoint\n    init_args: {monitr: a}\n",
    "class.yaml": "model:\n  class_path: cliapp.Nope\n",
    "broken.yaml": "trainer: [1,\nmodel: x\n",
    "tag.yaml": "model: !!python/name:os.system\n",
    "list.yaml": "- 1\n- 2\n",
    "empty.yaml": "",
    "tr.yaml": "max_epochs: x\n",
    "group_number.yaml": "model: cliapp.Model\ntrainer: 3\n",
    "group_null.yaml": "model: cliapp.Model\ntrainer:\n  # max_epochs: 3\n",
    "init_list.yaml": "model:\n  class_path: cliapp.Model\n  init_args: [1]\n",
    "init_null.yaml": "model:\n  class_path: cliapp.Model\n  init_args:\n",
    "init_text.yaml": "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args: loss\n",
    "twice.yaml": "model: cliapp.Model\ntrainer:\n  max_epochs: 1\n  max_steps: 2\n  max_epochs: 3\n",
    "twice_in_list.yaml": "trainer:\n  callbacks:\n  - class_path: Timer\n"
    "    init_args: {verbose: true, verbose: false}\n",
    "long.yaml": f"trainer:\n  max_epochs: {'1' * 5000}\n",
    "deep.yaml": f"model: {'[' * 3000}{']' * 3000}\n",
    "inside_itself.yaml": "model: &a\n  class_path: cliapp.Model\n  init_args: *a\n",
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
    ("fit --config group_number.yaml", ["The key trainer (group_number.yaml, line 2) is '3'", "a mapping of names"]),
    ("fit --config group_null.yaml", ["The key trainer (group_null.yaml, line 2) is null", "a mapping of names"]),
    ("fit --config init_list.yaml", ["model.init_args (init_list.yaml, line 3) is '[1]'", "a mapping of names"]),
    ("fit --config init_null.yaml", ["model.init_args (init_null.yaml, line 3) is null", "a mapping of names"]),
    ("fit --config init_text.yaml", ["trainer.callbacks.init_args (init_text.yaml, line 4) is 'loss'"]),
    ("fit --config twice.yaml", ["trainer.max_epochs stands twice in twice.yaml, in lines 3 and 5", "Remove one"]),
    ("fit --config twice_in_list.yaml", ["trainer.callbacks.init_args.verbose stands twice", "in line 4."]),
    ("fit --config inside_itself.yaml", ["contains itself"]),
    ("fit --config deep.yaml", ["The config file deep.yaml is nested too deeply", "nothing was started"]),
    ("fit --config long.yaml", ["The config file long.yaml has a number with more digits", "nothing was started"]),
    (f"fit --model cliapp.Model --trainer.max_epochs={'1' * 5000}", ["--trainer.max_epochs is a number with more"]),
    (f"fit --model cliapp.Model --trainer.max_epochs {'1' * 5000}", ["--trainer.max_epochs is a number with more"]),
    ("fit --model cliapp.Model \t", ["was not expected", "no value is due"]),
    ("fit --model cliapp.Model --trainer.max_ep 3", ["Did you mean --trainer.max_epochs?"]),
    ("exampels", ["'exampels' is no subcommand", "Did you mean examples?"]),
    ("fit --config tag.yaml", ["'tag.yaml' has a tag", "line 1", "Tags build objects"]),
    ("fit --config list.yaml", ["'list.yaml' has no keys"]),
    ("fit --config empty.yaml", ["'empty.yaml' is empty"]),
    ("fit --config number_for_key.yaml", ["'number_for_key.yaml' has the key 3, which is no text", "Remove it"]),
    ("fit --config null_for_key.yaml", ["'null_for_key.yaml' has the key None, which is no text"]),
    ("fit --model cliapp.Model --config number_below.yaml", ["'number_below.yaml' has the key 3"]),
    ("fit --model no.yaml", ["no.yaml"]),
    ("fit --model cliapp.Model --trainer tr.yaml", ["trainer.max_epochs (tr.yaml, line 1) is 'x'"]),
    ("fit --model cliapp.Model --ckpt_path", ["--ckpt_path has no value"]),
    ("fit --model cliapp.Model --trainer.max_epochs", ["--trainer.max_epochs has no value"]),
    ("fit --model cliapp.Model --trainer.max_epochs=", ["--trainer.max_epochs"]),
    ("fit --model cliapp.Model --trainer.benchmark maybe", ["--trainer.benchmark is 'maybe'", "bool or null"]),
    ("fit --model cliapp.Model --trainer.deterministic maybe", ["--trainer.deterministic is 'maybe'", "'warn'"]),
    ("fit --model cliapp.Model --trainer.callbacks EarlyStoping", ["'EarlyStoping'", "EarlyStopping?"]),
    ("fit --model cliapp.Model --trainer.callbacks+=EarlyStopping", ["lacks monitor"]),
    (
        "fit --model cliapp.Model --trainer.logger.save_dir x",
        ["--trainer.logger.save_dir came before a class"],
    ),
    ("fit --model cliapp.Model --optimizer Adamm", ["'Adamm'", "Adam?"]),
    ("fit --model cliapp.Model --optimizer cliapp.Model", ["which is no Optimizer"]),
    ("fit --model cliapp.Model --optimizer SGD --optimizer.lr fast", ["--optimizer.lr is 'fast'", "float"]),
    ("fit --model cliapp.Model --lr_scheduler ReduceLROnPlateau", ["lacks monitor"]),
    ("fit --model cliapp.Model --model.name.first x", ["--model.name.first is unknown"]),
    ("fit --model torch.nn.Linear", ["'torch.nn.Linear', which is no LightningModule"]),
    ("fit --model cliapp.Model --data cliapp.Dataa", ["Did you mean cliapp.Data?"]),
    ("fit --model cliapp.Model --data cliapp.Data --data.batchsize 3", ["--data.batchsize is unknown", "batch_size?"]),
    ("fit --model os.system", ["'os.system', which is no LightningModule"]),
    ("fit --model cliapp.Model --model.width ${trainer.max_epoch}", ["'fit.trainer.max_epoch'", "leads nowhere"]),
    ("fit --config memory://conf/none.yaml", ["'memory://conf/none.yaml' cannot be read"]),
    ("validate --model cliapp.Model --verbose 3x", ["--verbose is '3x'", "bool"]),
    ("predict", ["`lightning-cli predict` lacks --model"]),
    ("fit --model cliapp.Model --trainer.max_epochs 3 4", ["'4' was not expected"]),
    ("fit --model=cliapp", ["'cliapp'"]),
    ("fit --model=3", ["--model"]),
    ("fit --model cliapp.Model --seed_everything x", ["--seed_everything is 'x'"]),
    ("test --model cliapp.Model --return_predictions true", ["--return_predictions is unknown"]),
]
VARIABLES = [
    ({"FULMEN_FIT__TRAINER__MAX_EPOCH": "3"}, ["FULMEN_FIT__TRAINER__MAX_EPOCH sets", "--trainer.max_epochs?"]),
    ({"FULMEN_TRAINER__MAX_EPOCHS": "x"}, ["--trainer.max_epochs, set by FULMEN_TRAINER__MAX_EPOCHS", "is 'x'"]),
    ({"FULMEN_MODEL__WIDHT": "3"}, ["--model.widht, set by FULMEN_MODEL__WIDHT", "Did you mean width?"]),
    ({"FULMEN_CONFIG": "none.yaml"}, ["none.yaml"]),
    ({"FULMEN_DATA": "cliapp.Nope"}, ["--data, set by FULMEN_DATA", "'cliapp.Nope', which cannot be found"]),
]
# Understood, but it cannot be run: Trainer says why.
RUNS = [
    ("fit --model cliapp.Bare", "has no training_step"),
    ("fit --model cliapp.Model --trainer.devices=0", "asks for no device"),
    ("fit --model cliapp.Model --trainer.accelerator=abacus", "accelerator='abacus'"),
    ("fit --model cliapp.Model --trainer.strategy=nope", "strategy='nope'"),
    ("fit --model cliapp.Model --trainer.max_epochs=-5", "max_epochs=-5"),
    ("fit --model cliapp.Model --trainer.gradient_clip_algorithm=foo", "gradient_clip_algorithm='foo'"),
    ("fit --model cliapp.Model --trainer.max_time=soon", "max_time='soon'"),
    ("fit --model cliapp.Model --trainer.limit_train_batches=2.5", "limit_train_batches=2.5"),
    ("fit --model cliapp.Model --trainer.profiler=nope", "profiler='nope'"),
    ("fit --model cliapp.Model --ckpt_path=none.ckpt", "none.ckpt"),
    ("fit --model cliapp.Model --lr_scheduler ConstantLR", "ConstantLR, and there is no optimizer"),
    ("test --model cliapp.Model --ckpt_path=best", "asks for the best checkpoint"),
]


NET = "from fulmen.trainer import LightningModule\nclass Net(LightningModule): pass\n"


@pytest.fixture(autouse=True)
def files(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize(("arguments", "words"), CASES, ids=[arguments or "nothing" for arguments, _ in CASES])
def test_a_mistake_is_explained(command: Callable[..., Any], arguments: str, words: list[str]) -> None:
    if "${" in arguments:
        pytest.importorskip("omegaconf")
    if "://" in arguments:
        pytest.importorskip("fsspec")
    ended = command(*(arguments.split(" ") if arguments else ()))
    assert ended.code == 2, ended.err
    check(ended.err, words)


@pytest.mark.parametrize(("variables", "words"), VARIABLES)
def test_a_mistake_in_a_variable_names_it(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ended = command("fit", "--model", "cliapp.Model")
    assert ended.code == 2, ended.err
    check(ended.err, words)


@pytest.mark.parametrize(("arguments", "words"), RUNS, ids=[arguments for arguments, _ in RUNS])
def test_what_cannot_be_run_is_explained(command: Callable[..., Any], arguments: str, words: str) -> None:
    ended = command(*arguments.split())
    assert ended.code == 1, ended.err
    check(ended.err, [words])


def test_a_linked_argument_is_not_given() -> None:
    class Net(BoringModel):
        def __init__(self, width: int = 1) -> None:
            super().__init__()

    class Linked(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.link_arguments("trainer.max_epochs", "model.width")

    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit):
        Linked(Net, args=["--model.width=3"], run=False)
    check(err.getvalue(), ["--model.width cannot be given", "taken from trainer.max_epochs"])


def test_references_need_omegaconf(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("parser", "explain"):
        monkeypatch.setattr(f"fulmen.cli.{place}.is_installed", lambda name: name != "omegaconf")
    ended = command("fit", "--model", "cliapp.Model", "--model.width", "${trainer.max_epochs}")
    assert ended.code == 2
    check(ended.err, ["pip install omegaconf"])


def check(err: str, words: list[str]) -> None:
    message = err.strip()
    assert "Traceback" not in message
    assert "\n" not in message
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
    (folder / "broken_app.py").write_text(text + NET)
    ended = command("fit", "--model", "broken_app.Net")
    assert ended.code == 1
    assert ended.err.strip().endswith(last)
    assert "broken_app.py" in ended.err
    assert "jsonargparse" not in ended.err
    assert "fulmen" not in ended.err


def test_in_a_list_of_callbacks_too(command: Callable[..., Any], folder: Path) -> None:
    (folder / "broken_callback.py").write_text(
        "import nothere_at_all\nfrom fulmen.trainer import Callback\nclass Mine(Callback): pass\n"
    )
    ended = command("fit", "--model", "cliapp.Model", "--trainer.callbacks", "broken_callback.Mine")
    assert ended.code == 1
    assert ended.err.strip().endswith("No module named 'nothere_at_all'")


def test_other_ranks_are_silent(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    ended = command("fit", "--nope")
    assert (ended.code, ended.err) == (2, "")
