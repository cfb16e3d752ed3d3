"""A module before `super().__init__()`: what stands where its parameters, buffers and layers will be."""

from typing import Any, NoReturn

from fulmen.fabric.errors import MisconfigurationException

# Where `torch.nn.Module` keeps what is assigned to it; its __init__ puts empty ones there.
_PLACES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class _NotYet(dict[str, Any]):
    """Holds nothing, and refuses to."""

    def __init__(self, owner: type) -> None:
        super().__init__()
        self.owner = owner

    def __setitem__(self, name: str, value: object) -> NoReturn:
        owner = self.owner.__qualname__
        raise MisconfigurationException(
            f"{owner}.__init__ assigned self.{name} = {type(value).__name__}(...) before it called super().__init__()."
            " There is no place yet where a module keeps its layers, parameters and buffers."
            f" Call super().__init__() first in {owner}.__init__."
        )


def expect_init(module: object) -> None:
    """Let an object of a module class that was just made, and not yet initialised, name a forgotten `__init__`."""
    module.__dict__.update(dict.fromkeys(_PLACES, _NotYet(type(module))))


def was_initialised(module: object) -> bool:
    """Did the module's `__init__` call the one of `torch.nn.Module`?"""
    return not isinstance(module.__dict__.get("_modules", _NotYet(type(module))), _NotYet)
