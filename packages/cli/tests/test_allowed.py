"""A config builds what types ask for, and what it must not build is not even imported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.cli.allowed import expected_classes, given_values, holds_data
from fulmen.cli.cli import LightningCLI
from fulmen.trainer import Callback
from fulmen.trainer.demos import BoringModel

FOREIGN = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
number = 3
class Thing: pass
def function(): ...
"""

APP = """
from typing import Any, Callable
import torch
from fulmen.trainer.demos import BoringModel

class Encoder(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module | None = None, anything: Any = None):
        super().__init__()

class Model(BoringModel):
    def __init__(self, encoder: torch.nn.Module | None = None, anything: Any = None, untyped=None,
                 encoders: list[torch.nn.Module] | None = None, named: dict[str, Encoder] | None = None,
                 description: dict | None = None, text: str = "", make: Callable[[], Encoder] | None = None):
        super().__init__()
        self.encoder, self.description, self.text, self.encoders = encoder, description, text, encoders
"""

THING = '{"class_path": "foreign.Thing"}'
REFUSED = [
    "--model foreign.Thing",
    "--model foreign.number",
    "--model foreign.function",
    "--model foreign.Nope",
    '--model {"class_path":"foreign.Thing"}',
    "--model.class_path foreign.Thing",
    "--data foreign.Thing",
    "--optimizer foreign.Thing",
    "--lr_scheduler=foreign.Thing",
    "--trainer.callbacks foreign.Thing",
    "--trainer.callbacks+=foreign.Thing",
    '--trainer.callbacks=["foreign.Thing"]',
    "--trainer.logger foreign.Thing",
    "--trainer.profiler foreign.Thing",
    "--trainer.strategy=foreign.Thing",
    "--trainer.plugins foreign.Thing",
    "--model safe.Model --model.encoder foreign.Thing",
    "--model safe.Model --model.init_args.encoder foreign.Thing",
    "--model safe.Model --model.encoder.class_path=foreign.Thing",
    "--model safe.Model --model.encoder safe.Encoder --model.encoder.inner foreign.Thing",
    '--model safe.Model --model.encoders=["foreign.Thing"]',
    '--model safe.Model --model.named={"a":"foreign.Thing"}',
    "--model safe.Model --model.make foreign.Thing",
    '--model safe.Model --model.anything={"class_path":"foreign.Thing"}',
    '--model safe.Model --model.untyped={"class_path":"foreign.Thing"}',
    '--model safe.Model --model.encoder safe.Encoder --model.encoder.anything={"class_path":"foreign.Thing"}',
    "--config model.yaml",
    "--config nested.yaml",
    "--config callbacks.yaml",
    "--config untyped.yaml",
    "--config tab.yaml",
    "--model class.yaml",
    "--trainer trainer.yaml",
]
FILES = {
    "model.yaml": "model: {class_path: foreign.Thing}\n",
    "nested.yaml": "model:\n  class_path: safe.Model\n  init_args:\n    encoder: {class_path: foreign.Thing}\n",
    "callbacks.yaml": "model: safe.Model\ntrainer: {callbacks: [{class_path: Timer}, {class_path: foreign.Thing}]}\n",
    "untyped.yaml": "model:\n  class_path: safe.Model\n  init_args: {anything: {class_path: foreign.Thing}}\n",
    "tab.yaml": "trainer:\n  callbacks: [{class_path: foreign.Thing}]\n  logger: {class_path: T\thing}\n",
    "class.yaml": "class_path: foreign.Thing\n",
    "trainer.yaml": "callbacks: [{class_path: foreign.Thing}]\n",
    "root.yaml": "fit:\n  model: foreign.Thing\n",
}


@pytest.fixture
def foreign(folder: Path) -> Path:
    """A module that says when it runs."""
    (folder / "foreign.py").write_text(FOREIGN)
    (folder / "safe.py").write_text(APP)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    yield folder  # type: ignore[misc]
    import sys

    for name in ("foreign", "safe"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("arguments", [*(f"fit {case}" for case in REFUSED), "--config root.yaml fit"])
def test_what_does_not_fit_is_refused_before_it_is_imported(
    command: Callable[..., Any], foreign: Path, arguments: str
) -> None:
    ended = command(*arguments.split())
    assert ended.code == 2, ended.err
    assert "foreign." in ended.err
    assert "Traceback" not in ended.err
    assert not (foreign / "ran").exists(), "it was imported"


@pytest.mark.parametrize(
    ("option", "path"),
    [
        ("--model.make", "os.system"),
        ("--model.make", "subprocess.run"),
        ("--model.encoder", "subprocess.Popen"),
        ("--trainer.logger", "logging.FileHandler"),
    ],
)
def test_what_runs_programs_and_touches_files_is_refused(
    command: Callable[..., Any], foreign: Path, option: str, path: str
) -> None:
    ended = command("fit", "--model", "safe.Model", option, path)
    assert ended.code == 2
    assert path in ended.err


def test_a_dict_is_looked_at_too(foreign: Path) -> None:
    with pytest.raises(SystemExit):
        LightningCLI(args={"model": {"class_path": "foreign.Thing"}}, run=False)
    with pytest.raises(SystemExit):
        LightningCLI(args={"subcommand": "fit", "fit": {"model": "foreign.Thing"}})
    assert not (foreign / "ran").exists()


def test_tags_build_nothing(command: Callable[..., Any], foreign: Path) -> None:
    (foreign / "tag.yaml").write_text("model: !!python/object/apply:os.mkdir [made]\n")
    ended = command("fit", "--config", "tag.yaml")
    assert ended.code == 2
    assert "tag" in ended.err
    assert not (foreign / "made").exists()


def test_what_fits_is_built(foreign: Path) -> None:
    cli = LightningCLI(
        args=[
            "--model=safe.Model",
            "--model.encoder=safe.Encoder",
            "--model.encoder.inner=torch.nn.Identity",
            '--model.encoders=["torch.nn.Identity", {"class_path": "safe.Encoder"}]',
            '--model.description={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}',
            "--model.text=foreign.Thing",
        ],
        run=False,
    )
    assert type(cli.model.encoder).__name__ == "Encoder"
    assert [type(one).__name__ for one in cli.model.encoders] == ["Identity", "Encoder"]
    assert cli.model.description == {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}, "a dict is data"
    assert cli.model.text == "foreign.Thing", "a text is a text"
    assert not (foreign / "ran").exists()


def test_a_link_may_describe_an_object_for_an_argument_without_a_type() -> None:
    class Untyped(BoringModel):
        def __init__(self, optimizer_init=None) -> None:  # type: ignore[no-untyped-def]
            super().__init__()
            self.optimizer_init = optimizer_init

    class Linked(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_optimizer_args(nested_key="opt", link_to="model.optimizer_init")

    cli = Linked(Untyped, args=["--opt=SGD", "--opt.lr=0.2"], run=False)
    assert cli.model.optimizer_init["class_path"] == "torch.optim.SGD"
    assert cli.model.optimizer_init["init_args"]["lr"] == 0.2


@pytest.mark.parametrize(
    ("hint", "classes"),
    [
        (int | None, ()),
        (Any, ()),
        (object, ()),
        (dict[str, Any], ()),
        (Callback | None, (Callback,)),
        (list[Callback] | Callback | None, (Callback,)),
        (dict[str, torch.nn.Module], (torch.nn.Module,)),
        (type[Callback], (Callback,)),
        (Callable[[int], Callback], (Callback,)),
        (Callable[[int], int], None),
        (Callable, None),
    ],
)
def test_types_say_which_classes_they_ask_for(hint: Any, classes: tuple[type, ...] | None) -> None:
    assert expected_classes(hint) == classes


def test_types_of_data() -> None:
    assert all(map(holds_data, (int, str | None, dict, dict[str, Any], list[int])))
    assert not any(map(holds_data, (Any, object, torch.nn.Module, int | torch.nn.Module)))


def test_values_are_read_from_options_and_files(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("a: {b: 1}\nc: x\n3: y\n")
    arguments = ["--x", "1", "--y=2", "--config", str(config), "--z+=[1, 2]", "stray", "--flag", "--group", str(config)]
    assert list(given_values(arguments)) == [
        ("x", "1"),
        ("y", "2"),
        ("a", {"b": 1}),
        ("c", "x"),
        ("3", "y"),
        ("z", [1, 2]),
        ("group", {"a": {"b": 1}, "c": "x", 3: "y"}),
    ]
