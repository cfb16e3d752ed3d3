"""Where the number lives that is tuned: an attribute or a hyperparameter of the module or the datamodule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import MisconfigurationException


class NoSuchAttributeError(MisconfigurationException, AttributeError):
    """Neither the module, nor the datamodule, nor their hyperparameters have what is to be tuned."""


class TunedAttribute:
    """One number under one name, wherever it is kept: all the places are read and written together.

    Args:
        name: Of the attribute, as "lr", or nested, as "optimizer.lr".
        owners: The module and the datamodule; None is passed over.
    """

    def __init__(self, name: str, owners: Iterable[Any]) -> None:
        self.name = name
        *self._path, self._last = name.split(".")
        self._owners = [owner for owner in owners if owner is not None]

    @property
    def exists(self) -> bool:
        """Has anybody an attribute of that name?"""
        return next(self._holders(), None) is not None

    def read(self) -> Any:
        """Its value, in the first place that has it."""
        return _get(next(self._holders()), self._last)

    def write(self, value: Any) -> None:
        """Set it in every place that has it."""
        for holder in list(self._holders()):
            if isinstance(holder, MutableMapping):
                holder[self._last] = value
            else:
                setattr(holder, self._last, value)

    def _holders(self) -> Iterator[Any]:
        for owner in self._owners:
            for holder in (owner, getattr(owner, "hparams", None)):
                for part in self._path:
                    holder = _get(holder, part) if _has(holder, part) else None
                # Plain and nested names may lead to one place: then it is written twice, with the same value.
                if holder is not None and _has(holder, self._last):
                    yield holder


def _has(holder: Any, name: str) -> bool:
    return name in holder if isinstance(holder, Mapping) else hasattr(holder, name)


def _get(holder: Any, name: str) -> Any:
    return holder[name] if isinstance(holder, Mapping) else getattr(holder, name)


def find_attribute(names: Iterable[str], module: Any, datamodule: Any, *, call: str, argument: str) -> TunedAttribute:
    """The first of `names` that somebody has.

    Args:
        names: What to look for, in this order.
        module, datamodule: Where.
        call: What the user called, for the message.
        argument: The argument that gives another name.

    Raises:
        NoSuchAttributeError: If nobody has any of them.
    """
    found = [TunedAttribute(name, (module, datamodule)) for name in names]
    for attribute in found:
        if attribute.exists:
            return attribute
    wanted = " or ".join(repr(attribute.name) for attribute in found)
    owners = class_name(module) + (f" nor {type(datamodule).__name__}" if datamodule is not None else "")
    raise NoSuchAttributeError(
        f"{call} finds no attribute {wanted}: neither {owners}, nor their hyperparameters have it."
        " What is found would have no effect."
        f" Set self.{found[0].name} in __init__ and use it, or name another attribute with {argument}='...'."
    )
