"""What `fulmen-fabric run` was told, on its way to the `Fabric` of the script.

It travels in one environment variable, so that the processes which the script starts have it too. Knows no parts of a
run: it only says which value a flag has.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from fulmen.fabric.errors import ConfigurationError

VARIABLE = "FULMEN_RUN"
# What Fabric has where the script says nothing.
NOTHING_SAID: dict[str, Any] = {
    "accelerator": "auto",
    "strategy": "auto",
    "devices": "auto",
    "num_nodes": 1,
    "precision": None,
}
# What the command means where nobody says anything.
_UNLESS_SAID = {"devices": "1"}


def to_variable(given: Mapping[str, str | int]) -> str:
    """The value of the environment variable for the options that were given on the command line."""
    return json.dumps(dict(given))


def is_run_by_command() -> bool:
    """Was this script started by `fulmen-fabric run`?"""
    return VARIABLE in os.environ


def resolve(
    flags: Mapping[str, Any], caller: str = "Fabric", meaning: Callable[[str, Any], Any] | None = None
) -> dict[str, Any]:
    """The flags that hold: those of the script, filled up with those of the command line.

    Args:
        flags: What the script says, by the names in `NOTHING_SAID`.
        caller: Quoted in errors.
        meaning: Of the name and the value of a flag; what means the same is no contradiction. By default only what is
            written in the same way means the same.

    Raises:
        ConfigurationError: If script and command line say different things.
    """
    if not is_run_by_command():
        return dict(flags)
    meaning = meaning or _written
    given: dict[str, Any] = json.loads(os.environ[VARIABLE])
    resolved = dict(flags)
    for name, in_script in flags.items():
        # Compared by identity of kind first: a strategy object may not know how to compare itself to a text.
        is_silent = isinstance(in_script, type(NOTHING_SAID[name])) and in_script == NOTHING_SAID[name]
        if name not in given:
            resolved[name] = _UNLESS_SAID.get(name, in_script) if is_silent else in_script
        elif is_silent or meaning(name, in_script) == meaning(name, given[name]):
            resolved[name] = given[name] if is_silent else in_script
        else:
            option = f"--{name.replace('_', '-')} {given[name]}"
            raise ConfigurationError(
                f"`fulmen-fabric run {option}` contradicts {caller}({name}={_shown(in_script)}) in the script."
                " None of the two is the obvious one. Leave the option out, or take it out of the script."
            )
    return resolved


def _written(_: str, value: Any) -> str:
    """A flag as one writes it on a command line."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | list | tuple) else f"{type(value).__name__}(...)"
