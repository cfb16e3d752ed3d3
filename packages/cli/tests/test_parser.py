from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.cli.cli import LightningCLI
from fulmen.cli.parser import LightningArgumentParser
from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer import Callback, LightningModule, Trainer
from fulmen.trainer.demos import BoringDataModule, BoringModel


class Net(BoringModel):
    def __init__(self, width: int = 3, rates: list[float] | None = None, name: str = "x") -> None:
        super().__init__()


def parser_of(**kwargs: Any) -> LightningArgumentParser:
    parser = LightningArgumentParser(exit_on_error=False, **kwargs)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(Net, "model")
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
MODEL_SETTINGS = st.fixed_dictionaries(
    {}, optional={"width": st.integers(), "rates": st.lists(st.floats(-9, 9)), "name": st.text("ab1: -#'\"{}")}
)


@settings(max_examples=40)
@given(TRAINER_SETTINGS, MODEL_SETTINGS)
def test_what_is_printed_is_parsed_to_the_same(trainer: dict[str, Any], model: dict[str, Any]) -> None:
    parser = PARSER
    first = parser.parse_object({"trainer": trainer, "model": model})
    printed = parser.dump(first, skip_unset=False)
    assert parser.dump(parser.parse_string(printed), skip_unset=False) == printed
    for name, value in model.items():
        assert parser.parse_string(printed)["model"][name] == value


PARSER = parser_of()


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


def test_environment_variables_are_read_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
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
