"""`lightning-cli init NAME`: a small project that trains and passes its test. Imports nothing that is slow."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

_TEMPLATES = Path(__file__).parent / "new_project_files"
# The file of a template, and where it goes.
_FILES = {
    "README.md.txt": "README.md",
    "config.yaml.txt": "config.yaml",
    "test.py.txt": "test_$name.py",
    "model.py.txt": "$name/model.py",
    "data.py.txt": "$name/data.py",
}


class ProjectNameError(ValueError):
    """No project can have this name."""


def write_project(name: str, folder: Path) -> list[Path]:
    """Write the project `name` into `folder/name`.

    Returns:
        The files.

    Raises:
        ProjectNameError: If that cannot be a package, is one already, or if there is something of this name.
    """
    what = f"`lightning-cli init {name}` cannot make a project"
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ProjectNameError(
            f"{what}. Its name is that of a Python package too: letters, digits and `_`, no digit first. Write for"
            f" example {_proposed(name)!r}."
        )
    if name in sys.stdlib_module_names or _is_elsewhere(name):
        raise ProjectNameError(
            f"{what}. There is a package {name!r} already, and Python would find that one. Choose another name."
        )
    root = folder / name
    if root.exists():
        raise ProjectNameError(
            f"{what}. {str(root)!r} is there already, and nothing is written over. Choose another name."
        )
    written = []
    for template, target in _FILES.items():
        path = root / Template(target).substitute(name=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = Template((_TEMPLATES / template).read_text(encoding="utf-8")).safe_substitute(name=name)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    (root / name / "__init__.py").touch()
    return [*written, root / name / "__init__.py"]


def main(arguments: Sequence[str]) -> None:
    """Write a project into the current folder, and say how to go on.

    Raises:
        SystemExit: 2, if the name will not do; 1, if it cannot be written.
    """
    parser = argparse.ArgumentParser(
        "lightning-cli init", description="Write a small project that trains and passes its test."
    )
    parser.add_argument("name", metavar="NAME", help="of the new folder, and of the package in it")
    name = parser.parse_args(arguments).name
    try:
        written = write_project(name, Path.cwd())
    except ProjectNameError as error:
        print(f"lightning-cli init: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"lightning-cli init: error: {error.filename!r} cannot be written: {error.strerror}.", file=sys.stderr)
        sys.exit(1)
    print("Written:", *(f"  {os.path.relpath(path)}" for path in sorted(written)), sep="\n")
    print(f"\nNext:\n  cd {name}\n  lightning-cli fit --config config.yaml")


def _proposed(name: str) -> str:
    cleaned = "".join(character if character.isalnum() else "_" for character in name).strip("_")
    return cleaned if cleaned.isidentifier() and not keyword.iskeyword(cleaned) else "my_project"


def _is_elsewhere(name: str) -> bool:
    """Is there an installed module of this name? What lies in the current folder is seen by its path."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return True
    return spec is not None and spec.has_location
