"""Registry[T]: names to things, with a description and preset arguments; the one kind of registry here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

from fulmen.fabric.errors import ConfigurationError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One registered name: `value`, usually a class, and the arguments that the name presets for it."""

    name: str
    value: T
    description: str = ""
    preset: Mapping[str, Any] = field(default_factory=dict)


class Registry(Generic[T]):
    """Names in the order in which they were registered.

    Args:
        kind: What the names stand for ("strategy"), as users write the argument: it is quoted in errors.
    """

    def __init__(self, kind: str = "name") -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T] | None] = {}  # None: expected, and not asked for yet
        self._expected: dict[str, Callable[[Registry[T]], object]] = {}

    @overload
    def register(self, name: str, value: T, description: str = "", *, override: bool = False, **preset: Any) -> T: ...

    @overload
    def register(
        self, name: str, value: None = None, description: str = "", *, override: bool = False, **preset: Any
    ) -> Callable[[T], T]: ...

    def register(
        self, name: str, value: T | None = None, description: str = "", *, override: bool = False, **preset: Any
    ) -> T | Callable[[T], T]:
        """Register `value` under `name`; without a value, return a decorator that does.

        The value may also be given by the kind of the registry: `register("abacus", accelerator=Abacus)`.

        Raises:
            ConfigurationError: If the name is empty or no string, or is taken and `override` is not given.
        """
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                f"register({name!r}, ...) gives no usable name for the {self.kind}. Names are non-empty strings."
                " Pass one as the first argument."
            )
        if name in self._entries and not override:
            raise ConfigurationError(
                f"register({name!r}, ...) names a {self.kind} that is registered already."
                f" It stands for {self[name].value!r}. Choose another name, or pass override=True."
            )
        if value is None:
            value = preset.pop(self.kind, None)
        if value is None:

            def decorate(value: T) -> T:
                return self.register(name, value, description, override=override, **preset)

            return decorate
        self._expected.pop(name, None)
        self._entries[name] = Entry(name, value, description, preset)
        return value

    def expect(self, names: Sequence[str], register: Callable[[Registry[T]], object]) -> None:
        """Know these names from now on, and what they stand for when one of them is asked for.

        So that a class is imported where it is used, and only there.

        Args:
            names: All names that `register` will register.
            register: Called once at most, with a registry.

        Raises:
            ConfigurationError: If a name is taken.
        """
        if taken := [name for name in names if name in self]:
            raise ConfigurationError(
                f"expect({taken!r}, ...) names a {self.kind} that is registered already."
                f" It stands for {self[taken[0]].value!r}. Choose another name, or remove that one first."
            )
        self._entries.update(dict.fromkeys(names))
        self._expected.update(dict.fromkeys(names, register))

    def get(self, name: str) -> T:
        """The value registered under `name`; raises as `registry[name]` does."""
        return self[name].value

    def names(self) -> list[str]:
        """All names, in the order of registration."""
        return list(self._entries)

    def remove(self, name: str) -> None:
        """Forget `name`; raises as `registry[name]` does."""
        del self._entries[self[name].name]

    def __getitem__(self, name: str) -> Entry[T]:
        """The entry of `name`.

        Raises:
            ConfigurationError: If there is none; lists the nearest names and all names.
        """
        if name in self:
            entry = self._entries[name]
            return self._expectation_met(name) if entry is None else entry
        near = difflib.get_close_matches(str(name), self._entries, n=3)
        known = ", ".join(map(repr, self._entries)) or "none"
        advice = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Pass one of these names."
        raise ConfigurationError(f"{self.kind}={name!r} is not a registered name. Registered names: {known}. {advice}")

    def _expectation_met(self, name: str) -> Entry[T]:
        register = self._expected[name]
        found: Registry[T] = Registry(self.kind)
        register(found)
        # Some of these names may have been overridden or removed meanwhile.
        for other in [other for other, its in self._expected.items() if its is register]:
            self._entries[other] = found[other]
            del self._expected[other]
        return found[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}: {', '.join(self._entries)})"
