"""What the source of a module says about a class, without importing it.

Importing runs a module. A config may only name classes that fit where it names them, and mostly the source tells; where
it does not, nobody is refused.
"""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

_MAX_DEPTH = 12  # of imports and bases that are followed


def is_subclass(class_path: str, bases: Sequence[type]) -> bool | None:
    """Can `class_path` be put where one of `bases` is wanted: a subclass, or a function that returns one?

    None if that cannot be told without running the module.

    >>> is_subclass("collections.OrderedDict", [dict])
    True
    >>> is_subclass("antigravity.webbrowser", [dict])
    False
    """
    if any(getattr(base, "_is_protocol", False) for base in bases):
        return None
    module, _, name = class_path.rpartition(".")
    return _Search(tuple(bases)).fits(module, name, 0)


def is_defined(class_path: str) -> bool | None:
    """Does the module define the name? None if that cannot be told without running it."""
    module, _, name = class_path.rpartition(".")
    loaded = _loaded(module)
    if loaded is not None:
        return name in vars(loaded) or (None if hasattr(loaded, "__getattr__") else False)
    source = _read(module)
    if source is None:
        inside = _inside_class(module, name)
        return None if inside is None else bool(inside.nodes)
    return name in source.names or (None if source.may_have_more else False)


def classes_in(module: str) -> list[str]:
    """The names of the classes that a module defines; none if it is not there or has no source."""
    loaded = _loaded(module)
    if loaded is not None:
        return [name for name, value in vars(loaded).items() if inspect.isclass(value) and value.__module__ == module]
    source = _read(module)
    if source is None:
        return []
    return [name for name, nodes in source.names.items() if any(isinstance(node, ast.ClassDef) for node in nodes)]


def has_module(module: str) -> bool:
    """Is there such a module?"""
    return _loaded(module) is not None or _find(module) is not None


class _Search:
    """Follows imports and bases until it meets a class that is loaded.

    Args:
        wanted: The classes of which one is to be met.
    """

    def __init__(self, wanted: tuple[type, ...]) -> None:
        self.wanted = wanted
        self.sources: dict[str, _Source | None] = {}

    def fits(self, module: str, name: str, depth: int) -> bool | None:
        if depth > _MAX_DEPTH:
            return None
        loaded = _loaded(module)
        if loaded is not None:
            return self._object_fits(loaded, name)
        if module not in self.sources:
            self.sources[module] = _read(module)
        source = self.sources[module]
        if source is None:
            inside = _inside_class(module, name)
            if inside is None or not inside.nodes:
                return None if inside is None else False
            source, nodes = inside.source, inside.nodes
        else:
            nodes = source.names.get(name, [])
        if not nodes:
            return None if source.may_have_more else False
        found = [self._node_fits(source, node, depth) for node in nodes]
        if True in found:
            return True
        # `Base.register(Other)` makes a subclass of what has no such base.
        return None if None in found or source.registers else False

    def _object_fits(self, module: ModuleType, name: str) -> bool | None:
        value = vars(module).get(name)
        if value is None:
            return None  # lazy modules make their names when they are asked
        if inspect.isclass(value):
            return issubclass(value, self.wanted)
        if isinstance(value, ModuleType):
            return False
        # A function that does not say what it returns.
        return False if inspect.isroutine(value) and "return" not in getattr(value, "__annotations__", {}) else None

    def _node_fits(self, source: _Source, node: _Definition, depth: int) -> bool | None:
        match node:
            case _Imported(module, name):
                return False if name is None else self.fits(module, name, depth + 1)
            case ast.ClassDef():
                found = [self._expression_fits(source, base, depth) for base in node.bases]
                return True if True in found else None if None in found else False
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return False if node.returns is None else self._expression_fits(source, node.returns, depth)
            case ast.Assign(targets=[ast.Name()], value=ast.Name() | ast.Attribute()):
                return self._expression_fits(source, node.value, depth)
            case ast.Assign(
                targets=[ast.Name()],
                value=ast.Constant() | ast.List() | ast.Dict() | ast.Tuple() | ast.Set() | ast.JoinedStr(),
            ):
                return False
        return None

    def _expression_fits(self, source: _Source, node: ast.expr, depth: int) -> bool | None:
        if isinstance(node, ast.Subscript):  # Base[int]
            return self._expression_fits(source, node.value, depth)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):  # -> "Net"
            return self._name_fits(source, node.value, depth)
        return (
            self._name_fits(source, ast.unparse(node), depth) if isinstance(node, (ast.Name, ast.Attribute)) else None
        )

    def _name_fits(self, source: _Source, name: str, depth: int) -> bool | None:
        first, _, rest = name.partition(".")
        nodes = source.names.get(first)
        if not rest:
            if nodes is not None:
                return self.fits(source.module, first, depth + 1)
            builtin = getattr(builtins, first, None)
            return issubclass(builtin, self.wanted) if inspect.isclass(builtin) else None
        # torch.nn.Module: the name of an imported module, and what is in it.
        match nodes:
            case [_Imported(module, None)]:
                inner, _, last = rest.rpartition(".")
                return self.fits(f"{module}.{inner}" if inner else module, last, depth + 1)
            case [_Imported(module, str(imported))]:
                inner, _, last = rest.rpartition(".")
                return self.fits(".".join(filter(None, [module, imported, inner])), last, depth + 1)
        return None


@dataclass(frozen=True)
class _Imported:
    """A name that an import binds.

    Attributes:
        module: From which, or the module itself.
        name: The name in it; None if the name stands for the module.
    """

    module: str
    name: str | None


_Definition = ast.stmt | _Imported


@dataclass
class _Source:
    """The names that a module defines.

    Attributes:
        module: Its name.
        names: Each with all its definitions.
        is_open: May it have names that cannot be seen here?
        is_folder: Is it a package? Its modules are names of it too, once they are imported.
        registers: Does it call `register` of something?
    """

    module: str
    names: dict[str, list[_Definition]] = field(default_factory=dict)
    is_open: bool = False
    is_folder: bool = False
    registers: bool = False

    @property
    def may_have_more(self) -> bool:
        """May it have names that are not in `names`?"""
        return self.is_open or self.is_folder


@dataclass(frozen=True)
class _Inside:
    """What a class of a module defines.

    Attributes:
        source: That of the module; an empty one where there is none.
        nodes: The classes inside the class that have the name.
    """

    source: _Source
    nodes: list[_Definition]


def _inside_class(module: str, name: str) -> _Inside | None:
    """What `module.name` is where `module` is no module but a class of one; None if the sources do not tell.

    Who asks Python imports all packages and modules above before hearing that there is nothing.
    """
    outer, _, owner = module.rpartition(".")
    if not outer or has_module(module) or _loaded(outer) is not None:
        return None
    if not has_module(outer):  # nobody looks deeper than into a class
        parts = outer.split(".")
        is_somewhere = any(has_module(".".join(parts[:length])) for length in range(1, len(parts)))
        return _Inside(_Source(outer), []) if is_somewhere else None
    source = _read(outer)
    if source is None:
        return None
    owners = source.names.get(owner, [])
    if not owners:
        return None if source.is_open else _Inside(source, [])
    found: list[_Definition] = []
    for node in owners:
        if not isinstance(node, ast.ClassDef):
            return None
        inner = [one for one in node.body if isinstance(one, ast.ClassDef) and one.name == name]
        if not inner and node.bases:  # it may have it from one of these
            return None
        found.extend(inner)
    return _Inside(source, found)


def _read(module: str) -> _Source | None:
    path = _find(module)
    if path is None or path.suffix != ".py":
        return None
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    source = _Source(module)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for statement in _statements(tree.body):
        for name, definition in _bound(statement, package):
            if name in ("*", "__getattr__"):
                source.is_open = True
            source.names.setdefault(name, []).append(definition)
    source.is_folder = path.name == "__init__.py"
    source.registers = any(isinstance(node, ast.Attribute) and node.attr == "register" for node in ast.walk(tree))
    return source


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module, also in its branches."""
    for statement in body:
        yield statement
        if isinstance(statement, (ast.If, ast.Try, ast.With, ast.For, ast.While)):
            for part in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, part, []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)


def _bound(statement: ast.stmt, package: str) -> Iterator[tuple[str, _Definition]]:
    """The names that a statement defines."""
    match statement:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            yield statement.name, statement
        case ast.ImportFrom():
            above = package.split(".") if statement.level else []
            origin = ".".join([*above[: len(above) - statement.level + 1], *filter(None, [statement.module])])
            for alias in statement.names:
                yield alias.asname or alias.name, _Imported(origin, alias.name)
        case ast.Import():
            for alias in statement.names:
                bound = alias.name if alias.asname else alias.name.partition(".")[0]
                yield alias.asname or bound, _Imported(bound, None)
        case _:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id, statement


def _loaded(module: str) -> ModuleType | None:
    found = sys.modules.get(module)
    return found if isinstance(found, ModuleType) else None


def _find(module: str) -> Path | None:
    """The file of a module, by the paths alone: `importlib.util.find_spec` would import the packages above it."""
    if not module or not all(part.isidentifier() for part in module.split(".")):
        return None
    folders: Any = None
    name = ""
    spec = None
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        loaded = _loaded(name)
        if loaded is not None:
            folders = getattr(loaded, "__path__", [])
            continue
        try:
            spec = importlib.machinery.PathFinder.find_spec(name, folders)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        folders = spec.submodule_search_locations or []
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
