"""`lightning-cli examples`: what can be run at once. Reads the sources, and imports none."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path

_FOLDER = Path(__file__).parent / "examples"


def example_names() -> list[str]:
    """The names of the examples."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if not path.stem.startswith("_"))


def describe(name: str) -> tuple[str, str]:
    """What the example is, in one line; and the command that runs it."""
    docstring = ast.get_docstring(ast.parse(_source(name)), clean=False) or ""
    title = docstring.partition("\n")[0]
    start = docstring.index("lightning-cli ")
    return title, " ".join(docstring[start:].split())


def main(arguments: Sequence[str]) -> None:
    """List the examples, or print the source of one.

    Raises:
        SystemExit: 2, if there is no such example.
    """
    parser = argparse.ArgumentParser(
        "lightning-cli examples", description="List examples that can be run at once, or print the source of one."
    )
    parser.add_argument("name", nargs="?", choices=example_names(), help="an example, to print its source")
    name = parser.parse_args(arguments).name
    if name is not None:
        sys.stdout.write(_source(name))
        return
    for one in example_names():
        title, command = describe(one)
        print(f"{one}: {title}\n  {_folded(command)}\n")
    print("`lightning-cli examples NAME` prints the source of one, to begin from.")


def _source(name: str) -> str:
    return (_FOLDER / f"{name}.py").read_text(encoding="utf-8")


def _folded(command: str) -> str:
    """A line for each option, as a shell takes it."""
    return command.replace(" --", " \\\n    --")
