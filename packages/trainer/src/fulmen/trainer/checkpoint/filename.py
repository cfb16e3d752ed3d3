"""File names of checkpoints from metrics: `{epoch}-{val_loss:.2f}` to `epoch=3-val_loss=0.25`."""

import re
from collections.abc import Callable, Iterator, Mapping
from string import Formatter
from typing import Any

from fulmen.fabric.errors import ConfigurationError


def default_template(join: str = "-") -> str:
    """The name that a checkpoint has when the user gave none."""
    return "{epoch}" + join + "{step}"


def check_template(template: str) -> None:
    """Refuse a template that can never become a name.

    Raises:
        ConfigurationError: For unbalanced braces, or a pair of braces without a name.
    """
    try:
        names = [name for _, name, _, _ in Formatter().parse(template)]
    except ValueError as error:
        raise ConfigurationError(
            f"filename={template!r} is no template for names of checkpoints. Its braces do not match: {error}."
            " Write metrics as '{name}' or '{name:format}', and literal braces as '{{' and '}}'."
        ) from error
    if any(name == "" for name in names):
        raise ConfigurationError(
            f"filename={template!r} is no template for names of checkpoints. There are braces without a name in it."
            " Name a metric in each pair, as in '{epoch}-{val_loss:.2f}'."
        )


def fill_template(
    template: str, values: Mapping[str, Any], *, insert_names: bool = True, equals: str = "=", missing: Any = 0
) -> str:
    """The name that `template` gives for these values.

    A name in braces is looked up as it is, so that metrics may be called `val/loss` or `loss.total`.

    Args:
        template: Text with `{name}` or `{name:format}` in it.
        values: Numbers, or whatever else the formats can format (0-dimensional tensors).
        insert_names: Put `name=` in front of each value.
        equals: What stands between name and value.
        missing: Stands in for a value that is not there.

    Raises:
        ConfigurationError: If a format does not suit its value.

    >>> fill_template("{epoch:02d}-{val/loss:.2f}", {"epoch": 3, "val/loss": 0.25})
    'epoch=03-val/loss=0.25'
    """
    return "".join(_parts(template, values, insert_names, equals, missing))


def _parts(template: str, values: Mapping[str, Any], insert_names: bool, equals: str, missing: Any) -> Iterator[str]:
    for text, name, form, _ in Formatter().parse(template):
        yield text
        if name is None:
            continue
        value = values.get(name, missing)
        try:
            formatted = format(value, form or "")
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"filename={template!r} asks for {name!r} in the format {form!r}. Its value {value} cannot be written"
                f" so: {error}. Take a format for numbers of this kind, such as '{{{name}:.2f}}'."
            ) from error
        yield f"{_inside(name)}{equals}{formatted}" if insert_names else formatted


def _inside(name: str) -> str:
    """The name of a metric as a relative path that leads nowhere but down: `val/loss` may make a folder.

    >>> _inside("../val/loss")
    '__/val/loss'
    """
    return re.sub(r"(?<![^/\\])\.\.(?![^/\\])", "__", name.lstrip("/\\"))


def pattern_of(template: str, *, join: str, extension: str) -> re.Pattern[str]:
    """What the names of files match that were made of `template`, with a version or without.

    >>> bool(pattern_of("last", join="-", extension=".ckpt").fullmatch("last-v1.ckpt"))
    True
    """
    literals = [re.escape(text) + ("" if name is None else ".*") for text, name, _, _ in Formatter().parse(template)]
    return re.compile("".join(literals) + rf"({re.escape(join)}v\d+)?" + re.escape(extension))


def first_free(name: Callable[[int | None], str], is_taken: Callable[[str], bool], *, starting_version: int = 1) -> str:
    """The first of the names without version, with version 1, 2, ... that is not taken.

    >>> first_free(lambda version: f"last-v{version}" if version else "last", {"last", "last-v1"}.__contains__)
    'last-v2'
    """
    candidate, version = name(None), starting_version
    while is_taken(candidate):
        candidate, version = name(version), version + 1
    return candidate
