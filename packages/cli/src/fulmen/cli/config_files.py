"""The config files among the arguments of a command: which, where, and on which line a key stands."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

_EXTENSIONS = (".yaml", ".yml", ".json")
_OPTIONS = ("-c", "--config")


def config_files(arguments: Sequence[str]) -> list[Path]:
    """The files that are named by `--config`, in order, whether or not they are there."""
    found: list[Path] = []
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option in _OPTIONS and equals:
            found.append(Path(value))
        elif argument in _OPTIONS and index + 1 < len(arguments):
            found.append(Path(arguments[index + 1]))
    return found


def import_folders(arguments: Sequence[str]) -> list[str]:
    """The folders of the config files: classes that a config names may lie beside it."""
    folders = (str(path.parent.absolute()) for path in config_files(arguments) if path.is_file())
    return list(dict.fromkeys(folders))


def locate(keys: Sequence[str], arguments: Sequence[str]) -> str | None:
    """Where a config file sets the value at `keys`: "conf.yaml, line 3"; None if none of them does.

    Args:
        keys: The way down from the level of a subcommand.
        arguments: Of the command; of several files, the last one wins.
    """
    for path in reversed(list(_all_files(arguments))):
        line = _line(path, keys)
        if line is not None:
            return f"{path}, line {line}"
    return None


def yaml_problem(arguments: Sequence[str]) -> tuple[Path, str] | None:
    """The config file that is no YAML, and what is wrong in it: "line 3: ..."."""
    import yaml

    for path in _all_files(arguments):
        try:
            yaml.compose(path.read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            return path, f"line {mark.line + 1}: {error.problem}" if mark else str(error.problem)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            return path, str(error)
        except OSError:
            continue
    return None


def _all_files(arguments: Iterable[str]) -> Iterator[Path]:
    """Every file with a config's extension: `--model model.yaml` reads one too."""
    arguments = list(arguments)
    seen = set(config_files(arguments))
    yield from (path for path in config_files(arguments) if path.is_file())
    for argument in arguments:
        path = Path(argument.partition("=")[2] or argument)
        if path.suffix in _EXTENSIONS and path not in seen and os.path.isfile(path):
            yield path


def _line(path: Path, keys: Sequence[str]) -> int | None:
    import yaml

    try:
        node = yaml.compose(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
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
