"""What a command line makes of its arguments: row by row as measured, except where ours does better on purpose."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

APP = """
import torch
from fulmen.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from fulmen.trainer import LightningDataModule, LightningModule
from fulmen.trainer.demos import BoringDataModule, BoringModel


class Model(BoringModel):
    def __init__(self, width: int = 3, lr: float = 0.1, name: str | None = None):
        super().__init__()
        self.width, self.lr, self.name = width, lr, name
        self.said = f"Model(width={width})"

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OtherModel(Model):
    def __init__(self, depth: int = 1, width: int = 3, lr: float = 0.1, name: str | None = None):
        super().__init__(width, lr, name)
        self.depth = depth
        self.said = f"OtherModel(width={width}, depth={depth})"


class Plain(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


class Made(Plain):
    def __init__(self, optimizer: OptimizerCallable = torch.optim.SGD,
                 scheduler: LRSchedulerCallable = torch.optim.lr_scheduler.ConstantLR):
        super().__init__()
        self.optimizer, self.scheduler = optimizer, scheduler

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        return [optimizer], [self.scheduler(optimizer)]


class Data(BoringDataModule):
    def __init__(self, batch_size: int = 2, root: str = "here"):
        super().__init__()
        self.batch_size, self.root, self.num_classes = batch_size, root, 11
        self.said = f"Data(batch_size={batch_size})"


class OtherData(Data):
    def __init__(self, extra: int = 1, batch_size: int = 2, root: str = "here"):
        super().__init__(batch_size, root)
        self.said = f"OtherData(batch_size={batch_size})"


def built(width: int = 3) -> Model:
    return Model(width)
"""
FILES = {
    "c40": {"trainer": {"max_epochs": 40}},
    "c41": {"trainer": {"max_epochs": 41}},
    "bad": {"trainer": {"max_epoch": 40}},
    "root": {"fit": {"trainer": {"max_epochs": 45}}},
    "defaults": {"fit": {"trainer": {"max_epochs": 20}}},
    "tr": {"max_epochs": 60},
    "m": {"model": {"class_path": "cliapp.OtherModel", "init_args": {"depth": 2, "width": 8}}},
    "m2": {"model": {"init_args": {"width": 9}}},
    "m3": {"model": {"class_path": "cliapp.Model"}},
    "monly": {"class_path": "cliapp.OtherModel", "init_args": {"depth": 7}},
}
REFUSED = "exit code 2"

# Where one value comes from: sources, what is called, trainer.max_epochs.
SOURCES: dict[str, tuple[dict[str, Any], dict[str, str], list[str], Any]] = {
    "nothing": ({}, {}, ["fit"], None),
    "trainer_defaults": ({"trainer_defaults": {"max_epochs": 10}}, {}, ["fit"], 10),
    "default_config_files over trainer_defaults": (
        {"trainer_defaults": {"max_epochs": 10}, "parser_kwargs": {"default_config_files": ["defaults"]}},
        {},
        ["fit"],
        20,
    ),
    "environment": ({"parser_kwargs": {"default_env": True}}, {"FULMEN_FIT__TRAINER__MAX_EPOCHS": "30"}, ["fit"], 30),
    # Theirs must be switched on; ours works, and can be switched off.
    "environment, nothing said": ({}, {"FULMEN_FIT__TRAINER__MAX_EPOCHS": "30"}, ["fit"], 30),
    "environment, switched off": (
        {"parser_kwargs": {"default_env": False}},
        {"FULMEN_FIT__TRAINER__MAX_EPOCHS": "30"},
        ["fit"],
        None,
    ),
    "environment over default_config_files": (
        {"parser_kwargs": {"default_config_files": ["defaults"]}},
        {"FULMEN_FIT__TRAINER__MAX_EPOCHS": "30"},
        ["fit"],
        30,
    ),
    "config": ({}, {}, ["fit", "--config", "c40"], 40),
    "config over environment": ({}, {"FULMEN_FIT__TRAINER__MAX_EPOCHS": "30"}, ["fit", "--config", "c40"], 40),
    "two configs": ({}, {}, ["fit", "--config", "c40", "--config", "c41"], 41),
    "two configs, turned": ({}, {}, ["fit", "--config", "c41", "--config", "c40"], 40),
    "argument after config": ({}, {}, ["fit", "--config", "c40", "--trainer.max_epochs", "50"], 50),
    "argument before config": ({}, {}, ["fit", "--trainer.max_epochs", "50", "--config", "c40"], 40),
    "argument twice": ({}, {}, ["fit", "--trainer.max_epochs", "50", "--trainer.max_epochs", "51"], 51),
    "root config": ({}, {}, ["--config", "root", "fit"], 45),
    "root config without a subcommand": ({}, {}, ["--config", "root"], 45),
    "root config then config": ({}, {}, ["--config", "root", "fit", "--config", "c40"], 40),
    "a file for a group": ({}, {}, ["fit", "--trainer", "tr"], 60),
    "a file for a group after config": ({}, {}, ["fit", "--config", "c40", "--trainer", "tr"], 60),
    "JSON for a group": ({}, {}, ["fit", "--trainer", '{"max_epochs": 61}'], 61),
    "config in the environment": ({}, {"FULMEN_FIT__CONFIG": "c40"}, ["fit"], 40),
    # Theirs is a file with sections; ours holds what every subcommand shares, as FULMEN_TRAINER__MAX_EPOCHS does.
    "config in the environment for every subcommand": ({}, {"FULMEN_CONFIG": "c40"}, ["fit"], 40),
    "config with an unknown key": ({}, {}, ["fit", "--config", "bad"], REFUSED),
    "config that is missing": ({}, {}, ["fit", "--config", "nofile.yaml"], REFUSED),
    # Without effect in theirs: the command line gives every argument. Ours reads its own.
    "the Trainer's own variable": ({}, {"FULMEN_TRAINER_MAX_EPOCHS": "70"}, ["fit"], 70),
}

# Which model: constructor, arguments, the model that is made.
MODELS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "full path": ({}, ["--model=cliapp.OtherModel", "--model.width=5"], "OtherModel(width=5, depth=1)"),
    "explicit form": (
        {},
        ["--model.class_path=cliapp.OtherModel", "--model.init_args.width=5", "--model.init_args.depth=4"],
        "OtherModel(width=5, depth=4)",
    ),
    "JSON": (
        {},
        ['--model={"class_path": "cliapp.OtherModel", "init_args": {"depth": 3}}'],
        "OtherModel(width=3, depth=3)",
    ),
    "short name": ({}, ["--model=OtherModel"], "OtherModel(width=3, depth=1)"),
    "config": ({}, ["--config", "m"], "OtherModel(width=8, depth=2)"),
    "config, then an argument": ({}, ["--config", "m", "--model.width=5"], "OtherModel(width=5, depth=2)"),
    "config, then one with init_args only": ({}, ["--config", "m", "--config", "m2"], "OtherModel(width=9, depth=2)"),
    "config, then another class": ({}, ["--config", "m", "--model=cliapp.Model"], "Model(width=8)"),
    "config, then one with another class": ({}, ["--config", "m", "--config", "m3"], "Model(width=8)"),
    "a file for the model": ({}, ["--model", "monly"], "OtherModel(width=3, depth=7)"),
    "of a base": (
        {"model_class": "Model", "subclass_mode_model": True},
        ["--model=cliapp.OtherModel"],
        "OtherModel(width=3, depth=1)",
    ),
    "not of the base": ({"model_class": "OtherModel", "subclass_mode_model": True}, ["--model=cliapp.Model"], REFUSED),
    "fixed": ({"model_class": "Model"}, ["--model.width=6"], "Model(width=6)"),
    "fixed, with a class path": ({"model_class": "Model"}, ["--model=cliapp.OtherModel"], REFUSED),
    "none": ({}, [], REFUSED),
    "unknown class": ({}, ["--model=cliapp.Nope"], REFUSED),
    "unknown argument": ({}, ["--model=cliapp.Model", "--model.nope=1"], REFUSED),
    "wrong type": ({"model_class": "Model"}, ["--model.width=abc"], REFUSED),
    "unknown option": ({"model_class": "Model"}, ["--nope=1"], REFUSED),
    "a function with a return annotation": ({"model_class": "built"}, ["--model.width=6"], "Model(width=6)"),
}

# Which data.
DATA: dict[str, tuple[dict[str, Any], list[str], str | None]] = {
    "by path": ({}, ["--data=cliapp.OtherData", "--data.batch_size=4"], "OtherData(batch_size=4)"),
    "none": ({}, [], None),
    "fixed": ({"datamodule_class": "Data"}, ["--data.batch_size=4"], "Data(batch_size=4)"),
    "of a base": (
        {"datamodule_class": "Data", "subclass_mode_data": True},
        ["--data=cliapp.OtherData"],
        "OtherData(batch_size=2)",
    ),
    "of a base, none": ({"datamodule_class": "Data", "subclass_mode_data": True}, [], REFUSED),
}

PLATEAU = "--lr_scheduler=ReduceLROnPlateau"
# What configure_optimizers gives: model, arguments, optimizers and schedulers.
OPTIMIZERS: dict[str, tuple[str, list[str], str]] = {
    "not given": ("Model", [], "SGD(lr=0.1)"),
    "given, the model has its own": ("Model", ["--optimizer=Adam"], "Adam(lr=0.001)"),
    "not given, the model has none": ("Plain", [], ""),
    "short name": ("Plain", ["--optimizer=SGD", "--optimizer.lr=0.5"], "SGD(lr=0.5)"),
    "full path": ("Plain", ["--optimizer=torch.optim.AdamW"], "AdamW(lr=0.001)"),
    "explicit": (
        "Plain",
        ["--optimizer.class_path=torch.optim.SGD", "--optimizer.init_args.lr=0.2"],
        "SGD(lr=0.2)",
    ),
    "unknown": ("Plain", ["--optimizer=Nope"], REFUSED),
    "with a scheduler": (
        "Plain",
        ["--optimizer=SGD", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=2"],
        "SGD(lr=0.001) StepLR",
    ),
    "a scheduler lacks an argument": ("Plain", ["--optimizer=SGD", "--lr_scheduler=StepLR"], REFUSED),
    "plateau": (
        "Plain",
        ["--optimizer=SGD", PLATEAU, "--lr_scheduler.monitor=val_loss"],
        "SGD(lr=0.001) ReduceLROnPlateau of val_loss",
    ),
    "plateau without monitor": ("Plain", ["--optimizer=SGD", PLATEAU], REFUSED),
    "of the model's argument": (
        "Made",
        ["--model.optimizer=Adam", "--model.optimizer.lr=0.3"],
        "Adam(lr=0.1) ConstantLR",
    ),
    "of two arguments of the model": (
        "Made",
        ["--model.optimizer=SGD", "--model.scheduler=StepLR", "--model.scheduler.step_size=4"],
        "SGD(lr=0.001) StepLR",
    ),
    "of the model's argument, one is missing": ("Made", ["--model.scheduler=StepLR"], REFUSED),
}

CALLBACKS = ["TQDMProgressBar", "ModelSummary", "ModelCheckpoint"]
LATE = ["--trainer.callbacks+=LearningRateMonitor"]
# Which callbacks: constructor, arguments, those in front of the Trainer's own.
OBJECTS: dict[str, tuple[dict[str, Any], list[str], list[str] | str]] = {
    "none": ({}, [], []),
    "by name": ({}, ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val_loss"], ["EarlyStopping"]),
    "appended": (
        {},
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss", *LATE],
        ["EarlyStopping", "LearningRateMonitor"],
    ),
    "appended to trainer_defaults": ({"trainer_defaults": "timer"}, LATE, ["LearningRateMonitor", "Timer"]),
    "trainer_defaults": ({"trainer_defaults": "timer"}, [], ["Timer"]),
    "an argument is missing": ({}, ["--trainer.callbacks=EarlyStopping"], REFUSED),
}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "cliapp.py").write_text(APP)
    for name, content in FILES.items():
        (tmp_path / name).write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.setenv("FULMEN_GLOBAL_SEED", "1")
    import cliapp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield cliapp
    sys.modules.pop("cliapp", None)


def made(app: Any, arguments: list[str], **options: Any) -> Any:
    """The command line object when its subcommand would begin, or that it was refused."""

    class Stops(app.LightningCLI):
        def fit(self, *_: Any, **__: Any) -> None:
            """Builds, and runs nothing."""

    named = {key: getattr(app, value) for key, value in options.items() if key.endswith("_class")}
    kept = {"save_config_callback": None, **options, **named}
    try:
        return Stops(args=arguments, **kept)
    except SystemExit as ended:
        return f"exit code {ended.code}"


@pytest.mark.parametrize("row", SOURCES)
def test_where_a_value_comes_from(app: Any, monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    options, variables, arguments, expected = SOURCES[row]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cli = made(app, arguments, model_class="Model", **options)
    assert (cli if cli == REFUSED else cli.config["fit"]["trainer"]["max_epochs"]) == expected


@pytest.mark.parametrize("row", MODELS)
def test_which_model(app: Any, row: str) -> None:
    options, arguments, expected = MODELS[row]
    cli = made(app, ["fit", *arguments], **options)
    assert (cli if cli == REFUSED else cli.model.said) == expected


@pytest.mark.parametrize("row", DATA)
def test_which_data(app: Any, row: str) -> None:
    options, arguments, expected = DATA[row]
    cli = made(app, ["fit", *arguments], model_class="Model", **options)
    assert (cli if cli == REFUSED else getattr(cli.datamodule, "said", None)) == expected


@pytest.mark.parametrize("row", OPTIMIZERS)
def test_which_optimizers(app: Any, row: str) -> None:
    model, arguments, expected = OPTIMIZERS[row]
    cli = made(app, ["fit", *arguments], model_class=model)
    assert (cli if cli == REFUSED else said(cli.model.configure_optimizers())) == expected


def said(configured: Any) -> str:
    """Optimizer and scheduler in words."""
    monitor = ""
    if isinstance(configured, dict):
        scheduler = configured["lr_scheduler"]
        monitor = f" of {scheduler['monitor']}"
        configured = [configured["optimizer"]], [scheduler["scheduler"]]
    if configured is None:
        return ""
    optimizers, schedulers = configured if isinstance(configured, (tuple, list)) else ([configured], [])
    words = [f"{type(one).__name__}(lr={round(one.param_groups[0]['lr'], 9)})" for one in optimizers]
    return " ".join([*words, *(type(one).__name__ + monitor for one in schedulers)])


@pytest.mark.parametrize("row", OBJECTS)
def test_which_callbacks(app: Any, row: str) -> None:
    from fulmen.trainer.callbacks import Timer

    options, arguments, expected = OBJECTS[row]
    if "trainer_defaults" in options:
        options = {"trainer_defaults": {"callbacks": [Timer()]}}
    cli = made(app, ["fit", *arguments], model_class="Model", **options)
    names = cli if cli == REFUSED else [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert names == (expected if isinstance(expected, str) else [*expected, *CALLBACKS])


def test_links(app: Any) -> None:
    class Linked(app.LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.link_arguments("data.batch_size", "model.width")

        def fit(self, *_: Any, **__: Any) -> None: ...

    class Late(app.LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.link_arguments("data.num_classes", "model.width", apply_on="instantiate")

        def fit(self, *_: Any, **__: Any) -> None: ...

    class Computed(app.LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            sources = ("data.batch_size", "trainer.max_epochs")
            parser.link_arguments(sources, "model.width", compute_fn=lambda size, epochs: size * epochs)

        def fit(self, *_: Any, **__: Any) -> None: ...

    def width(cls: Any, *arguments: str) -> Any:
        return cls(app.Model, app.Data, args=["fit", *arguments], save_config_callback=None).model.said

    assert width(Linked, "--data.batch_size=5") == "Model(width=5)"
    assert width(Late) == "Model(width=11)"
    assert width(Computed, "--data.batch_size=5", "--trainer.max_epochs=3") == "Model(width=15)"
    for cls in (Linked, Late):
        with pytest.raises(SystemExit) as ended:
            width(cls, "--model.width=4")
        assert ended.value.code == 2
