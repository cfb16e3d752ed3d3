"""Checks of what a constructor was given. What would fail later, deep inside, or count as something else, is refused.

Every error quotes the class and the argument, says what it is for, and what to pass.
"""

from __future__ import annotations

import inspect
import math
import os
from contextlib import suppress
from typing import Any

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError


def check_part(owner: object, name: str, value: Any, *, method: str, kind: str) -> None:
    """Raises ArgumentTypeError unless it is None, or an object with this method.

    Args:
        owner: Whose constructor it is; errors quote its class.
        name: Of the argument.
        value: What was given. It need not be a `kind`, if only it can do what one does.
        method: What it will be asked for.
        kind: The base class of such objects.
    """
    if value is None:
        return
    if inspect.isclass(value):
        raise ArgumentTypeError(
            f"{_named(owner)}({name}={value.__name__}) got a class. Its methods would be called without an object."
            f" Pass an object, as in `{name}={value.__name__}(...)`."
        )
    if not callable(getattr(value, method, None)):
        raise ArgumentTypeError(
            f"{_given(owner, name, value)} got {_a(value)}. It will be asked for `{method}`, which that does not have."
            f" Pass an object of the type {kind}, or leave it out."
        )


def check_function(owner: object, name: str, value: object, meaning: str, *, may_be_none: bool = True) -> None:
    """Raises ArgumentTypeError unless it can be called.

    Args:
        owner, name, value: See `check_part`.
        meaning: A sentence: what it is for.
        may_be_none: None passes, too.
    """
    if not (callable(value) or (value is None and may_be_none)):
        what_to_do = "Pass a function, or leave it out." if may_be_none else "Pass a function."
        raise ArgumentTypeError(f"{_given(owner, name, value)} got {_a(value)}. {meaning} {what_to_do}")


def check_flag(owner: object, name: str, value: object) -> None:
    """Raises ArgumentTypeError unless it is a bool."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(
            f"{_given(owner, name, value)} got {_a(value)}. It is either on or off, and any text would count as on."
            " Pass True or False."
        )


def check_count(owner: object, name: str, value: Any, meaning: str, lowest: int = 1) -> None:
    """Check a number of things.

    Args:
        owner, name, value: See `check_part`.
        meaning: A sentence: what is counted.
        lowest: The smallest number that makes sense.

    Raises:
        ArgumentTypeError: If it is no int.
        ConfigurationError: If it is less than `lowest`.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise ArgumentTypeError(
            f"{_given(owner, name, value)} got {_a(value)}. {meaning} Pass an int of {lowest} or more."
        )
    if value < lowest:
        raise ConfigurationError(f"{_given(owner, name, value)} is too small. {meaning} Pass {lowest} or more.")


def check_amount(owner: object, name: str, value: Any, meaning: str) -> None:
    """Check a number that may be a fraction; None passes.

    Args:
        owner, name, value: See `check_part`.
        meaning: A sentence: what is measured.

    Raises:
        ArgumentTypeError: If it is no number.
        ConfigurationError: If it is negative or NaN.
    """
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ArgumentTypeError(
            f"{_given(owner, name, value)} got {_a(value)}. {meaning} Pass a number, or leave it out."
        )
    if math.isnan(value) or value < 0:
        raise ConfigurationError(
            f"{_given(owner, name, value)} is no such number. {meaning} Pass one that is not negative."
        )


def check_number(owner: object, name: str, value: Any, meaning: str) -> float:
    """The number that a value is: an int, a float, infinity, a fraction, a tensor or an array with one.

    Args:
        owner, name, value: See `check_part`.
        meaning: A sentence: what the number says.

    Raises:
        ArgumentTypeError: If it is no number.
    """
    if not isinstance(value, str | bytes):
        with suppress(TypeError, ValueError):
            return float(value)
    raise ArgumentTypeError(f"{_given(owner, name, value)} got {_a(value)}. {meaning} Pass a number.")


def check_whole(owner: object, name: str, value: Any, meaning: str) -> None:
    """Check a number without a fraction, of whatever type.

    Args:
        owner, name, value, meaning: See `check_number`.

    Raises:
        ArgumentTypeError: If it is no number.
        ConfigurationError: If it has a fraction, or no end.
    """
    if not check_number(owner, name, value, meaning).is_integer():
        raise ConfigurationError(f"{_given(owner, name, value)} is no whole number. {meaning} Pass an int.")


def check_kind(
    owner: object, name: str, value: object, kind: type | tuple[type, ...], meaning: str, wanted: str
) -> None:
    """Raises ArgumentTypeError unless it is an object of this class.

    Args:
        owner, name, value: See `check_part`.
        kind: The class, or several.
        meaning: A sentence: what it is for.
        wanted: What to pass.
    """
    if not isinstance(value, kind):
        raise ArgumentTypeError(f"{_given(owner, name, value)} got {_a(value)}. {meaning} Pass {wanted}.")


def check_text(owner: object, name: str, value: object, meaning: str, *, may_be_none: bool = True) -> None:
    """Raises ArgumentTypeError unless it is a text.

    Args:
        owner, name, value: See `check_part`.
        meaning: A sentence: what it is for.
        may_be_none: None passes, too.
    """
    if value is not None or not may_be_none:
        check_kind(owner, name, value, str, meaning, "a str")


def check_location(owner: object, name: str, value: object, meaning: str) -> None:
    """Raises ArgumentTypeError unless it is a path.

    Args:
        owner, name, value: See `check_part`.
        meaning: A sentence: what lies there.
    """
    check_kind(owner, name, value, (str, os.PathLike), meaning, "a str or a Path")


def _given(owner: object, name: str, value: object) -> str:
    text = repr(value)
    return f"{_named(owner)}({name}={text if len(text) <= 80 else '...'})"


def _named(owner: object) -> str:
    return owner if isinstance(owner, str) else type(owner).__name__


def _a(value: object) -> str:
    if value is None:
        return "None"
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name}"
