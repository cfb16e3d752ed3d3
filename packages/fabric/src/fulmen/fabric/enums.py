"""Enums of texts that may be written in any case."""

from __future__ import annotations

from enum import Enum
from typing import Literal, TypeVar

E = TypeVar("E", bound="LightningEnum")


class LightningEnum(str, Enum):  # noqa: UP042  # `str()` of a member gives its name, as users know it
    """A text of a fixed set. Two are equal, and a member equals a text, whatever the case of their letters.

    >>> class Mode(LightningEnum):
    ...     LOW = "min"
    >>> Mode.from_str("MIN", source="value") is Mode.LOW
    True
    """

    @classmethod
    def from_str(cls: type[E], value: str, source: Literal["key", "value", "any"] = "key") -> E:
        """The member of this name (`source="key"`), of this value, or of either.

        Raises:
            ValueError: If there is none; lists what there is.
        """
        found = cls.try_from_str(value, source)
        if found is None:
            known = [member.name if source == "key" else member.value for member in cls]
            raise ValueError(
                f"{cls.__name__}.from_str({value!r}, source={source!r}) finds nothing. There are only a few."
                f" Pass one of {', '.join(map(repr, known))}."
            )
        return found

    @classmethod
    def try_from_str(cls: type[E], value: str, source: Literal["key", "value", "any"] = "key") -> E | None:
        """As `from_str`; None if there is no such member."""
        wanted = value.lower()
        for member in cls:
            if source in ("key", "any") and member.name.lower() == wanted:
                return member
            if source in ("value", "any") and member.value.lower() == wanted:
                return member
        return None

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Enum):
            other = other.value
        return isinstance(other, str) and self.value.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.value.lower())
