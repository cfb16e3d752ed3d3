"""Which classes the arguments name, and whether their types allow them: asked before any of their modules is imported.

jsonargparse imports first and checks then. Importing runs a module, so what cannot fit is refused here, as far as the
source of the module tells; the rest is left to jsonargparse.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any, Union, get_args, get_origin

from jsonargparse import ArgumentParser

from fulmen.cli.class_sources import is_defined, is_subclass
from fulmen.cli.complaints import Complaint, Kind, RefusedValueError
from fulmen.cli.config_files import read_config

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_DESCRIPTION = {"class_path", "init_args", "dict_kwargs"}
# Types whose values are data, also where jsonargparse would take a class path for them.
_DATA = (bool, int, float, complex, str, bytes, Enum, PurePath, timedelta, type(None))


def check_classes(parser: Any, values: Iterable[tuple[str, Any]]) -> None:
    """Look for classes that their types do not allow.

    Args:
        parser: Of one subcommand, or without subcommands.
        values: Keys and what was given for them.

    Raises:
        RefusedValueError: For the first one.
    """
    search = _Search()
    for key, value in values:
        if not isinstance(value, (str, Mapping)) and _is_group(parser, key):
            raise RefusedValueError(_no_mapping((key,), value))
        if _concerns(value):
            search.look(parser, key.split("."), value, ())
        else:  # nearly always
            search.remember(key, value)


def given_values(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Every key with its value, as far as it can be read without the parser: from files and from options."""
    pending: str | None = None
    for argument in arguments:
        if argument.startswith("-"):
            option, equals, value = argument.partition("=")
            pending = {"c": "config"}.get(option.lstrip("-"), option.lstrip("-")).rstrip("+")
            if not equals:
                continue
        elif pending is None:
            continue
        else:
            value = argument
        yield from _read(pending, value)
        pending = None


def _read(key: str, text: str) -> Iterator[tuple[str, Any]]:
    value: Any = text
    if key == "config" or text.lstrip().startswith(("{", "[")) or text.endswith((".yaml", ".yml", ".json")):
        value = read_config(text) or text
    if key != "config":
        yield key, value
    elif isinstance(value, Mapping):
        # YAML has keys that are no text: 3, null, a date. No argument has such a name, and jsonargparse says so.
        yield from ((str(name), item) for name, item in value.items())


_CONTAINERS = (Mapping, list, tuple, set, frozenset)


@dataclass
class _Search:
    """Goes down the values beside the types of their arguments.

    Attributes:
        chosen: The class that was last named for a key.
    """

    chosen: dict[str, str] = field(default_factory=dict)

    def remember(self, key: str, value: Any) -> None:
        if isinstance(value, str):
            self.chosen[key.removesuffix(".class_path")] = value

    def look(self, parser: Any, keys: Sequence[str], value: Any, above: tuple[str, ...]) -> None:
        """Check the value of the argument at `keys` of `parser`, which itself stands at `above`."""
        for length in range(len(keys), 0, -1):
            hint = _type_of(parser, ".".join(keys[:length]))
            if hint is not None:
                self._below(hint, keys[length:], value, (*above, *keys[:length]))
                return
        if isinstance(value, Mapping):
            for name, item in value.items():
                self.look(parser, [*keys, *str(name).split(".")], item, above)

    def _below(self, hint: Any, rest: Sequence[str], value: Any, keys: tuple[str, ...]) -> None:
        if not rest or rest == ["class_path"]:
            self._check(hint, value, keys)
            return
        # --model.encoder X, where --model was named before.
        class_path = self.chosen.get(".".join(keys))
        arguments = rest[1:] if rest[0] == "init_args" else rest
        if class_path is not None and arguments:
            inner = _parser_of(class_path)
            if inner is not None:
                self.look(inner, arguments, value, (*keys, "init_args"))

    def _check(self, hint: Any, value: Any, keys: tuple[str, ...]) -> None:
        match value:
            case str():
                self._check_class(hint, value, keys, is_described=False)
            case list() | tuple():
                for item in value:
                    self._check(hint, item, keys)
            case Mapping() if _describes(value):
                class_path = str(value["class_path"])
                self._check_class(hint, class_path, keys, is_described=True)
                arguments = value.get("init_args", {})
                if not isinstance(arguments, Mapping):
                    raise RefusedValueError(_no_mapping((*keys, "init_args"), arguments))
                inner = _parser_of(class_path) if _concerns(arguments) else None
                if inner is not None:
                    self.look_all(inner, arguments, (*keys, "init_args"))
            case Mapping():
                for item in value.values():
                    self._check(hint, item, keys)

    def look_all(self, parser: Any, values: Mapping[str, Any], above: tuple[str, ...]) -> None:
        for name, value in values.items():
            self.look(parser, [str(name)], value, above)

    def _check_class(self, hint: Any, class_path: str, keys: tuple[str, ...], *, is_described: bool) -> None:
        self.chosen[".".join(keys)] = class_path
        bases = expected_classes(hint)
        if bases is None:
            return
        if not bases:
            if is_described and not holds_data(hint):
                raise RefusedValueError(_complaint(Kind.UNTYPED, keys, class_path))
            return
        if _PATH.fullmatch(class_path) and is_subclass(class_path, bases) is False:
            is_missing = is_defined(class_path) is False
            if is_missing and not is_described and _takes_text(hint):
                return  # "data.csv" is a text, also where there is a data.py
            kind = Kind.NO_CLASS if is_missing else Kind.WRONG_CLASS
            raise RefusedValueError(_complaint(kind, keys, class_path, bases))


def expected_classes(hint: Any) -> tuple[type, ...] | None:
    """The classes that a class path may lead to where `hint` is the type.

    An empty tuple if the type asks for no object; None if it takes any, as Callable does.

    >>> expected_classes(list[int] | None)
    ()
    """
    origin = get_origin(hint)
    if origin is Annotated:
        return expected_classes(get_args(hint)[0])
    if origin in (Callable, type) or hint in (Callable, type):
        result = get_args(hint)[-1:] if get_args(hint) else ()
        inner = expected_classes(result[0]) if result else None
        return inner or None
    if origin is not None:
        found: list[type] = []
        for part in get_args(hint):
            if part is Ellipsis or isinstance(part, (str, int)):
                continue
            classes = expected_classes(part)
            if classes is None:
                return None
            found.extend(classes)
        return tuple(dict.fromkeys(found))
    if hint in (Any, object) or not inspect.isclass(hint) or issubclass(hint, (*_DATA, *_CONTAINERS)):
        return ()
    return (hint,)


def holds_data(hint: Any) -> bool:
    """Does the type say that its values are data: numbers, texts, dicts and lists of them?

    >>> holds_data(dict[str, int]), holds_data(Any)
    (True, False)
    """
    if get_origin(hint) in (Union, types.UnionType):
        return all(holds_data(part) for part in get_args(hint))
    kind = get_origin(hint) or hint
    return inspect.isclass(kind) and kind not in (Any, object) and issubclass(kind, (*_DATA, Mapping, Iterable))


def _takes_text(hint: Any) -> bool:
    return hint is str or str in get_args(hint)


def _concerns(value: Any) -> bool:
    """Could it name a class, or describe an object?"""
    match value:
        case str():
            return _PATH.fullmatch(value) is not None
        case Mapping():
            return _describes(value) or any(_concerns(item) for item in value.values())
        case list() | tuple():
            return any(_concerns(item) for item in value)
    return False


def _describes(value: Mapping[Any, Any]) -> bool:
    return "class_path" in value and set(value) <= _DESCRIPTION


def _type_of(parser: Any, dest: str) -> Any:
    """The type of the argument; None if there is no such argument."""
    for action in parser._actions:
        if action.dest == dest and hasattr(action, "_typehint"):
            return action._typehint
    return None


def _is_group(parser: Any, key: str) -> bool:
    """Are there arguments below `key`, and no type that says what else it may be?"""
    return _type_of(parser, key) is None and any(action.dest.startswith(f"{key}.") for action in parser._actions)


def _parser_of(class_path: str) -> Any:
    """A parser with the arguments of the class, which its type has allowed; None if it cannot be had."""
    module, _, name = class_path.rpartition(".")
    try:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(getattr(importlib.import_module(module), name), fail_untyped=False)
    except Exception:  # jsonargparse meets the same, and says it
        return None
    return parser


def _complaint(kind: Kind, keys: tuple[str, ...], class_path: str, bases: Sequence[type] = ()) -> Complaint:
    wanted = " or ".join(base.__name__ for base in bases)
    return Complaint(
        kind, f"{'.'.join(keys)}: {class_path} is not allowed", keys, class_path=class_path, wanted=(wanted,)
    )


def _no_mapping(keys: tuple[str, ...], value: Any) -> Complaint:
    text = f"{'.'.join(keys)}: {value!r} is no mapping"
    return Complaint(Kind.WRONG_TYPE, text, keys, value=str(value), wanted=("a mapping of names to values",))
