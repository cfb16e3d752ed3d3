"""Defaults of Trainer's arguments from the environment: `PL_TRAINER_MAX_EPOCHS=3` stands for `max_epochs=3`.

So a job script or a cluster sets what no program says. What the program passes wins.
"""

import ast
import difflib
import functools
import inspect
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast

from fulmen.fabric.rank_zero import rank_zero_warn

PREFIX = "PL_TRAINER_"

_C = TypeVar("_C", bound=Callable[..., None])


def defaults_from_environment(init: _C) -> _C:
    """`init`, which takes what is not passed from the environment, where it is set there."""
    names = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def with_defaults(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **{**arguments_in(os.environ, names), **kwargs})

    return cast(_C, with_defaults)


def arguments_in(environment: Mapping[str, str], names: Collection[str]) -> dict[str, Any]:
    """The arguments that the environment sets. Values are read as Python literals, and else are text.

    >>> arguments_in({"PL_TRAINER_DEVICES": "[0, 1]", "PL_TRAINER_STRATEGY": "ddp"}, ["devices", "strategy"])
    {'devices': [0, 1], 'strategy': 'ddp'}
    """
    found: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in names:
            found[name] = _value(text)
        else:
            near = difflib.get_close_matches(name, names, n=1)
            advice = f"Did you mean {PREFIX}{near[0].upper()}?" if near else "Remove it, or correct its name."
            rank_zero_warn(
                f"The environment variable {variable} has no effect. Trainer has no argument {name!r}. {advice}"
            )
    return found


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
