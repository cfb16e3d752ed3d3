"""List every public name of the four packages, with the parameters of what can be called.

    python tools/public_names.py            # print the list
    python tools/public_names.py --write    # make it the promise: tests/repository/public_names.txt

A test compares the list with that file, so that no promise is broken or made by accident.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SNAPSHOT = REPOSITORY / "tests" / "repository" / "public_names.txt"


def faces() -> list[str]:
    """The modules that hand out names, lowest package first."""
    found = []
    for package in ("fabric", "trainer", "tuner", "cli"):
        source = REPOSITORY / "packages" / package / "src"
        for path in sorted(source.rglob("*.py")):
            if "= lazy_face(" in path.read_text(encoding="utf-8"):
                parts = path.relative_to(source).with_suffix("").parts
                found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def described(value: object) -> str:
    """The parameters of a class or a function, without types and defaults; nothing for other objects."""
    if not callable(value):
        return ""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return "(...)"
    written = (str(parameter.replace(annotation=parameter.empty, default=parameter.empty)) for parameter in parameters)
    return f"({', '.join(written)})"


def public_names() -> Iterator[str]:
    """One line for each name."""
    for face in faces():
        module = importlib.import_module(face)
        for name in sorted(module.__all__):
            yield f"{face}.{name}{described(getattr(module, name))}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the file that the test compares with")
    write = parser.parse_args(arguments).write
    text = "\n".join([*public_names(), ""])
    if write:
        SNAPSHOT.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
