"""Faces that load nothing until a name is asked for (PEP 562)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any

_modules: dict[str, tuple[str, ...]] = {}  # for each face, what its names come from


def lazy_face(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for the `__init__.py` of `package`.

    Sub-packages are found as attributes too (`import fulmen.fabric as F; F.strategies.DDPStrategy`).

    Args:
        package: The `__name__` of the face.
        places: For each public name, the module that holds it, or "module:attribute" where it is called otherwise
            there. A public name must not be the name of a submodule: importing the latter would hide the former.
    """
    _modules[package] = tuple(dict.fromkeys(place.partition(":")[0] for place in places.values()))

    def load(name: str) -> Any:
        if name in places:
            module_name, _, attribute = places[name].partition(":")
            value = getattr(importlib.import_module(module_name), attribute or name)
        elif _is_submodule(package, name):
            return importlib.import_module(f"{package}.{name}")
        else:
            face = sys.modules.get(package)
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=face)
        # The next access is a plain one.
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return load, names


def import_behind(face: str) -> None:
    """Import the modules that the names of a face come from, so that its classes are known by their bases.

    A name that its module makes only when it is asked for, because it needs a slow package, is not made.
    """
    importlib.import_module(face)
    for module in _modules[face]:
        importlib.import_module(module)


def _is_submodule(package: str, name: str) -> bool:
    # `hasattr(module, "__wrapped__")` and the like must not look at the file system; a face may be a plain module.
    is_package = "__path__" in vars(sys.modules[package])
    return is_package and not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None
