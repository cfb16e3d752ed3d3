"""Environment variables to arguments: `FULMEN_FIT__TRAINER__MAX_EPOCHS=3` is `fit --trainer.max_epochs=3` (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_CONFIG = "config"
# As Trainer itself would read it: FULMEN_TRAINER_MAX_EPOCHS.
_GROUP_OF_TRAINER = "TRAINER_"
_ALIAS, _SHARED, _OWN = range(3)


@dataclass(frozen=True, slots=True)
class Setting:
    """A variable that sets an option.

    Attributes:
        variable: Its name.
        option: `trainer.max_epochs`.
        value: As text.
    """

    variable: str
    option: str
    value: str

    @property
    def argument(self) -> str:
        """As it would be written on a command line."""
        return f"--{self.option}={self.value}"


def settings_in(
    environ: Mapping[str, str], options: Iterable[str], *, prefix: str, subcommand: str | None = None
) -> list[Setting]:
    """The settings in the environment, in the order in which they count: later ones win.

    `PREFIX_KEY__SUBKEY` is for every subcommand, and `PREFIX_SUBCOMMAND__KEY__SUBKEY` for one; that wins. Config files
    come before single values, and a class before its arguments.

    Args:
        environ: All variables; empty ones count as not set.
        options: What the parser knows, as `trainer.max_epochs`.
        prefix: Of the names of variables.
        subcommand: Whose parser it is; None if there are no subcommands.

    >>> found = settings_in({"FULMEN_TRAINER__MAX_EPOCHS": "3", "FULMEN_SEED": "1"}, ["trainer.max_epochs"],
    ...                     prefix="FULMEN", subcommand="fit")
    >>> [setting.argument for setting in found]
    ['--trainer.max_epochs=3']
    """
    known = {_as_variable(option): option for option in options}
    groups = {name.partition("__")[0] for name in known}
    own = f"{_as_variable(subcommand)}__" if subcommand else None
    found: list[tuple[int, Setting]] = []
    for variable, value in environ.items():
        if not value or not variable.startswith(f"{prefix}_"):
            continue
        name = variable[len(prefix) + 1 :]
        if own is not None and name.startswith(own):
            rank, name = _OWN, name[len(own) :]
        elif name.partition("__")[0] in groups:
            rank = _SHARED
        elif name.startswith(_GROUP_OF_TRAINER) and name.replace("_", "__", 1) in known:
            rank, name = _ALIAS, name.replace("_", "__", 1)
        else:
            continue  # somebody else's: FULMEN_GLOBAL_SEED, or that of another subcommand
        option = known.get(name) or name.lower().replace("__", ".")
        found.append((rank, Setting(variable, option, value)))
    found.sort(key=lambda pair: _order(*pair))
    return [setting for _, setting in found]


def _order(rank: int, setting: Setting) -> tuple[Any, ...]:
    option = setting.option
    return option != _CONFIG, "." in option, rank, option.count("."), option


def variable_of(option: str, *, prefix: str, subcommand: str | None = None) -> str:
    """The variable that sets `option`.

    >>> variable_of("trainer.max_epochs", prefix="FULMEN", subcommand="fit")
    'FULMEN_FIT__TRAINER__MAX_EPOCHS'
    """
    return "_".join([prefix, "__".join(filter(None, [_as_variable(subcommand or ""), _as_variable(option)]))])


def _as_variable(name: str) -> str:
    return name.replace(".", "__").replace("-", "_").upper()
