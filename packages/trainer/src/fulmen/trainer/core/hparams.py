"""save_hyperparameters: the arguments an object was built with, kept to build it again."""

import copy
import pickle
from argparse import Namespace
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from pathlib import PurePath
from types import FrameType
from typing import Any, ClassVar

import torch

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_warn, warn_once
from fulmen.fabric.trees import AttributeDict
from fulmen.trainer.core.init_args import init_arguments

INSTANTIATOR_KEY = "_instantiator"


class HyperparametersMixin:
    """Hyperparameters of a module or datamodule; they travel in checkpoints and to loggers."""

    CHECKPOINT_HYPER_PARAMS_KEY: ClassVar[str] = "hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME: ClassVar[str] = "hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE: ClassVar[str] = "hparams_type"

    # Class attributes, so that reading them works before any __init__ has run.
    _hparams: "AttributeDict | MutableMapping[str, Any] | None" = None
    _hparams_initial: AttributeDict | None = None
    _hparams_name: str | None = None
    _log_hyperparams: bool = False

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keeps arguments of `__init__` as `self.hparams`; to be called inside `__init__`.

        Args:
            args: Names of the arguments to keep, or one dict or Namespace with all of them. Nothing: all arguments.
            ignore: Names to leave out.
            frame: The frame of `__init__`; found by itself.
            logger: Send them to the loggers when a run begins?

        Raises:
            ConfigurationError: If a name is no argument of `__init__`, or a plain value is given in place of a dict.
        """
        save_hyperparameters(self, *args, ignore=ignore, frame=frame)
        self._log_hyperparams = logger

    @property
    def logs_hparams(self) -> bool:
        """Shall the run hand the hyperparameters to its loggers?"""
        return self._log_hyperparams

    @property
    def hparams(self) -> Any:
        """What was saved: an `AttributeDict`, or the mapping that was given; changes to it are kept in checkpoints."""
        if self._hparams is None:
            self._hparams = AttributeDict()
        return self._hparams

    @property
    def hparams_initial(self) -> AttributeDict:
        """What was saved, as it was then; a copy."""
        return AttributeDict() if self._hparams_initial is None else _snapshot(self._hparams_initial)

    def remove_ignored_hparams(self, ignore_list: list[str]) -> None:
        """Takes the names in `ignore_list` out of what was saved."""
        for kept in (self._hparams, self._hparams_initial):
            for name in ignore_list:
                if kept is not None:
                    kept.pop(name, None)

    def _set_hparams(self, hparams: Any) -> None:
        """Adds to what was saved; a mapping of another kind than a dict takes its place."""
        new = as_hparams(hparams)
        if isinstance(new, dict) and isinstance(self.hparams, dict):
            self.hparams.update(new)
        else:
            self._hparams = new


def save_hyperparameters(
    obj: Any,
    *args: Any,
    ignore: Sequence[str] | str | None = None,
    frame: FrameType | None = None,
    given_hparams: dict[str, Any] | None = None,
) -> None:
    """Keeps arguments of the running `__init__` of `obj`; see `HyperparametersMixin.save_hyperparameters`.

    Args:
        obj: Has `HyperparametersMixin`.
        args: Names, or one dict or Namespace.
        ignore: Names to leave out.
        frame: Where to begin to look for `__init__`.
        given_hparams: The arguments, where the caller knows them better than the stack does.
    """
    if len(args) == 1 and not isinstance(args[0], str) and _is_empty(args[0]):
        return
    ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
    if given_hparams is None:
        given_hparams = _given_for(obj)
    arguments = init_arguments(obj, frame)
    if given_hparams is not None:
        arguments = {**arguments, **given_hparams} if args else given_hparams
    hparams, name = _select(obj, args, arguments)
    if ignored:
        hparams = {key: value for key, value in _as_mapping(hparams).items() if key not in ignored}
    obj._hparams_name = name if hparams else None
    obj._set_hparams(hparams)
    _warn_about_modules(obj.hparams)
    obj._hparams_initial = _snapshot(obj.hparams)


def _select(obj: Any, args: tuple[Any, ...], arguments: dict[str, Any]) -> tuple[Any, str | None]:
    """The hyperparameters that `args` ask for, and the name under which `__init__` takes them ("kwargs": each)."""
    if not args:
        return arguments, "kwargs"
    names = [arg for arg in args if isinstance(arg, str)]
    containers = [arg for arg in args if not isinstance(arg, str)]
    unknown = [name for name in names if name not in arguments]
    if unknown:
        raise ConfigurationError(
            f"save_hyperparameters({', '.join(map(repr, names))}) in {type(obj).__qualname__} names {unknown[0]!r}."
            f" Only arguments of __init__ can be saved by name, and those are {sorted(arguments)}."
            " Correct the name, or call save_hyperparameters inside __init__."
        )
    named = {name: arguments[name] for name in names}
    if not containers:
        return named, "kwargs"
    if len(containers) > 1:
        raise ConfigurationError(
            f"save_hyperparameters got {len(containers)} objects in {type(obj).__qualname__}."
            " Their keys would lie in one dict, and nothing could tell which of them belongs to which."
            " Pass one dict or Namespace, or the names of the arguments."
        )
    container = as_hparams(containers[0])
    name = next((key for key, value in arguments.items() if value is containers[0]), None)
    if named:
        container = AttributeDict({**container, **named})
    return container, name


def as_hparams(hparams: Any) -> "AttributeDict | MutableMapping[str, Any]":
    """A dict or Namespace as `AttributeDict`; any other mapping as it is.

    Raises:
        ConfigurationError: For anything else.
    """
    if isinstance(hparams, Namespace):
        return AttributeDict(vars(hparams))
    if isinstance(hparams, dict):
        return hparams if isinstance(hparams, AttributeDict) else AttributeDict(hparams)
    if isinstance(hparams, MutableMapping):
        return hparams
    raise ConfigurationError(
        f"save_hyperparameters({hparams!r}) got a {type(hparams).__name__}."
        " Hyperparameters have names, and a plain value has none."
        " Pass a dict, a Namespace, or the names of arguments of __init__ as strings."
    )


# What a command line built an object from: (arguments, class or None for any).
_given: ContextVar[tuple[dict[str, Any], type | None] | None] = ContextVar("given_hyperparameters", default=None)


@contextmanager
def given_hyperparameters(
    hparams: Mapping[str, Any], instantiator: str | None = None, cls: type | None = None
) -> Iterator[None]:
    """Inside, `save_hyperparameters` takes `hparams` for the arguments of `__init__`.

    A command line knows them as the user wrote them, before they became objects.

    Args:
        hparams: Plain data.
        instantiator: Kept with them: who can build the object from such data.
        cls: Only for objects of exactly this class; None: of any.
    """
    given = dict(hparams) if instantiator is None else {**hparams, INSTANTIATOR_KEY: instantiator}
    token = _given.set((given, cls))
    try:
        yield
    finally:
        _given.reset(token)


def _given_for(obj: object) -> dict[str, Any] | None:
    given = _given.get()
    if given is None or (given[1] is not None and type(obj) is not given[1]):
        return None
    return dict(given[0])


def hyperparameter_entries(obj: HyperparametersMixin) -> dict[str, Any]:
    """What of `obj` goes into a checkpoint: the name and the values; nothing if nothing was saved.

    Values that a file cannot hold without code are left out, with a warning: the file would not load.
    """
    if not obj.hparams:
        return {}
    return {
        obj.CHECKPOINT_HYPER_PARAMS_NAME: obj._hparams_name,
        obj.CHECKPOINT_HYPER_PARAMS_KEY: loadable_hparams(obj.hparams, owner=type(obj).__qualname__),
    }


def loadable_hparams(hparams: Mapping[str, Any], owner: str = "The module") -> dict[str, Any]:
    """`hparams` as data that loads without running code; what is no data is left out, with a warning.

    Paths become strings, and enums of strings or numbers their value.
    """
    dropped: list[str] = []
    plain = {str(key): _loadable(value, str(key), dropped) for key, value in hparams.items()}
    for key in dropped:
        warn_once(
            f"The hyperparameter {key!r} of {owner} is left out of checkpoints. Its value is an object, and loading it"
            f" would run code from the file. Pass it to load_from_checkpoint as a keyword, and ignore it with"
            f" save_hyperparameters(ignore=[{key!r}])."
        )
    return {key: value for key, value in plain.items() if value is not _DROPPED}


_DROPPED: Any = object()
_SCALARS = (str, int, float, complex, bool, bytes, type(None))
_TORCH_DATA = (torch.Tensor, torch.dtype, torch.device, torch.Size, torch.layout)


def _loadable(value: Any, key: str, dropped: list[str]) -> Any:
    kind = type(value)
    if kind in _SCALARS or kind in _TORCH_DATA or kind is torch.nn.Parameter:
        return value
    if isinstance(value, Enum) and isinstance(value.value, (str, int, float)) and isinstance(value, (str, int, float)):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        items = {name: _loadable(item, f"{key}.{name}", dropped) for name, item in value.items()}
        return {name: item for name, item in items.items() if item is not _DROPPED}
    if kind in (list, tuple, set):
        items_ = [_loadable(item, f"{key}[{index}]", dropped) for index, item in enumerate(value)]
        return kind(item for item in items_ if item is not _DROPPED)
    if kind.__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    if kind in torch.serialization.get_safe_globals():
        return value
    dropped.append(key)
    return _DROPPED


def clean_namespace(hparams: MutableMapping[str, Any]) -> None:
    """Removes from `hparams`, with a warning, what cannot be pickled."""
    for key in [key for key, value in hparams.items() if not is_picklable(value)]:
        rank_zero_warn(
            f"The hyperparameter {key!r} was removed. Its value cannot be pickled, so no other process and no file"
            f" could take it. Leave it out with save_hyperparameters(ignore=[{key!r}])."
        )
        del hparams[key]


def is_picklable(obj: object) -> bool:
    """Can `obj` be pickled?"""
    try:
        pickle.dumps(obj)
    except (pickle.PicklingError, AttributeError, RuntimeError, TypeError):
        return False
    return True


def lightning_hasattr(model: Any, attribute: str) -> bool:
    """Does the module, its hyperparameters, or its datamodule have `attribute`?"""
    return bool(_holders(model, attribute))


def lightning_getattr(model: Any, attribute: str) -> Any:
    """The value of `attribute` in the module, its hyperparameters, or its datamodule: the last of them that has it.

    Raises:
        AttributeError: If none of them has it.
    """
    holder = _known_holders(model, attribute)[-1]
    return holder[attribute] if isinstance(holder, Mapping) else getattr(holder, attribute)


def lightning_setattr(model: Any, attribute: str, value: Any) -> None:
    """Sets `attribute` wherever `lightning_getattr` could find it.

    Raises:
        AttributeError: If nobody has it.
    """
    for holder in _known_holders(model, attribute):
        if isinstance(holder, MutableMapping):
            holder[attribute] = value
        else:
            setattr(holder, attribute, value)


def _holders(model: Any, attribute: str) -> list[Any]:
    datamodule = getattr(getattr(model, "_trainer", None), "datamodule", None)
    found: list[Any] = []
    for owner in (model, datamodule):
        if owner is None:
            continue
        if hasattr(owner, attribute):
            found.append(owner)
        hparams = getattr(owner, "hparams", None)
        named = vars(hparams) if isinstance(hparams, Namespace) else hparams
        if isinstance(named, Mapping) and attribute in named:
            found.append(hparams)
    return found


def _known_holders(model: Any, attribute: str) -> list[Any]:
    found = _holders(model, attribute)
    if not found:
        raise AttributeError(
            f"{attribute!r} is found neither in {type(model).__qualname__}, nor in its hyperparameters, nor in its"
            f" datamodule. It must be there to be read or changed. Set self.{attribute} in __init__, or save it with"
            " save_hyperparameters()."
        )
    return found


def _is_empty(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple, set, type(None))) and not value


def _as_mapping(hparams: Any) -> Mapping[str, Any]:
    return vars(hparams) if isinstance(hparams, Namespace) else hparams


def _snapshot(value: Any) -> Any:
    """A copy of the containers; what they hold is shared, for a copy of a model or a dataset could be large."""
    if type(value) in (dict, AttributeDict):
        return type(value)({key: _snapshot(item) for key, item in value.items()})
    if type(value) in (list, tuple):
        return type(value)(_snapshot(item) for item in value)
    if isinstance(value, (Namespace, set)):
        return copy.copy(value)
    if isinstance(value, MutableMapping):
        return AttributeDict(value)
    return value


def _warn_about_modules(hparams: Mapping[str, Any]) -> None:
    for key, value in hparams.items():
        if isinstance(value, torch.nn.Module):
            rank_zero_warn(
                f"The hyperparameter {key!r} is a torch.nn.Module. Its weights are in the checkpoint anyway, and a"
                f" module is no plain data. Leave it out with save_hyperparameters(ignore=[{key!r}])."
            )
