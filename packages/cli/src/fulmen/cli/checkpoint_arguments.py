"""Hyperparameters in a checkpoint as defaults for the arguments of the model.

They are data: what would have to be built from a class path is left out, and nothing that a file names is imported.
What the user gives, on the command line or in a config, wins over them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import torch

from fulmen.cli.allowed import expected_classes
from fulmen.cli.config_files import config_files, read_config
from fulmen.cli.instantiate import CLASS_PATH_KEY, INSTANTIATOR_KEY
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.errors import CheckpointError
from fulmen.fabric.filesystem import is_dir, is_local, local_path
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.trainer.core.loading import CHECKPOINT_PAST_HPARAMS_KEYS
from fulmen.trainer.core.module import LightningModule

OPTION = "ckpt_path"
_MODEL = "model"
# Names of no file: the run finds what they stand for.
_NAMES = ("auto", "best", "last", "hpc")


@dataclass(frozen=True)
class Offered:
    """What a checkpoint offers for the arguments of the model.

    Attributes:
        path: The file.
        arguments: Its hyperparameters.
        class_path: The class that the command line built from them; None if it was fixed, or built otherwise.
    """

    path: str
    arguments: Mapping[str, Any]
    class_path: str | None


def mentions_checkpoint(arguments: Sequence[str], variables: Iterable[str] = ()) -> bool:
    """Could a checkpoint be named, among the arguments, in their config files or in environment variables?"""
    if any(OPTION in text.lower() for text in (*arguments, *variables)):
        return True
    return any(_names_checkpoint(read_config(path)) for path in config_files(arguments))


def offer(parser: Any, path: str, given: Any, *, is_fixed: bool) -> None:
    """Make the hyperparameters in a checkpoint the defaults of the arguments of the model.

    Args:
        parser: Of the subcommand that is run.
        path: The checkpoint.
        given: What the user gave for the model: arguments, or a class path with arguments; None if nothing.
        is_fixed: Is there one class of model, so that its arguments are options?

    Raises:
        CheckpointError: If the checkpoint is missing or damaged.
    """
    offered = offered_by(path)
    if offered is None:
        return
    kind: Any = type(parser)
    new_parser = functools.partial(kind, exit_on_error=False)
    if is_fixed:
        types = types_of(parser, f"{_MODEL}.")
        found = usable(offered, types, new_parser)
        parser.set_defaults({f"{_MODEL}.{name}": value for name, value in found.items()})
        _tell(offered, found, types, given)
        return
    chosen = _class_path(given) or _class_path(parser.get_defaults(skip_validation=True).get(_MODEL))
    if chosen is None:
        parser.model_of_checkpoint = offered.class_path
        return
    if offered.class_path is not None and not _is_of(chosen, offered.class_path):
        rank_zero_warn(
            f"The hyperparameters in {path!r} are not used. They are those of {offered.class_path}, and the model is"
            f" {chosen}. Name that class to use them."
        )
        return
    class_parser = new_parser()
    class_parser.add_class_arguments(_imported(chosen), fail_untyped=False)
    types = types_of(class_parser, "")
    found = usable(offered, types, new_parser)
    parser.set_defaults({_MODEL: {"class_path": chosen, "init_args": _nested(found)}})
    _tell(offered, found, types, given.get("init_args") if hasattr(given, "get") else None)


def offered_by(path: str) -> Offered | None:
    """The hyperparameters in the file, or the folder of shards, `path`.

    None if it has none that can be read without running code.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    if path in _NAMES or path.startswith("registry:"):
        return None
    checkpoint: Any
    if is_dir(path):
        checkpoint = _plain_of_shards(path)
    elif is_local(path) and os.path.isfile(local_path(path)):
        try:
            # Mapped: of a large file only this is read.
            checkpoint = torch.load(local_path(path), map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # an old format or damage: the other way says which
            checkpoint = _load(path)
    else:
        checkpoint = _load(path)
    if not isinstance(checkpoint, Mapping):
        return None
    hparams: dict[str, Any] = {}
    for key in (*CHECKPOINT_PAST_HPARAMS_KEYS, LightningModule.CHECKPOINT_HYPER_PARAMS_KEY):
        hparams.update(checkpoint.get(key) or {})
    class_path = hparams.pop(CLASS_PATH_KEY, None)
    hparams.pop(INSTANTIATOR_KEY, None)
    if not hparams and class_path is None:
        return None
    return Offered(path, hparams, class_path)


def usable(offered: Offered, types: Mapping[str, Any], new_parser: Callable[[], Any]) -> dict[str, Any]:
    """Those of the hyperparameters that can be arguments as they are: data, for arguments that take data.

    Args:
        offered: From `offered_by`.
        types: The type of each argument of the model; `conf.width` if it is one of a group.
        new_parser: Makes a parser without arguments.
    """
    flat = _flattened(offered.arguments, types)
    return {
        name: value for name, value in flat if is_data(value, types[name]) and _parses(value, types[name], new_parser)
    }


def is_data(value: Any, hint: Any) -> bool:
    """Can `value` be an argument of type `hint` without anything being built?"""
    if _describes_object(value) or _asks_for_objects(hint):
        return False
    records = expected_classes(hint) or ()
    return not records or _describes_record(value, records)


def types_of(parser: Any, prefix: str) -> dict[str, Any]:
    """The types of the arguments of `parser` below `prefix`."""
    return {
        action.dest.removeprefix(prefix): action._typehint
        for action in parser._actions
        if action.dest.startswith(prefix) and hasattr(action, "_typehint")
    }


def _class_path(given: Any) -> str | None:
    if isinstance(given, str):
        return given
    return given.get("class_path") if hasattr(given, "get") else None


def _imported(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _is_of(chosen: str, class_path: str) -> bool:
    """Are the two paths of one class? The first is the user's; of the second nothing is imported."""
    cls = _imported(chosen)
    return class_path in (chosen, f"{cls.__module__}.{cls.__qualname__}")


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """
    >>> _nested({"a": 1, "b.c": 2})
    {'a': 1, 'b': {'c': 2}}
    """
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *above, last = name.split(".")
        place = nested
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


def _tell(offered: Offered, found: Mapping[str, Any], types: Mapping[str, Any], given: Any) -> None:
    """Warn of what is otherwise than in the checkpoint."""
    flat = given.as_flat() if hasattr(given, "as_flat") else given
    explicit: Mapping[str, Any] = {} if flat is None else flat if isinstance(flat, Mapping) else vars(flat)
    others = [name for name, value in found.items() if name in explicit and explicit[name] != value]
    if others:
        told = ", ".join(f"{name}={explicit[name]!r} (it has {found[name]!r})" for name in others)
        rank_zero_warn(
            f"The model is built otherwise than that in {offered.path!r}: {told}. What is given as an argument or in a"
            " config wins over the hyperparameters of a checkpoint, and its weights may not fit. Leave it out to take"
            " them."
        )
    built = [
        name
        for name, value in _flattened(offered.arguments, types)
        if value is not None
        and not is_data(value, types[name])
        and not any(key == name or key.startswith(f"{name}.") for key in explicit)
    ]
    if built:
        rank_zero_warn(
            f"{', '.join(built)} of the model in {offered.path!r} would have to be built. A checkpoint is data, and"
            f" nothing that it names is imported or built. Give it again: --{_MODEL}.{built[0]} CLASS, or in a config."
        )


def _plain_of_shards(path: str) -> Any:
    """What is no tensor in the folder `path`; None if it holds no shards."""
    from fulmen.fabric.checkpoint_io.sharded_folder import ShardedFolder
    from fulmen.fabric.checkpoint_io.sharded_names import is_sharded

    return ShardedFolder(path).plain() if is_sharded(path) else None


def _load(path: str) -> Any:
    try:
        return TorchCheckpointIO().load_checkpoint(path)
    except CheckpointError as error:
        if "plain data" in str(error):  # its objects are not asked for; the run decides whether to trust it
            return None
        raise


def _names_checkpoint(config: Any) -> bool:
    if not isinstance(config, Mapping):
        return False
    sections = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    return any(section.get(OPTION) is not None for section in sections)


def _flattened(values: Mapping[str, Any], types: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        path = f"{above}{name}"
        if path in types:
            yield path, value
        elif isinstance(value, Mapping):
            yield from _flattened(value, types, f"{path}.")


def _parses(value: Any, hint: Any, new_parser: Callable[[], Any]) -> bool:
    if value is None:  # to jsonargparse this is no value at all
        return type(None) in get_args(hint) or not (inspect.isclass(hint) or get_args(hint))
    parser = new_parser()
    parser.add_argument("--value", type=hint)
    try:
        parser.parse_object({"value": value})
    except Exception:  # an argument that has changed since
        return False
    return True


def _asks_for_objects(hint: Any) -> bool:
    classes = expected_classes(hint)
    return classes is None or any(not _is_record(cls) for cls in classes)


def _is_record(cls: type) -> bool:
    """Is it a dataclass of data?"""
    if not dataclasses.is_dataclass(cls):
        return False
    hints = get_type_hints(cls)
    return not any(_asks_for_objects(hints[field.name]) for field in dataclasses.fields(cls))


def _describes_record(value: Any, records: Sequence[type]) -> bool:
    """Is it a dict of fields, or several? A text would be taken for a class path."""
    if isinstance(value, (list, tuple)):
        return all(_describes_record(item, records) for item in value)
    if not isinstance(value, Mapping):
        return value is None
    hints = {name: hint for record in records for name, hint in get_type_hints(record).items()}
    return all(is_data(item, hints.get(str(name), Any)) for name, item in value.items())


def _describes_object(value: Any) -> bool:
    """Does it hold a class path anywhere?"""
    if isinstance(value, Mapping):
        return "class_path" in value or any(_describes_object(item) for item in value.values())
    return isinstance(value, (list, tuple)) and any(_describes_object(item) for item in value)
