"""The config files among the arguments of a command: which, where, what is in them, and on which line a key stands."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from fulmen.fabric.filesystem import exists, get_filesystem, is_dir, is_local, local_path

_EXTENSIONS = (".yaml", ".yml", ".json")
_OPTIONS = ("-c", "--config")
# Beyond what a person writes.
_DEEPEST = 200
_MOST_VALUES = 1_000_000


def config_files(arguments: Sequence[str]) -> list[str]:
    """The files that are named by `--config`, in order, whether or not they are there."""
    found: list[str] = []
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option in _OPTIONS and equals:
            found.append(value)
        elif argument in _OPTIONS and index + 1 < len(arguments):
            found.append(arguments[index + 1])
    return found


def import_folders(arguments: Sequence[str]) -> list[str]:
    """The folders of the config files: classes that a config names may lie beside it."""
    files = [path for path in config_files(arguments) if is_local(path) and os.path.isfile(local_path(path))]
    return list(dict.fromkeys(os.path.dirname(os.path.abspath(local_path(path))) for path in files))


def read_config(text: str) -> Any:
    """What a file holds, or what `text` itself says as YAML; None if neither can be read."""
    import yaml

    try:
        return _load(_content(text) if _is_file(text) else text)
    except (OSError, ValueError, ImportError, RecursionError, OverflowError, yaml.YAMLError):
        return None


def locate(keys: Sequence[str], arguments: Sequence[str]) -> str | None:
    """Where a config file sets the value at `keys`: "conf.yaml, line 3"; None if none of them does.

    Args:
        keys: The way down from the level of a subcommand.
        arguments: Of the command; of several files, the last one wins.
    """
    for path, group in reversed(list(_grouped_files(arguments))):
        if list(keys[: len(group)]) == group:
            line = _line(path, keys[len(group) :])
            if line is not None:
                return f"{path}, line {line}"
    return None


def yaml_problem(arguments: Sequence[str]) -> tuple[str, str] | None:
    """The config file that is no YAML, and what is wrong in it: "line 3: ..."."""
    import yaml

    for path in _all_files(arguments):
        try:
            # Not composed alone: it stops at tags only when it builds.
            _load(_content(path))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            return path, f"line {mark.line + 1}: {error.problem}" if mark else str(error.problem)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            return path, str(error)
        except (OSError, ImportError, RecursionError, OverflowError):
            continue
    return None


def key_set_twice(arguments: Sequence[str]) -> tuple[str, str, int, int] | None:
    """A file that sets a key twice in one mapping, of which YAML keeps the last: the file, the key, and both lines.

    Raises:
        RecursionError: With the path of a file that is nested deeper than Python can follow, or that names parts of
            itself by anchors so often that nobody could walk through it.
        OverflowError: With the path of a file in which a number has more digits than Python reads.
    """
    import yaml

    for path in _all_files(arguments):
        try:
            _check_extent(_content(path))
            root = yaml.compose(_content(path), Loader=_loader())
            found = _set_twice(root, (), set())
        except (OSError, ValueError, ImportError, yaml.YAMLError):  # told where the file is read
            continue
        except (RecursionError, OverflowError) as error:
            raise type(error)(path) from None
        if found is not None:
            return path, *found
    return None


def is_too_long_a_number(text: str) -> bool:
    """Has it more digits than Python makes an int of?

    >>> is_too_long_a_number("1" * 5000), is_too_long_a_number("-3_000")
    (True, False)
    """
    most = sys.get_int_max_str_digits()
    return 0 < most < len(text) and text.lstrip("+-").replace("_", "").isdecimal()


def _loader() -> Any:
    # The one that jsonargparse reads with: what it takes and another would not (tabs) was never looked at otherwise.
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _load(text: str) -> Any:
    import yaml

    _check_extent(text)
    return yaml.load(text, Loader=_loader())


def _check_extent(text: str) -> None:
    # By events, which need no stack: the composer of libyaml would end the process.
    import yaml

    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # the anchor, and how many values so far
    for event in yaml.parse(text, Loader=_loader()):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > _DEEPEST:
                raise RecursionError
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.NodeEvent):
            is_alias = isinstance(event, yaml.AliasEvent)
            if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and is_too_long_a_number(event.value):
                raise OverflowError
            anchor, size = (None, sizes.get(str(event.anchor), 1)) if is_alias else (event.anchor, 1)
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        if open_nodes:
            above, so_far = open_nodes[-1]
            open_nodes[-1] = (above, so_far + size)
        if size > _MOST_VALUES:
            raise RecursionError


def _set_twice(node: Any, above: tuple[str, ...], seen: set[int]) -> tuple[str, int, int] | None:
    if id(node) in seen:  # an anchor may be named more than once, and inside itself
        return None
    seen.add(id(node))
    if node is None or isinstance(node.value, str):
        return None
    lines: dict[tuple[str, str], int] = {}
    for item in node.value:
        name, value = item if isinstance(item, tuple) else (None, item)
        keys = above
        if name is not None and isinstance(name.value, str):
            key, line = (name.tag, name.value), name.start_mark.line + 1  # by tag, as 1 and "1" are two keys
            keys = (*above, name.value)
            if key in lines and name.value != "<<":  # what is merged in may come from several
                return ".".join(keys), lines[key], line
            lines[key] = line
        found = _set_twice(value, keys, seen)
        if found is not None:
            return found
    return None


def has_reference(arguments: Sequence[str]) -> bool:
    """Is there a `${...}` among the arguments, or in one of their files?"""
    if any("${" in argument for argument in arguments):
        return True
    for path in _all_files(arguments):
        with suppress(OSError, ValueError, ImportError):
            if "${" in _content(path):
                return True
    return False


def saved_in(arguments: Sequence[str]) -> str | None:
    """The folder in which the run was started that saved one of the config files, if it says so."""
    for path in reversed(list(_all_files(arguments))):
        try:
            lines = _content(path).splitlines()
        except (OSError, ValueError, ImportError):
            continue
        for line in lines:
            if line.startswith(ORIGIN):
                return line.removeprefix(ORIGIN)
            if not line.startswith("#"):
                break
    return None


# How a saved config begins the line that says where the run was started.
ORIGIN = "# in "


def _all_files(arguments: Sequence[str]) -> list[str]:
    return [path for path, _ in _grouped_files(arguments)]


def _grouped_files(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Every file with a config's extension, and whose keys are in it: `--model model.yaml` has those below `model`."""
    seen = set(config_files(arguments))
    yield from ((path, []) for path in config_files(arguments) if _is_file(path))
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, _, path = argument.partition("=") if argument.startswith("-") else (before, "", argument)
        if path.endswith(_EXTENSIONS) and path not in seen and _is_file(path):
            yield path, option.lstrip("-").split(".") if option.startswith("-") else []


def _is_file(path: str) -> bool:
    if path.lstrip().startswith(("{", "[")) or "\n" in path:
        return False
    try:
        if is_local(path):
            return os.path.isfile(local_path(path))
        return exists(path) and not is_dir(path)
    except (OSError, ValueError, ImportError):  # a text that is no path; a file system that is not installed
        return False


def _content(path: str) -> str:
    if is_local(path):
        with open(local_path(path), encoding="utf-8") as file:
            return file.read()
    with get_filesystem(path).open(path, "r", encoding="utf-8") as remote:
        return str(remote.read())


def _line(path: str, keys: Sequence[str]) -> int | None:
    import yaml

    try:
        node = yaml.compose(_content(path), Loader=_loader())
    except (OSError, ValueError, ImportError, yaml.YAMLError):
        return None
    line: int | None = None
    found: tuple[int, Any] | None
    for key in keys:
        while isinstance(node, yaml.SequenceNode) and node.value:  # a list of callbacks: the one that has the key
            node = next((item for item in node.value if _child(item, key)), node.value[0])
        found = _child(node, key)
        if found is None:
            # The form without `init_args`: `model: {class_path: ..., width: 3}` is no error of the key above.
            return None
        line, node = found
    return line


def _child(node: Any, key: str) -> tuple[int, Any] | None:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return None
    for name, value in node.value:
        if str(name.value) == key:
            return name.start_mark.line + 1, value
    return None
