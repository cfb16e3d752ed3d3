"""A config to objects."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.core.hparams import INSTANTIATOR_KEY as INSTANTIATOR_KEY
from fulmen.trainer.core.hparams import given_hyperparameters

ModuleT = TypeVar("ModuleT")

CLASS_PATH_KEY = "_class_path"
# Stored with hyperparameters: what can build the object from them.
INSTANTIATOR = "fulmen.cli.instantiate_module"


def instantiate_class(args: Any, init: Mapping[str, Any]) -> Any:
    """An object of `init["class_path"]`.

    Args:
        args: Its positional argument, or a tuple of several.
        init: `{"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}`.

    Raises:
        ConfigurationError: If there is no such class.
    """
    keywords = dict(init.get("init_args") or {})
    positional = args if isinstance(args, tuple) else (args,)
    module_path, _, name = init["class_path"].rpartition(".")
    found = getattr(importlib.import_module(module_path), name, None) if module_path else None
    if found is None:
        raise ConfigurationError(
            f"instantiate_class(class_path={init['class_path']!r}) finds no such class. A class path is the name of a"
            " module, a dot, and the name of the class. Write for example 'torch.optim.SGD'."
        )
    return found(*positional, **keywords)


class HyperparametersGiver:
    """Builds a module so that its `save_hyperparameters` keeps what the user wrote, and not the objects made of it.

    Args:
        written: The section of the config as plain data: arguments, or a class path with arguments.
    """

    def __init__(self, written: Any) -> None:
        self.written = written

    def __call__(self, class_type: type[ModuleT], *args: Any, **kwargs: Any) -> ModuleT:
        """The object of `class_type`."""
        written = dict(self.written or {})
        if "class_path" in written:
            hparams = {
                CLASS_PATH_KEY: written["class_path"],
                **(written.get("init_args") or {}),
                **(written.get("dict_kwargs") or {}),
            }
        else:
            hparams = written
        # What a link computed from other objects is written nowhere.
        hparams = {**hparams, **{key: value for key, value in kwargs.items() if key not in hparams}}
        with given_hyperparameters(hparams, INSTANTIATOR, class_type):
            return class_type(*args, **kwargs)
