"""Text from files, such that it steers no terminal and feigns no lines when it is printed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def printable(text: str) -> str:
    r"""`text`, with what is no visible character written out; what is written out already stays.

    >>> print(printable("layer\x1b[31m\nbias"))
    layer\x1b[31m\nbias
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


@contextmanager
def printable_names(names: Iterable[object]) -> Iterator[None]:
    """Inside, torch loads what has these names; what it says of them, with a RuntimeError, is made printable."""
    try:
        yield
    except RuntimeError as error:
        # The longest first: one may be in another.
        strange = sorted((name for name in names if isinstance(name, str) and not name.isprintable()), key=len)
        text = str(error)
        for name in reversed(strange):
            text = text.replace(name, printable(name))
        if text == str(error):
            raise
        raise RuntimeError(text) from None  # Python would print the other one, too
