"""`lightning-cli fit`, `validate`, `test`, `predict`: any module and data that can be imported."""

from __future__ import annotations

import os
import sys
import time
from argparse import SUPPRESS
from collections.abc import Iterator, Mapping
from typing import Any

from fulmen.cli import plan_command
from fulmen.cli.cli import ArgsType, LightningCLI
from fulmen.cli.config_files import import_folders
from fulmen.cli.parser import LightningArgumentParser
from fulmen.cli.subcommands import InstalledSubcommands, first_line
from fulmen.fabric.errors import CheckpointError, MisconfigurationException
from fulmen.fabric.optional_packages import require
from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.trainer import Trainer

_CURVES = "curves"
# By then a launcher has ended this process, if rank zero failed too and said why.
_OTHERS_WAIT_S = 3.0


class _Commands(InstalledSubcommands):
    """Those of installed packages, and `plan`."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted([*super().__iter__(), plan_command.NAME]))

    def __len__(self) -> int:
        return super().__len__() + 1

    def __getitem__(self, name: str) -> Any:
        return plan_command if name == plan_command.NAME else super().__getitem__(name)

    def describe(self, name: str) -> str:
        return first_line(plan_command) if name == plan_command.NAME else super().describe(name)


class AnyModel(LightningCLI):
    """A LightningCLI for any module and data, with a word at the end about where everything is.

    Args:
        args: The arguments; None: those of the program.
        words: What else the command can be asked for.
        epilogue: Stands at the end of the help.
    """

    def __init__(self, args: list[str] | None, words: tuple[str, ...] = (), epilogue: str = "") -> None:
        self._words = words
        self._epilogue = epilogue
        super().__init__(args=args)

    def init_parser(self, **kwargs: object) -> LightningArgumentParser:
        """A parser that knows the other words of this command."""
        parser = super().init_parser(**kwargs)
        parser.further_commands = self._words
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--curves`."""
        # Suppressed: it belongs to this command, and a saved config must be good for every LightningCLI.
        parser.add_argument(
            f"--{_CURVES}",
            type=bool,
            default=SUPPRESS,
            help="Draw the curves of a fit into its folder; by default if matplotlib is installed.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Make `self.config` of the arguments."""
        parser.epilogue = self._epilogue
        given = sys.argv[1:] if args is None else args
        if isinstance(given, list) and given[:1] == [plan_command.NAME]:
            plan_command.check_arguments(given[1:])
        super().parse_arguments(parser, args)
        self._curves: bool | None = self.config[self.config["subcommand"]].pop(_CURVES, None)
        if self._curves:
            require("matplotlib", purpose=f"--{_CURVES} draws with it")

    def added_subcommands(self) -> Mapping[str, Any]:
        """Those of installed packages, and `plan`."""
        return _Commands(taken=[*self.subcommands(), plan_command.NAME])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer; to plan, one that needs none of the devices which the configuration asks for."""
        if self.subcommand == plan_command.NAME:
            given = self.config_init[self.subcommand]["trainer"].as_dict()
            arguments, self.planned_devices = plan_command.trainer_arguments(given)
            kwargs = {**arguments, **kwargs}
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Say where the results are."""
        from fulmen.cli.report import report

        text = report(self.trainer, curves=self._curves)
        if text:
            print(text)


class _Built(Exception):  # ends the construction
    def __init__(self, parser: LightningArgumentParser) -> None:
        self.parser = parser


class _ParserOnly(AnyModel):
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        raise _Built(parser)


def parser_of_command() -> LightningArgumentParser:
    """The parser of the command, with all options of all subcommands."""
    try:
        _ParserOnly(["--config"])  # as if every subcommand could follow
    except _Built as built:
        return built.parser
    raise AssertionError("LightningCLI parses what it is given")


def run(args: list[str] | None = None, words: tuple[str, ...] = (), epilogue: str = "") -> None:
    """Do what the arguments say.

    Modules in the current folder can be named, and those beside a config file. What is installed wins over the latter.

    Args:
        args: The arguments; None: those of the program.
        words: What else the command can be asked for, for advice.
        epilogue: Stands at the end of the help.

    Raises:
        SystemExit: 2 for arguments that cannot be understood, 1 for what cannot be run.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    arguments = sys.argv[1:] if args is None else args
    sys.path.extend(folder for folder in import_folders(arguments) if folder not in sys.path)
    try:
        AnyModel(args, words, epilogue)
    except (MisconfigurationException, CheckpointError) as error:
        # They tell what to do; where in our code they were raised helps nobody.
        if rank_zero_only.rank != 0:
            time.sleep(_OTHERS_WAIT_S)
        print(f"lightning-cli: error: {error}", file=sys.stderr)
        sys.exit(1)
