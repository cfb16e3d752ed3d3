import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fulmen.cli.cli import LightningCLI
from fulmen.cli.parser import LightningArgumentParser
from fulmen.trainer import Trainer
from fulmen.trainer.callbacks import EarlyStopping, Timer
from fulmen.trainer.demos import BoringDataModule, BoringModel

QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
]


class Net(BoringModel):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width


class Wider(Net):
    def __init__(self, depth: int = 1, width: int = 3) -> None:
        super().__init__(width)
        self.depth = depth


class Data(BoringDataModule):
    def __init__(self, batch_size: int = 2) -> None:
        super().__init__()
        self.batch_size = batch_size


def build(*arguments: str, model: Any = Net, data: Any = None, **kwargs: Any) -> LightningCLI:
    return LightningCLI(model, data, args=list(arguments), run=False, **kwargs)


# ---- classes


def test_a_fixed_class_has_its_arguments_as_options() -> None:
    cli = build("--model.width=6", "--data.batch_size=4", data=Data)
    assert (type(cli.model), cli.model.width, cli.datamodule.batch_size) == (Net, 6, 4)
    assert cli.datamodule_class is Data


FORMS = [
    (["--model=cliapp.OtherModel", "--model.width=5"], ("OtherModel", 5, 1)),
    (
        ["--model.class_path=cliapp.OtherModel", "--model.init_args.width=5", "--model.init_args.depth=4"],
        ("OtherModel", 5, 4),
    ),
    (['--model={"class_path": "cliapp.OtherModel", "init_args": {"depth": 3}}'], ("OtherModel", 3, 3)),
    (["--model=OtherModel"], ("OtherModel", 3, 1)),
    (["--config", "m.yaml"], ("OtherModel", 8, 2)),
    (["--config", "m.yaml", "--model.width=5"], ("OtherModel", 5, 2)),
    (["--config", "m.yaml", "--config", "m2.yaml"], ("OtherModel", 9, 2)),
    (["--config", "m.yaml", "--model=cliapp.Model"], ("Model", 8, None)),
    (["--model", "monly.yaml"], ("OtherModel", 3, 7)),
]


@pytest.mark.parametrize(("arguments", "expected"), FORMS)
def test_any_class_can_be_named_in_several_forms(folder: Path, arguments: list[str], expected: tuple[Any, ...]) -> None:
    import cliapp

    assert cliapp.OtherModel  # a short name is that of an imported class
    (folder / "m.yaml").write_text("model: {class_path: cliapp.OtherModel, init_args: {width: 8, depth: 2}}\n")
    (folder / "m2.yaml").write_text("model: {init_args: {width: 9}}\n")
    (folder / "monly.yaml").write_text("class_path: cliapp.OtherModel\ninit_args: {depth: 7}\n")
    model = build(*arguments, model=None).model
    assert (type(model).__name__, model.width, getattr(model, "depth", None)) == expected


def test_a_subclass_can_be_chosen_if_allowed() -> None:
    chosen = f"--model={__name__}.Wider" if "." in __name__ else "--model=Wider"
    assert type(build(chosen, subclass_mode_model=True).model) is Wider
    with pytest.raises(SystemExit):
        build("--model=Wider")


def test_data_is_optional_unless_a_class_is_given() -> None:
    assert build(model=Net).datamodule is None
    with pytest.raises(SystemExit):
        build(data=Data, subclass_mode_data=True)


def test_a_function_may_make_the_model() -> None:
    def make(width: int = 2) -> Net:
        return Net(2 * width)

    assert build("--model.width=6", model=make).model.width == 12


# ---- the trainer


def names(cli: LightningCLI) -> list[str]:
    return [type(callback).__name__ for callback in cli.trainer.callbacks]


def test_callbacks_come_from_everywhere_in_order() -> None:
    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_lightning_class_args(EarlyStopping, "early")
            parser.set_defaults({"early.monitor": "val_loss"})

    cli = Own(
        Net,
        args=["--early.patience=7", "--trainer.callbacks+=LambdaCallback", *QUIET],
        run=False,
        trainer_defaults={"callbacks": Timer("00:00:01:00")},
    )
    assert names(cli) == ["LambdaCallback", "EarlyStopping", "Timer", "SaveConfigCallback"]
    assert cli.trainer.early_stopping_callback.patience == 7


def test_a_trial_run_saves_no_config() -> None:
    assert "SaveConfigCallback" not in names(build("--trainer.fast_dev_run=true"))


def test_a_subclass_of_the_trainer_may_bring_subcommands() -> None:
    class More(Trainer):
        def __init__(self, *args: Any, mine: int = 1, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.mine = mine

        def extra(self, model: Any, datamodule: Any = None, times: int = 1) -> None:
            """Do more."""
            self.done = (type(model), times)

    class Own(LightningCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {**LightningCLI.subcommands(), "extra": {"model", "datamodule"}}

    cli = Own(Net, trainer_class=More, args=["extra", "--times=3", "--trainer.mine=5"])
    assert (cli.trainer.mine, cli.trainer.done) == (5, (Net, 3))


def test_the_trainer_can_be_made_with_other_arguments() -> None:
    cli = build("--trainer.max_epochs=3")
    assert cli.instantiate_trainer(max_epochs=4).max_epochs == 4


# ---- the seed


@pytest.mark.parametrize(("given", "seed"), [("42", 42), ("0", 0), ("true", 1), ("false", False)])
def test_the_seed_is_in_the_config(given: str, seed: int | bool) -> None:
    assert build(f"--seed_everything={given}").config["seed_everything"] == seed


def test_a_random_seed_is_another_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = set()
    for _ in range(3):
        monkeypatch.delenv("FULMEN_GLOBAL_SEED", raising=False)
        seeds.add(build().config["seed_everything"])
    assert len(seeds) == 3


def test_processes_started_side_by_side_take_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = set()
    for rank in range(3):
        monkeypatch.delenv("FULMEN_GLOBAL_SEED", raising=False)
        for name, value in {"WORLD_SIZE": "3", "RANK": str(rank), "MASTER_PORT": "1234"}.items():
            monkeypatch.setenv(name, value)
        parser_only = LightningCLI.__new__(LightningCLI)
        parser_only.subcommand = None
        parser_only.config = {"seed_everything": True}  # type: ignore[assignment]
        parser_only._seed()
        seeds.add(parser_only.config["seed_everything"])
    assert len(seeds) == 1


# ---- runs


def test_methods_are_called_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Own(LightningCLI):
        def __getattribute__(self, name: str) -> Any:
            watched = name.startswith(("before_", "after_", "add_", "init_", "parse_", "instantiate_", "setup_"))
            if watched:
                calls.append(name)
            return super().__getattribute__(name)

        def before_fit(self) -> None: ...

        def fit(self, **kwargs: Any) -> None:
            calls.append(f"fit {sorted(kwargs)}")

        def after_fit(self) -> None: ...

    Own(Net, Data, args=["fit"])
    subparser = ["add_default_arguments_to_parser", "add_core_arguments_to_parser", "add_arguments_to_parser"]
    assert calls == [
        "setup_parser",
        *["init_parser"] * 2,
        *subparser,
        *["init_parser"] * 3,  # those of the other subcommands stay empty
        "parse_arguments",
        "before_instantiate_classes",
        "instantiate_classes",
        "instantiate_trainer",
        "after_instantiate_classes",
        "before_fit",
        "fit ['ckpt_path', 'datamodule', 'model', 'weights_only']",
        "after_fit",
    ]


def test_arguments_as_a_dict() -> None:
    cli = LightningCLI(
        Net,
        args={"subcommand": "fit", "fit": {"model": {"width": 6}, "trainer": {"fast_dev_run": True}}},
    )
    assert (cli.subcommand, cli.model.width) == ("fit", 6)


def test_arguments_beside_those_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--x"])
    with pytest.warns(UserWarning, match="not read"):
        build("--model.width=6")


def test_train_then_test_the_best_and_go_on_from_the_last(folder: Path, command: Callable[..., Any]) -> None:
    (folder / "c.yaml").write_text(
        "model: cliapp.Model\n"
        "trainer:\n"
        "  max_epochs: 2\n"
        "  limit_train_batches: 2\n"
        "  limit_val_batches: 1\n"
        "  enable_progress_bar: false\n"
        "  logger: {class_path: CSVLogger, init_args: {save_dir: .}}\n"
        "  callbacks:\n"
        "  - {class_path: ModelCheckpoint, init_args: {monitor: val_loss, save_last: true}}\n"
    )
    ended = command("fit", "--config", "c.yaml", "--curves=false")
    assert ended.code == 0, ended.err
    run = Path("lightning_logs/version_0")
    for name, path in {"folder": run, "metrics": run / "metrics.csv", "configuration": run / "config.yaml"}.items():
        assert any(line.split() == [name, str(path)] for line in ended.out.splitlines()), ended.out
        assert path.exists()
    assert "best score" in ended.out
    assert "val_loss = " in ended.out
    assert "curves" not in ended.out
    assert not (run / "curves.png").exists()
    assert "\ncurves" not in (run / "config.yaml").read_text()

    ended = command("test", "--config", "c.yaml", "--ckpt_path", "best", "--trainer.limit_test_batches=2")
    assert ended.code == 0, ended.err

    ended = command("fit", "--config", "c.yaml", "--ckpt_path", "last", "--trainer.max_epochs=3", "--curves=false")
    assert ended.code == 0, ended.err
    assert "epoch=" in ended.out


def test_our_own_errors_while_it_runs_are_told_without_a_traceback(folder: Path, command: Callable[..., Any]) -> None:
    for arguments, words in (
        (["--model=cliapp.Bare"], "training_step"),
        (["--model=cliapp.Model", "--trainer.devices=0"], "asks for no device"),
        (["--model=cliapp.Model", "--ckpt_path=best"], "asks for the best checkpoint"),
        (["--model=cliapp.Model", "--ckpt_path=none.ckpt"], "none.ckpt"),
    ):
        ended = command("fit", *arguments)
        assert ended.code == 1, ended.err
        assert words in ended.err
        assert "Traceback" not in ended.err


def test_a_saved_config_is_good_for_other_programs(
    folder: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--curves=false"]
    ended = command("fit", "--model=cliapp.Model", *QUIET, *short)
    assert ended.code == 0, ended.err
    monkeypatch.setattr(sys, "argv", ["program"])
    cli = LightningCLI(args=["fit", "--config", "config.yaml", "--trainer.fast_dev_run=true"])
    assert type(cli.model).__name__ == "Model"


HELPER = "import sys; sys.argv[0] = 'lightning-cli'; from fulmen.cli.command import main; main()"


def start(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # -P: as for an installed script, the current folder is not on the path by itself.
    return subprocess.run(
        [sys.executable, "-P", "-c", HELPER, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_modules_in_the_current_folder_and_beside_a_config_are_found(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "beside.py").write_text("from cliapp import Data\nclass Mine(Data): pass\n")
    (elsewhere / "c.yaml").write_text("model: cliapp.Model\ndata: beside.Mine\n")
    ended = start("fit", "--config", "elsewhere/c.yaml", "--trainer.fast_dev_run=true", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert not (folder / "lightning_logs").exists()


def test_the_help_builds_no_subcommand(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("reading signatures takes time")

    monkeypatch.setattr(LightningArgumentParser, "add_lightning_class_args", refuse)
    ended = command("--help")
    assert ended.code == 0
    for name in LightningCLI.subcommands():
        assert name in ended.out


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_print_config_has_the_keys_in_order(command: Callable[..., Any], folder: Path, subcommand: str) -> None:
    import yaml

    ended = command(subcommand, "--model=cliapp.Model", "--print_config")
    assert ended.code == 0
    between = {"fit": [], "predict": ["return_predictions", "ckpt_path"]}.get(subcommand, ["ckpt_path", "verbose"])
    first = ["seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler"]
    expected = [*first, *(between or ["ckpt_path"]), "weights_only"]
    assert list(yaml.safe_load(ended.out)) == expected


def test_a_datamodule_can_be_any_importable_class(folder: Path, command: Callable[..., Any]) -> None:
    ended = command("validate", "--model=cliapp.Model", "--data=cliapp.Data", *QUIET, "--trainer.limit_val_batches=1")
    assert ended.code == 0, ended.err
