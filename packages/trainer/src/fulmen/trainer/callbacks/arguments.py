"""Refuse, when a callback is made, what would fail in the middle of a run. Knows no callback."""

from typing import Any

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError


def check_number(value: Any, argument: str, meaning: str) -> None:
    """Refuse what is no number; infinity is one.

    Args:
        value: What the user gave.
        argument: As it was given: "EarlyStopping(patience=...)", the dots being the value.
        meaning: A sentence on what the argument says.

    Raises:
        ArgumentTypeError: Quoting it.
    """
    if _number_of(value) is None:
        raise ArgumentTypeError(f"{_quoted(argument, value)} is no number. {meaning} Pass a number.")


def check_whole(value: Any, argument: str, meaning: str) -> None:
    """Refuse what is no whole number.

    Raises:
        ArgumentTypeError: If it is no number.
        ConfigurationError: If it has a fraction, or no end.
    """
    number = _number_of(value)
    if number is None:
        raise ArgumentTypeError(f"{_quoted(argument, value)} is no number. {meaning} Pass an int.")
    if not number.is_integer():
        raise ConfigurationError(f"{_quoted(argument, value)} is no whole number. {meaning} Pass an int.")


def check_kind(value: Any, kind: type | tuple[type, ...], argument: str, meaning: str, wanted: str) -> None:
    """Refuse what is of another class.

    Raises:
        ArgumentTypeError: Quoting it, and its class.
    """
    if not isinstance(value, kind):
        raise ArgumentTypeError(
            f"{_quoted(argument, value)} is of the class {type(value).__name__}. {meaning} Pass {wanted}."
        )


def check_callable(value: object, argument: str, meaning: str) -> None:
    """Refuse what cannot be called.

    Raises:
        ArgumentTypeError: Quoting it.
    """
    if not callable(value):
        raise ArgumentTypeError(f"{_quoted(argument, value)} cannot be called. {meaning} Pass a function.")


def _quoted(argument: str, value: object) -> str:
    return argument.replace("...", repr(value), 1)


def _number_of(value: Any) -> float | None:
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
