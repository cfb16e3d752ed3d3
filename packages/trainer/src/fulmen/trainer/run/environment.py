"""Defaults of Trainer's arguments from the environment: `FULMEN_TRAINER_MAX_EPOCHS=3` stands for `max_epochs=3`.

So a job script or a cluster sets what no program says. What the program passes wins. The prefix that programs of the
reference know, `PL_TRAINER_`, is read too; ours wins.
"""

import ast
import difflib
import functools
import inspect
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast

from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.trainer.run.argument_names import check_given

PREFIXES = ("PL_TRAINER_", "FULMEN_TRAINER_")  # the later wins

_C = TypeVar("_C", bound=Callable[..., None])


def defaults_from_environment(init: _C) -> _C:
    """`init`, which takes what is not passed from the environment, where it is set there; names are checked."""
    names = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def with_defaults(self: Any, *args: Any, **kwargs: Any) -> None:
        check_given(args, kwargs, names)
        init(self, **{**arguments_in(os.environ, names), **kwargs})

    return cast(_C, with_defaults)


def arguments_in(environment: Mapping[str, str], names: Collection[str]) -> dict[str, Any]:
    """The arguments that the environment sets. Values are read as Python literals, and else are text.

    >>> arguments_in({"PL_TRAINER_DEVICES": "[0, 1]", "PL_TRAINER_STRATEGY": "ddp"}, ["devices", "strategy"])
    {'devices': [0, 1], 'strategy': 'ddp'}
    """
    found: dict[str, Any] = {}
    for prefix in PREFIXES:
        for variable, text in environment.items():
            name = variable.removeprefix(prefix).lower()
            if not variable.startswith(prefix) or "__" in variable:  # two underscores: of the command line
                continue
            if name in names:
                found[name] = _value(text)
            else:
                near = difflib.get_close_matches(name, names, n=1)
                advice = f"Did you mean {prefix}{near[0].upper()}?" if near else "Remove it, or correct its name."
                rank_zero_warn(
                    f"The environment variable {variable} has no effect. Trainer has no argument {name!r}. {advice}"
                )
    return found


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
