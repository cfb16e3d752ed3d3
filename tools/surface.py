"""Compare our public names, parameters and defaults with those that the field knows.

    python tools/surface.py            # print what differs
    python tools/surface.py --write    # bring tests/repository/data/deviations.yaml up to date

`--write` keeps the reasons and drops what no longer differs. What is new comes under "unexplained": a test refuses it.
"""

from __future__ import annotations

import argparse
import enum
import importlib
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from inspect import Parameter
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parents[1] / "tests" / "repository" / "data"
SURFACE, DEVIATIONS = DATA / "surface.json", DATA / "deviations.yaml"
UNEXPLAINED = "unexplained"
# Folders of theirs and faces of ours, the longest name first.
FACES = {
    "lightning.fabric.plugins.collectives": "fulmen.fabric.collectives",
    "lightning.fabric.plugins.environments": "fulmen.fabric.environments",
    "lightning.fabric.plugins.io": "fulmen.fabric.checkpoint_io",
    "lightning.fabric.plugins.precision": "fulmen.fabric.precision",
    "lightning.pytorch.utilities.model_summary": "fulmen.trainer.summary",
    "lightning.pytorch.tuner": "fulmen.tuner",
    "lightning.pytorch.cli": "fulmen.cli",
    "lightning.pytorch": "fulmen.trainer",
    "lightning.fabric": "fulmen.fabric",
    "lightning": "fulmen.trainer",
}
NOWHERE = object()


def find(module: str, name: str) -> Any:
    """What has this name here, in the module of theirs or in the nearest face; NOWHERE if nothing has."""
    for theirs, face in FACES.items():
        if module != theirs and not module.startswith(f"{theirs}."):
            continue
        rest = module.removeprefix(theirs).strip(".").split(".")
        deep = [".".join([face, *filter(None, rest[:depth])]) for depth in range(len(rest), -1, -1)]
        for place in (*deep, f"{face}.utilities"):
            with suppress(ModuleNotFoundError, AttributeError):
                return getattr(importlib.import_module(place), name)
    return NOWHERE


def written(default: Any) -> str:
    """A default as it is written in code."""
    return f"{type(default).__name__}.{default.name}" if isinstance(default, enum.Enum) else repr(default)


def signature_differences(theirs: list[list[str]], ours: Any, *, is_method: bool) -> Iterator[tuple[str, str]]:
    """Parameter and what is the matter with it. More parameters, if they have defaults, are no difference."""
    parameters = list(inspect.signature(ours).parameters.values())[is_method:]
    kinds = {parameter.kind for parameter in parameters}
    if kinds == {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
        return
    by_name = {parameter.name: parameter for parameter in parameters}
    by_place = [one.name for one in parameters if one.kind <= Parameter.POSITIONAL_OR_KEYWORD]
    variable = {"var_pos": ("*", Parameter.VAR_POSITIONAL), "var_kw": ("**", Parameter.VAR_KEYWORD)}
    place = 0
    for name, kind, *default in theirs:
        if kind in variable:
            if variable[kind][1] not in kinds:
                yield variable[kind][0] + name, "missing"
            continue
        place += kind != "kw_only"
        if name not in by_name:
            yield name, "missing"
        elif kind == "pos_or_kw" and by_place[place - 1 : place] != [name]:
            yield name, "at another place"
        elif default and "<" not in default[0] and written(by_name[name].default) != default[0]:
            yield name, f"default {written(by_name[name].default)}, there {default[0]}"
    unknown = [one for one in parameters if one.name not in {name for name, *_ in theirs}]
    for one in unknown:
        if one.default is one.empty and not str(one).startswith("*"):
            yield one.name, "required here, unknown there"


def has(ours: Any, member: str) -> bool:
    """Has the class this member, or sets it on its objects?"""
    own = [one for one in getattr(ours, "__mro__", ()) if one.__module__.startswith("fulmen")]
    return hasattr(ours, member) or any(
        member in getattr(one, "__annotations__", {}) or f"self.{member}" in inspect.getsource(one) for one in own
    )


def differences_of(theirs: dict[str, Any], ours: Any) -> Iterator[tuple[str, str]]:
    """Member, or parameter in parentheses, and what is the matter with it."""
    own_parameters = theirs.get("init" if inspect.isclass(ours) else "params")
    if own_parameters is not None:
        found = signature_differences(own_parameters, ours, is_method=False)
        yield from ((f"({name})", what) for name, what in found)
    properties = theirs.get("properties", {})
    members = [theirs.get(kind, ()) for kind in ("methods", "properties", "inherited", "members", "fields")]
    for name in (name for names in members for name in names):
        own = getattr(ours, name, None)
        if not has(ours, name):
            yield f".{name}", "missing"
        elif properties.get(name) and isinstance(own, property) and own.fset is None:
            yield f".{name}", "cannot be set"
        elif name in theirs.get("methods", {}) and callable(own):
            is_method = inspect.isfunction(inspect.getattr_static(ours, name))
            for parameter, what in signature_differences(theirs["methods"][name], own, is_method=is_method):
                yield f".{name}({parameter})", what
    yield from ((f"[{name}]", "missing") for name in theirs.get("keys", ()) if name not in ours)


def differences() -> dict[str, str]:
    """Everything that is other here than there: name of the field, and what is the matter with it."""
    surface = json.loads(SURFACE.read_text(encoding="utf-8"))
    found: dict[str, str] = {}
    for qualified, theirs in surface["objects"].items():
        ours = find(*qualified.rpartition(".")[::2])
        members = [("", "missing")] if ours is NOWHERE else differences_of(theirs, ours)
        found |= {qualified + member: what for member, what in members}
    missing = {name.rpartition(".")[2] for name, what in found.items() if what == "missing"}
    for module, names in surface["modules"].items():
        found |= {f"{module}.{n}": "missing" for n in names if n not in missing and find(module, n) is NOWHERE}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the file that the test compares with")
    write, left = parser.parse_args(arguments).write, differences()
    if not write:
        return print(yaml.safe_dump(left, width=200), end="")
    text = DEVIATIONS.read_text(encoding="utf-8")
    listed: dict[str, dict[str, str]] = yaml.safe_load(text)
    groups = {reason: {name: left.pop(name) for name in names if name in left} for reason, names in listed.items()}
    groups[UNEXPLAINED] = groups.get(UNEXPLAINED, {}) | left
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    body = [yaml.safe_dump({reason: names}, width=200) for reason, names in groups.items() if names]
    DEVIATIONS.write_text("\n".join([head, *body]), encoding="utf-8")


if __name__ == "__main__":
    main()
