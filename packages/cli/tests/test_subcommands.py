"""A package that is installed adds a subcommand; it costs nothing where it is not asked for."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fulmen.cli.cli import LightningCLI
from fulmen.cli.subcommands import GROUP
from fulmen.trainer.demos import BoringModel

SWEEP = '''"""Try several widths.

More about it.
"""
like = "fit"
calls = []


def add_arguments(parser):
    parser.add_argument("what", choices=["width", "depth"], help="What is tried.")
    parser.add_argument("--num_trials", type=int, default=3, help="How many.")


def run(cli, what, num_trials, ckpt_path, weights_only):
    calls.append((type(cli.model).__name__, type(cli.trainer).__name__, cli.datamodule, what, num_trials, ckpt_path))
    print("tried", what, num_trials)
'''
BUDGET = '''class Budget:
    """What would it take?"""
    saves_config = True
    def add_arguments(self, parser): ...
    def run(self, cli): cli.counted = True


budget = Budget()
'''
POINTS = {
    "sweep": "sweep_command",
    "budget": "budget_command:budget",
    "broken-one": "broken_command",
    "fit": "sweep_command",
    "init": "sweep_command",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A distribution with entry points, as pip leaves it."""
    site = tmp_path / "site"
    info = site / "sweeper-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sweeper\nVersion: 1.0\n")
    points = "\n".join(f"{name} = {target}" for name, target in POINTS.items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")
    (site / "sweep_command.py").write_text(SWEEP)
    (site / "budget_command.py").write_text(BUDGET)
    (site / "broken_command.py").write_text("import nothere_at_all\n")
    monkeypatch.syspath_prepend(str(site))
    yield site
    for name in ("sweep_command", "budget_command", "broken_command"):
        sys.modules.pop(name, None)


pytestmark = pytest.mark.filterwarnings("ignore:The subcommand")


def test_it_is_a_subcommand_like_the_others(command: Callable[..., Any], installed: Path, folder: Path) -> None:
    ended = command("sweep", "width", "--model=cliapp.Model", "--num_trials=5", "--trainer.max_epochs=2")
    assert ended.code == 0, ended.err
    assert "tried width 5" in ended.out
    assert sys.modules["sweep_command"].calls == [("Model", "Trainer", None, "width", 5, None)]
    assert not (folder / "lightning_logs").exists(), "it saves its configuration only if it says so"


def test_it_reads_the_configs_of_the_subcommand_that_it_is_like(
    command: Callable[..., Any], installed: Path, folder: Path
) -> None:
    printed = command("fit", "--model=cliapp.Model", "--print_config", "--trainer.max_epochs=2").out
    (folder / "fit.yaml").write_text(printed)
    assert command("sweep", "depth", "--config=fit.yaml").code == 0
    printed = command("sweep", "depth", "--config=fit.yaml", "--print_config").out
    (folder / "sweep.yaml").write_text(printed)
    assert "what: depth" in printed
    assert command("sweep", "--config=sweep.yaml").out.startswith("tried depth 3")


def test_the_help_lists_it_and_has_its_options(command: Callable[..., Any], installed: Path) -> None:
    shown = command("--help").out
    assert "sweep" in shown
    assert "Try several widths." in shown
    assert "What would it take?" in shown
    assert "(not usable)" in shown, "a broken one breaks nothing"
    shown = command("sweep", "--help").out
    assert "--num_trials INT" in shown
    assert "width, depth" in shown
    assert "--ckpt_path" in shown


@pytest.mark.parametrize("arguments", [("fit", "--help"), ("validate", "--print_config", "--model=cliapp.Model")])
def test_it_is_not_loaded_for_others(
    command: Callable[..., Any], installed: Path, folder: Path, arguments: tuple[str, ...]
) -> None:
    assert command(*arguments).code == 0
    assert "sweep_command" not in sys.modules


def test_a_broken_one_says_whose_it_is(command: Callable[..., Any], installed: Path, folder: Path) -> None:
    ended = command("broken-one", "--model=cliapp.Model")
    assert ended.code == 1
    for word in ("'broken-one' cannot be loaded", "sweeper", "No module named 'nothere_at_all'"):
        assert word in ended.err


def test_two_of_one_name_are_not_chosen_from(
    command: Callable[..., Any], installed: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = folder / "other" / "other-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nsweep = elsewhere\n")
    monkeypatch.syspath_prepend(str(info.parent))
    ended = command("sweep", "width", "--model=cliapp.Model")
    assert ended.code == 1
    assert "is there 2 times: from" in ended.err


def test_a_built_in_one_is_never_replaced(command: Callable[..., Any], installed: Path, folder: Path) -> None:
    with pytest.warns(UserWarning, match="'fit' of sweeper is not used"):
        command("sweep", "width", "--model=cliapp.Model")
    assert command("init", "--help").out.startswith("usage: lightning-cli init")


def test_a_misspelt_one_is_found(command: Callable[..., Any], installed: Path) -> None:
    assert "Did you mean sweep?" in command("sweeep").err


def test_every_command_line_has_it_and_may_do_it_otherwise(installed: Path) -> None:
    class Own(LightningCLI):
        def before_sweep(self) -> None:
            self.done = ["before"]

        def sweep(self, what: str, num_trials: int, **_: Any) -> None:
            self.done.append(f"{what} {num_trials}")

        def after_sweep(self) -> None:
            self.done.append("after")

    assert Own(BoringModel, args=["sweep", "width"]).done == ["before", "width 3", "after"]
    cli = LightningCLI(BoringModel, args=["budget"])
    assert cli.counted  # type: ignore[attr-defined]
    assert "SaveConfigCallback" in {type(one).__name__ for one in cli.trainer.callbacks}


def test_or_none_of_them(installed: Path) -> None:
    class Closed(LightningCLI):
        def added_subcommands(self) -> dict[str, Any]:
            return {}

    with pytest.raises(SystemExit):
        Closed(BoringModel, args=["sweep", "width"])
