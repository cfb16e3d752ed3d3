import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.cli.cli import LightningCLI
from fulmen.cli.optimizers import OptimizerCallable
from fulmen.cli.parser import LightningArgumentParser
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.optional_packages import is_installed
from fulmen.trainer import Callback, LightningModule, Trainer
from fulmen.trainer.demos import BoringDataModule, BoringModel


class Color(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Shape:
    depth: int = 1
    rate: float | None = None


class Net(BoringModel):
    def __init__(
        self,
        width: int = 3,
        rates: list[float] | None = None,
        name: str = "x",
        either: int | str = 1,
        kind: Literal["a", "b", 3] = "a",
        color: Color = Color.RED,
        shape: Shape = Shape(),  # noqa: B008
        shapes: list[Shape] | None = None,
        table: dict[str, float] | None = None,
        nested: dict[str, list[int | None]] | None = None,
        pair: tuple[int, str] = (1, "a"),
        file: Path | None = None,
        encoder: torch.nn.Module | None = None,
        encoders: list[torch.nn.Module] | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
    ) -> None:
        super().__init__()


def parser_of(**kwargs: Any) -> LightningArgumentParser:
    parser = LightningArgumentParser(exit_on_error=False, **kwargs)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(Net, "model")
    parser.add_optimizer_args()
    parser.add_lr_scheduler_args()
    return parser


TRAINER_SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "max_epochs": st.none() | st.integers(-1, 100),
        "max_steps": st.integers(-1, 100),
        "limit_train_batches": st.none() | st.integers(0, 100) | st.floats(0, 1),
        "overfit_batches": st.floats(0, 1),
        "precision": st.sampled_from([None, "32-true", "bf16-mixed", 64]),
        "deterministic": st.sampled_from([None, True, False, "warn"]),
        "max_time": st.none() | st.just("00:01:00:00") | st.fixed_dictionaries({"hours": st.integers(1, 9)}),
        "default_root_dir": st.none() | st.from_regex(r"[a-z/]{1,9}", fullmatch=True),
        "callbacks": st.none() | st.just([{"class_path": "EarlyStopping", "init_args": {"monitor": "loss"}}]),
        "logger": st.none() | st.booleans() | st.just({"class_path": "CSVLogger", "init_args": {"save_dir": "x"}}),
    },
)
TEXTS = st.text("ab1: -#'\"{}[],\n.e") | st.sampled_from(["true", "null", "1", "1e3", "~", "- x", "no", "0x1", "", " "])
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
ENCODERS = st.sampled_from(
    [
        {"class_path": "torch.nn.Identity"},
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}},
    ]
)
SHAPES = st.fixed_dictionaries({}, optional={"depth": st.integers(), "rate": st.none() | FLOATS})
MODEL_SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "width": st.integers(),
        "rates": st.none() | st.lists(FLOATS, max_size=3),
        "name": TEXTS,
        "either": st.integers() | TEXTS,
        "kind": st.sampled_from(["a", "b", 3]),
        "color": st.sampled_from(["RED", "BLUE"]),
        "shape": SHAPES,
        "shapes": st.none() | st.lists(SHAPES, max_size=2),
        "table": st.none() | st.dictionaries(TEXTS, FLOATS, max_size=2),
        "nested": st.none() | st.dictionaries(TEXTS, st.lists(st.none() | st.integers(), max_size=2), max_size=2),
        "pair": st.tuples(st.integers(), TEXTS).map(list),
        "file": st.none() | st.just("some/file.txt"),
        "encoder": st.none() | ENCODERS,
        "encoders": st.none() | st.lists(ENCODERS, max_size=2),
        "optimizer": st.just({"class_path": "torch.optim.SGD", "init_args": {"lr": 0.25}}),
    },
)
CHOSEN = st.fixed_dictionaries(
    {},
    optional={
        "optimizer": st.none() | st.just({"class_path": "AdamW", "init_args": {"betas": [0.5, 0.75]}}),
        "lr_scheduler": st.none() | st.just({"class_path": "ReduceLROnPlateau", "init_args": {"monitor": "loss"}}),
    },
)
MODES = ["yaml", *(["omegaconf+"] if is_installed("omegaconf") else [])]


@settings(max_examples=60)
@given(TRAINER_SETTINGS, MODEL_SETTINGS, CHOSEN, st.sampled_from(MODES))
def test_what_is_printed_is_parsed_to_the_same(
    trainer: dict[str, Any], model: dict[str, Any], chosen: dict[str, Any], mode: str
) -> None:
    parser = PARSERS[mode]
    first = parser.parse_object({"trainer": trainer, "model": model, **chosen})
    printed = parser.dump(first, skip_unset=False)
    again = parser.parse_string(printed)
    assert parser.dump(again, skip_unset=False) == printed
    assert plain(again) == plain(first)
    for name in model.keys() & {"width", "rates", "name", "kind", "table", "nested"}:
        assert again["model"][name] == model[name]


def plain(config: Any) -> Any:
    return config.clone(with_meta=False).as_dict()


PARSERS = {mode: parser_of(parser_mode=mode) for mode in MODES}
PARSER = PARSERS["yaml"]


def test_each_parameter_of_the_trainer_is_an_option_in_its_order() -> None:
    import inspect

    options = list(PARSER.get_defaults().as_dict()["trainer"])
    assert options == [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]


def test_the_callbacks_that_are_added_are_remembered() -> None:
    class Mine(Callback):
        def __init__(self, patience: int = 3) -> None: ...

    parser = LightningArgumentParser()
    assert parser.add_lightning_class_args(Mine, "mine") == ["mine.patience"]
    assert parser.callback_keys == ["mine"]


def test_a_function_that_says_what_it_returns_is_taken() -> None:
    def make(width: int = 4) -> BoringModel:
        return BoringModel()

    assert LightningArgumentParser().add_lightning_class_args(make, "model") == ["model.width"]


@pytest.mark.parametrize("wrong", [int, lambda: 1, "text"])
def test_anything_else_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot become arguments"):
        LightningArgumentParser().add_lightning_class_args(wrong, "model")


@pytest.mark.parametrize("name", ["EarlyStopping", "ModelCheckpoint", "CSVLogger", "DDPStrategy", "SimpleProfiler"])
def test_classes_of_the_house_are_known_by_their_short_names(name: str) -> None:
    key = {"CSVLogger": "logger", "DDPStrategy": "strategy", "SimpleProfiler": "profiler"}.get(name, "callbacks")
    extra = {
        "EarlyStopping": ["--trainer.callbacks.monitor=x"],
        "CSVLogger": ["--trainer.logger.save_dir=x"],
        "DDPStrategy": ["--trainer.strategy.find_unused_parameters=true"],
    }
    parsed = PARSER.parse_args([f"--trainer.{key}={name}", *extra.get(name, [])])
    given = parsed["trainer"][key]
    assert (given[0] if isinstance(given, list) else given)["class_path"].endswith(f".{name}")


def test_the_header_names_the_version() -> None:
    assert PARSER.dump(PARSER.get_defaults()).startswith("# fulmen.trainer==")


def test_a_parser_of_its_own_reads_variables_if_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULMEN_TRAINER__MAX_EPOCHS", "30")
    assert parser_of(default_env=True).parse_args([])["trainer"]["max_epochs"] == 30
    assert parser_of().parse_args([])["trainer"]["max_epochs"] is None


PRECEDENCE = [
    (["--config", "c40.yaml"], 40),
    (["--config", "c40.yaml", "--config", "c41.yaml"], 41),
    (["--config", "c41.yaml", "--config", "c40.yaml"], 40),
    (["--config", "c40.yaml", "--trainer.max_epochs", "50"], 50),
    (["--trainer.max_epochs", "50", "--config", "c40.yaml"], 40),
    (["--trainer.max_epochs", "50", "--trainer.max_epochs", "51"], 51),
    (["--trainer", "tr.yaml"], 60),
    (["--config", "c40.yaml", "--trainer", "tr.yaml"], 60),
    (["--trainer", '{"max_epochs": 61}'], 61),
    ([], 10),
]


@pytest.mark.parametrize(("arguments", "value"), PRECEDENCE)
def test_what_comes_later_wins(folder: Path, arguments: list[str], value: int) -> None:
    for number in (40, 41):
        (folder / f"c{number}.yaml").write_text(f"trainer: {{max_epochs: {number}}}\n")
    (folder / "tr.yaml").write_text("max_epochs: 60\n")
    cli = LightningCLI(
        BoringModel, args=arguments, run=False, trainer_defaults={"max_epochs": 10}, save_config_callback=None
    )
    assert cli.config["trainer"]["max_epochs"] == value
    assert cli.trainer.max_epochs == value


def test_the_root_config_has_one_section_for_each_subcommand(folder: Path, command: Callable[..., Any]) -> None:
    (folder / "root.yaml").write_text(
        "fit:\n  model: cliapp.Model\n  trainer: {max_epochs: 45}\ntest:\n  model: cliapp.Model\n"
    )
    ended = command("--config", "root.yaml", "fit", "--print_config")
    assert "max_epochs: 45" in ended.out


ROOT = "fit: {model: cliapp.Model, trainer: {max_epochs: 45}}\n"
VARIABLES = [
    ({"FULMEN_FIT__TRAINER__MAX_EPOCHS": "30"}, ["fit"], 30),
    ({"FULMEN_TRAINER__MAX_EPOCHS": "31"}, ["fit"], 31),
    ({"FULMEN_TRAINER_MAX_EPOCHS": "32"}, ["fit"], 32),
    ({"FULMEN_TRAINER__MAX_EPOCHS": "31", "FULMEN_FIT__TRAINER__MAX_EPOCHS": "30"}, ["fit"], 30),
    ({"FULMEN_TEST__TRAINER__MAX_EPOCHS": "30"}, ["fit"], None),
    ({"FULMEN_TRAINER__MAX_EPOCHS": "31"}, ["fit", "--config=c40.yaml"], 40),
    ({"FULMEN_TRAINER__MAX_EPOCHS": "31"}, ["--config=root.yaml", "fit"], 45),
    ({"FULMEN_TRAINER__MAX_EPOCHS": "31"}, ["fit", "--trainer.max_epochs=50"], 50),
    ({"FULMEN_FIT__CONFIG": "c40.yaml"}, ["fit"], 40),
    ({"FULMEN_CONFIG": "c40.yaml", "FULMEN_TRAINER__MAX_EPOCHS": "31"}, ["fit"], 31),
    ({"PL_TRAINER__MAX_EPOCHS": "31", "FULMEN_GLOBAL_SEED": "7"}, ["fit"], None),
]


@pytest.mark.parametrize(("variables", "arguments", "value"), VARIABLES)
def test_variables_count_less_than_configs_and_arguments(
    folder: Path,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    arguments: list[str],
    value: int | None,
) -> None:
    (folder / "c40.yaml").write_text("trainer: {max_epochs: 40}\n")
    (folder / "root.yaml").write_text(ROOT)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    chosen = [] if "--config=root.yaml" in arguments else ["--model=cliapp.Model"]
    ended = command(*arguments, *chosen, "--print_config")
    assert ended.code == 0, ended.err
    assert f"max_epochs: {'null' if value is None else value}\n" in ended.out


def test_variables_choose_classes_and_their_arguments(
    folder: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def width(*arguments: str) -> str:
        ended = command("fit", *arguments, "--print_config")
        assert ended.code == 0, ended.err
        return str(yaml.safe_load(ended.out)["model"]["init_args"]["width"])

    (folder / "c.yaml").write_text("model: {class_path: cliapp.OtherModel, init_args: {width: 8}}\n")
    (folder / "bare.yaml").write_text("model: {class_path: cliapp.OtherModel}\n")
    monkeypatch.setenv("FULMEN_MODEL__WIDTH", "6")
    assert width("--model=cliapp.Model") == "6"
    assert width("--model=cliapp.Model", "--model.width=5") == "5"
    assert width("--config=c.yaml") == "8"
    assert width("--config=bare.yaml") == "6"
    monkeypatch.setenv("FULMEN_FIT__MODEL", "cliapp.OtherModel")
    assert width() == "6"


def test_variables_win_over_default_config_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "root.yaml").write_text("fit: {trainer: {max_epochs: 20, max_steps: 5}}\n")
    (folder / "fit.yaml").write_text("trainer: {max_epochs: 21, max_steps: 5}\n")

    class Stops(LightningCLI):
        def fit(self, **_: Any) -> None: ...

    monkeypatch.setenv("FULMEN_TRAINER__MAX_EPOCHS", "30")
    for options in ({"default_config_files": ["root.yaml"]}, {"fit": {"default_config_files": ["fit.yaml"]}}):
        trainer = Stops(BoringModel, args=["fit"], parser_kwargs=options).config["fit"]["trainer"]
        assert (trainer["max_epochs"], trainer["max_steps"]) == (30, 5)


def test_variables_can_be_switched_off_or_have_another_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULMEN_TRAINER__MAX_EPOCHS", "30")
    monkeypatch.setenv("MY_TRAINER__MAX_EPOCHS", "31")

    def epochs(**kwargs: Any) -> Any:
        cli = LightningCLI(BoringModel, args=[], run=False, save_config_callback=None, parser_kwargs=kwargs)
        return cli.config["trainer"]["max_epochs"]

    assert epochs() == 30
    assert epochs(default_env=False) is None
    assert epochs(env_prefix="MY") == 31


REFERENCES = [
    (["--config=ref.yaml"], "4 a-abc"),
    (["--config=ref.yaml", "--trainer.max_epochs=6"], "6 a-abc"),
    (["--config=ref.yaml", "--config=c9.yaml"], "9 a-abc"),
    (["--model=cliapp.Model", "--trainer.max_epochs=6", "--model.width=${trainer.max_epochs}"], "6 None"),
    (["--model=cliapp.Model", "--model.name=a-${model.init_args.width}"], "3 a-3"),
    (["--model=cliapp.Model", "--model.name=${oc.env:ABC}"], "3 abc"),
]


@pytest.mark.parametrize(("arguments", "expected"), REFERENCES)
@pytest.mark.parametrize("run", [True, False])
def test_references_lead_to_other_keys(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str, run: bool
) -> None:
    pytest.importorskip("omegaconf")
    monkeypatch.setenv("ABC", "abc")
    (folder / "ref.yaml").write_text(
        "trainer: {max_epochs: 4, default_root_dir: 'a-${model.init_args.name}'}\n"
        "model: {class_path: cliapp.Model, init_args: {width: '${trainer.max_epochs}', name: a-abc}}\n"
    )
    (folder / "c9.yaml").write_text("trainer: {max_epochs: 9}\n")

    class Stops(LightningCLI):
        def fit(self, **_: Any) -> None: ...

    cli = Stops(args=["fit", *arguments] if run else arguments, run=run, save_config_callback=None)
    assert f"{cli.model.width} {cli.model.name}" == expected
    assert "omegaconf" in sys.modules


def test_remote_configs_are_read(folder: Path, command: Callable[..., Any]) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://conf/c.yaml", "w") as file:
        file.write("model: {class_path: cliapp.Model, init_args: {width: 11}}\n")
    ended = command("fit", "--config", "memory://conf/c.yaml", "--print_config")
    assert "width: 11" in ended.out


def test_linked_arguments_are_no_options() -> None:
    class Linked(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.link_arguments("data.batch_size", "model.width")

    class Data(BoringDataModule):
        def __init__(self, batch_size: int = 2) -> None:
            super().__init__()

    class Wide(LightningModule):
        def __init__(self, width: int = 1) -> None:
            super().__init__()
            self.width = width

    cli = Linked(Wide, Data, args=["--data.batch_size=5"], run=False)
    assert cli.model.width == 5
    with pytest.raises(SystemExit):
        Linked(Wide, Data, args=["--model.width=9"], run=False)


class Sized(BoringDataModule):
    num_classes = 11

    def __init__(self, batch_size: int = 2) -> None:
        super().__init__()
        self.batch_size = batch_size


class Wide(BoringModel):
    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.width = width


LINKS = [
    (("data.batch_size", "model.width"), {}, ["--data.batch_size=5"], 5),
    (("data.num_classes", "model.width"), {"apply_on": "instantiate"}, [], 11),
    (
        (("data.batch_size", "trainer.max_epochs"), "model.width"),
        {"compute_fn": lambda size, epochs: size * epochs},
        ["--data.batch_size=5", "--trainer.max_epochs=3"],
        15,
    ),
]


@pytest.mark.parametrize(("link", "options", "arguments", "width"), LINKS)
def test_links(link: Any, options: dict[str, Any], arguments: list[str], width: int) -> None:
    class Linked(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.link_arguments(*link, **options)

    assert Linked(Wide, Sized, args=arguments, run=False).model.width == width
    with pytest.raises(SystemExit):
        Linked(Wide, Sized, args=[*arguments, "--model.width=9"], run=False)
