"""load_from_checkpoint: build an object again from the hyperparameters in a file, and give it its weights.

A file is data. The class is the caller's, or a subclass of it that the program has imported; nothing named in the file
is imported or called.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch

from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.printable import printable, printable_names
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.trees import AttributeDict
from fulmen.trainer.core.checkpoint_form import check_form
from fulmen.trainer.core.download import download, is_url
from fulmen.trainer.core.hparams import INSTANTIATOR_KEY
from fulmen.trainer.core.hparams_files import load_hparams_from_tags_csv, load_hparams_from_yaml
from fulmen.trainer.format_version import warn_of_newer

_T = TypeVar("_T")

# Where checkpoints of long ago keep hyperparameters.
CHECKPOINT_PAST_HPARAMS_KEYS = ("hparams", "module_arguments")

CLASS_PATH_KEY = "_class_path"


def class_only(method: _T) -> _T:
    """Above `@classmethod`: calling it on an instance, whose state it would not touch, is an error."""
    return cast(_T, _ClassOnly(cast(Any, method).__func__))


class _ClassOnly(classmethod):  # type: ignore[type-arg]  # its parameters are those of the method
    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., Any]:
        method: Callable[..., Any] = super().__get__(instance, owner)
        if instance is None:
            return method

        # Looking at it must work: tools walk the attributes of instances.
        @functools.wraps(method)
        def refuse(*args: Any, **kwargs: Any) -> Any:
            name = type(instance).__qualname__
            raise ArgumentTypeError(
                f"{method.__name__} was called on an object of {name}."
                " It builds a new object from the file, and would leave this one as it is."
                f" Call {name}.{method.__name__}(...) and take what it returns."
            )

        return refuse


def read_checkpoint(
    cls: type[Any],
    checkpoint_path: str | Path | IO[bytes],
    map_location: Any,
    hparams_file: str | Path | None,
    weights_only: bool | None,
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """The checkpoint as a dict, whose hyperparameters are those to build `cls` with.

    Args:
        cls: Says under which key they lie.
        checkpoint_path: A path, local or remote, a URL, or a file opened for reading.
        map_location: As for `torch.load`; None: where the tensors were, if this machine has that device, else CPU.
        hparams_file: YAML or CSV with hyperparameters to use in place of those in the file.
        weights_only: None: True. False runs code from the file: only for files you trust.
        overrides: What the caller passes as keywords.

    Raises:
        ConfigurationError: If `hparams_file` is neither YAML nor CSV.
        CheckpointNotFoundError, CheckpointDamagedError: If the file is missing or cut short.
    """
    outside = _read_hparams_file(hparams_file)
    location: Any = _device_if_there if map_location is None else map_location
    trusted = weights_only is False
    checkpoint: dict[str, Any]
    if isinstance(checkpoint_path, str) and is_url(checkpoint_path):
        checkpoint_path = download(checkpoint_path)
    if isinstance(checkpoint_path, (str, Path)):
        checkpoint = TorchCheckpointIO().load_checkpoint(
            checkpoint_path, map_location=location, weights_only=not trusted
        )
    else:
        checkpoint = torch.load(checkpoint_path, map_location=location, weights_only=not trusted)
    key = cls.CHECKPOINT_HYPER_PARAMS_KEY
    name_key = getattr(cls, "CHECKPOINT_HYPER_PARAMS_NAME", None)
    check_form(checkpoint, repr(checkpoint_path), (*CHECKPOINT_PAST_HPARAMS_KEYS, key), name_key)
    warn_of_newer(checkpoint)
    hparams: dict[str, Any] = {}
    for past in (*CHECKPOINT_PAST_HPARAMS_KEYS, key):
        hparams.update(checkpoint.get(past) or {})
    if outside is not None:
        hparams = outside
    checkpoint[key] = {**hparams, **overrides}
    return checkpoint


def build(cls: type[_T], checkpoint: Mapping[str, Any], overrides: Mapping[str, Any]) -> _T:
    """An object of `cls`, or of the subclass that the checkpoint names, from the hyperparameters in `checkpoint`.

    Raises:
        ArgumentTypeError: If an argument of `__init__` is neither in the file nor among `overrides`.
        ConfigurationError: If an argument is a description of an object, or the named class is not imported.
    """
    keys: Any = cls
    hparams = dict(checkpoint[keys.CHECKPOINT_HYPER_PARAMS_KEY])
    by_command_line = hparams.pop(INSTANTIATOR_KEY, None) is not None
    cls = _named_subclass(cls, hparams.pop(CLASS_PATH_KEY, None))
    parameters = inspect.signature(cls).parameters
    name = checkpoint.get(keys.CHECKPOINT_HYPER_PARAMS_NAME) or ""
    if name in parameters and name not in overrides and parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
        # save_hyperparameters(conf): all of them are one argument; a keyword that is no argument changes an item.
        given = {key: value for key, value in overrides.items() if key in parameters}
        items = {key: value for key, value in hparams.items() if key not in given}
        arguments: dict[str, Any] = {name: AttributeDict(items), **given}
    else:
        arguments = {**hparams, **overrides}
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        arguments = {key: value for key, value in arguments.items() if key in parameters}
    _check_arguments(cls, arguments, parameters, overrides, by_command_line)
    return cls(**arguments)


def load_weights(module: Any, checkpoint: dict[str, Any], strict: bool | None) -> None:
    """Gives a newly built module what `checkpoint` holds, and moves it to where the weights are.

    Args:
        module: A LightningModule.
        checkpoint: From `read_checkpoint`.
        strict: Must names of weights agree? None: as the module's `strict_loading` says.

    Raises:
        ConfigurationError: If `strict` contradicts the module's own `strict_loading`.
    """
    declared = module._strict_loading
    if strict is not None and declared is not None and strict is not declared:
        raise ConfigurationError(
            f"load_from_checkpoint(strict={strict}) contradicts {type(module).__qualname__}.strict_loading={declared}."
            " Only one of them can decide whether missing weights are an error."
            " Leave strict out, or change strict_loading in the module."
        )
    strict = module.strict_loading if strict is None else strict
    # Layers that are made in configure_model must be there before their weights come.
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    state_dict = checkpoint.get("state_dict") or {}
    if not state_dict:
        rank_zero_warn(
            f"The checkpoint holds no weights for {type(module).__qualname__}. The module is as __init__ made it."
            " Check that this is the file you meant."
        )
    with printable_names(state_dict):
        differences = module.load_state_dict(state_dict, strict=strict)
    if differences.missing_keys or differences.unexpected_keys:
        rank_zero_warn(
            f"Loaded {type(module).__qualname__} with strict=False: missing in the file are"
            f" {list(differences.missing_keys)}, unknown to the module {list(differences.unexpected_keys)}."
            " What is missing is as __init__ made it. Pass strict=True to make this an error."
        )
    device = next((value.device for value in state_dict.values() if isinstance(value, torch.Tensor)), None)
    if device is not None:
        module.to(device)


def _read_hparams_file(hparams_file: str | Path | None) -> dict[str, Any] | None:
    if hparams_file is None:
        return None
    match str(hparams_file).rpartition(".")[2].lower():
        case "csv":
            return load_hparams_from_tags_csv(hparams_file)
        case "yml" | "yaml":
            return load_hparams_from_yaml(hparams_file)
    raise ConfigurationError(
        f"load_from_checkpoint(hparams_file={str(hparams_file)!r}) ends in no known extension."
        " Hyperparameters are read from YAML or CSV. Pass a file that ends in .yaml, .yml or .csv."
    )


def _device_if_there(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
    """For `torch.load`: None leaves a tensor where it was saved, the storage itself is on the CPU."""
    kind, _, index = location.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        return storage
    if kind == "mps" and not torch.backends.mps.is_available():
        return storage
    return None if kind in ("cpu", "cuda", "mps", "meta") else storage


def _named_subclass(cls: type[_T], class_path: str | None) -> type[_T]:
    """The class that a command line stored, if it is `cls` or a subclass that is imported; `cls` if none is stored."""
    if class_path is None:
        return cls
    for candidate in _with_subclasses(cls):
        if f"{candidate.__module__}.{candidate.__qualname__}" == class_path:
            return candidate
    same_name = [found for found in _with_subclasses(cls) if found.__qualname__ == class_path.rpartition(".")[2]]
    if len(same_name) == 1:  # a class path may go through a package that re-exports the class
        return same_name[0]
    raise ConfigurationError(
        f"{cls.__qualname__}.load_from_checkpoint found a checkpoint of {class_path!r}."
        f" That is neither {cls.__qualname__} nor a subclass that this program has imported, and loading imports"
        " nothing by a name in a file. Import the class, and call its load_from_checkpoint."
    )


def _with_subclasses(cls: type[_T]) -> Iterator[type[_T]]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from _with_subclasses(subclass)


def _check_arguments(
    cls: type[Any],
    arguments: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter],
    overrides: Mapping[str, Any],
    by_command_line: bool,
) -> None:
    name = cls.__qualname__
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and key not in arguments
    ]
    if missing:
        given = ", ".join(f"{key}=..." for key in missing)
        raise ArgumentTypeError(
            f"{name}.load_from_checkpoint lacks a value for {', '.join(map(repr, missing))}."
            f" {name}.__init__ needs it, and it is not among the hyperparameters in the file."
            f" Pass {given}, or call self.save_hyperparameters() in __init__ before training."
        )
    described = [key for key, value in arguments.items() if key not in overrides and _describes_object(value)]
    if by_command_line and described:
        given = ", ".join(f"{printable(key)}=..." for key in described)
        raise ConfigurationError(
            f"{name}.load_from_checkpoint finds for {', '.join(map(repr, described))} only a class path."
            " The command line built that object, and loading runs nothing by a name in a file."
            f" Build it, and pass {given}."
        )


def _describes_object(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and "class_path" in value
        and set(value) <= {"class_path", "init_args", "dict_kwargs"}
    )
