"""Hyperparameters as YAML and CSV files.

What is written is plain YAML that any safe loader reads, and reading runs no code: Python tags in files written by
others come back as the data or the name in them.
"""

import ast
import csv
import io
from argparse import Namespace
from collections.abc import Mapping, MutableMapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import torch

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.filesystem import atomic_open, exists, get_filesystem, is_local, local_path
from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.rank_zero import rank_zero_warn, warn_once
from fulmen.trainer.core.checkpoint_form import MOST_VALUES, num_values

_PYTHON_TAG = "tag:yaml.org,2002:python/"


def save_hparams_to_yaml(
    config_yaml: str | Path, hparams: dict[str, Any] | Namespace, use_omegaconf: bool = True
) -> None:
    """Writes hyperparameters as YAML; what YAML has no word for is written as its name, with a warning.

    Args:
        config_yaml: The file; it appears whole, and its folder is made.
        hparams: Names and values.
        use_omegaconf: Resolve interpolations of an omegaconf container?
    """
    import yaml

    plain = _plain_dict(hparams, use_omegaconf)
    # Sorted, as people compare such files line by line; keys of several types have no order.
    text = yaml.safe_dump(plain, sort_keys=all(isinstance(key, str) for key in plain)) if plain else "{}\n"
    with atomic_open(config_yaml, "w") as file:
        file.write(text)


def load_hparams_from_yaml(config_yaml: str | Path, use_omegaconf: bool = True) -> dict[str, Any]:
    """Reads hyperparameters from YAML; nothing, with a warning, if there is no such file.

    Args:
        config_yaml: The file.
        use_omegaconf: Give back an omegaconf container, if that package is installed?

    Raises:
        ConfigurationError: If the file is no YAML, or holds no mapping.
    """
    if not _found(config_yaml):
        return {}
    import yaml

    try:
        hparams = yaml.load(_read(config_yaml), Loader=_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the others: a number or a nest beyond all bounds
        raise ConfigurationError(
            f"{str(config_yaml)!r} cannot be read as YAML. {str(error).rstrip('.')}."
            " Correct the file, or pass the hyperparameters as keywords."
        ) from error
    if hparams is None:
        return {}
    if not isinstance(hparams, dict):
        raise ConfigurationError(
            f"{str(config_yaml)!r} holds a {type(hparams).__name__}."
            " Hyperparameters have names, so the file must hold a mapping. Write it as lines of `name: value`."
        )
    if num_values(hparams) > MOST_VALUES:
        raise ConfigurationError(
            f"{str(config_yaml)!r} names the same values over and over, by anchors, without end."
            " Nobody could walk through them. Write the hyperparameters out, or pass them as keywords."
        )
    if use_omegaconf and is_installed("omegaconf"):
        from omegaconf import OmegaConf

        container: dict[str, Any] = OmegaConf.create(hparams)
        return container
    return hparams


def save_hparams_to_tags_csv(tags_csv: str | Path, hparams: dict[str, Any] | Namespace) -> None:
    """Writes hyperparameters as CSV with the columns key and value."""
    named = vars(hparams) if isinstance(hparams, Namespace) else hparams
    with atomic_open(tags_csv, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "value"])
        # As text, for the csv module would write None as nothing.
        writer.writerows((key, str(value)) for key, value in named.items())


def load_hparams_from_tags_csv(tags_csv: str | Path) -> dict[str, Any]:
    """Reads hyperparameters from CSV; nothing, with a warning, if there is no such file.

    Raises:
        ConfigurationError: If the columns key and value are not there.
    """
    if not _found(tags_csv):
        return {}
    rows = csv.DictReader(io.StringIO(_read(tags_csv), newline=""))
    if not {"key", "value"} <= set(rows.fieldnames or ()):
        raise ConfigurationError(
            f"{str(tags_csv)!r} has the columns {list(rows.fieldnames or ())}."
            " Hyperparameters are read from the columns 'key' and 'value'. Name them so in the first line."
        )
    return {row["key"]: convert(row["value"]) for row in rows}


def convert(val: str) -> Any:
    """The Python literal that `val` spells, or `val` itself.

    >>> convert("0.5"), convert("[1, 2]"), convert("adam")
    (0.5, [1, 2], 'adam')
    """
    try:
        return ast.literal_eval(val)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return val


def update_hparams(hparams: dict[str, Any], updates: dict[str, Any]) -> None:
    """Lays `updates` over `hparams`, in place; dicts inside dicts are laid over each other."""
    for key, value in updates.items():
        if isinstance(value, dict) and isinstance(hparams.get(key), MutableMapping):
            update_hparams(hparams[key], value)
        else:
            hparams[key] = value


def _plain_dict(hparams: Any, use_omegaconf: bool) -> dict[Any, Any]:
    if use_omegaconf and type(hparams).__module__.startswith("omegaconf."):
        from omegaconf import OmegaConf

        hparams = OmegaConf.to_container(hparams, resolve=True)
    if isinstance(hparams, Namespace):
        hparams = vars(hparams)
    if not isinstance(hparams, Mapping):
        raise ConfigurationError(
            f"hparams={hparams!r} is a {type(hparams).__name__}."
            " Hyperparameters have names, and a plain value has none. Pass a dict or a Namespace."
        )
    return {_plain_key(key): _plain(value, str(key)) for key, value in hparams.items()}


def _plain_key(key: Any) -> Any:
    return key if type(key) in (str, int, float, bool) else str(key)


def _plain(value: Any, name: str) -> Any:
    """`value` in YAML's own types."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, (str, PurePath, torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, bool | int | float):
        return float(value) if isinstance(value, float) else int(value)
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, name) for item in value]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "tolist") and getattr(value, "ndim", None) == 0:
        return _plain(value.tolist(), name)  # a scalar of torch or numpy
    warn_once(
        f"The hyperparameter {name!r} is written to YAML as {type(value).__qualname__!r} only. YAML has no plain form"
        f" for such an object. Leave it out with save_hyperparameters(ignore=[{name.split('.')[0]!r}])."
    )
    return type(value).__qualname__


def _loader() -> Any:
    """A safe loader that takes Python tags for the data in them."""
    import yaml

    class PlainLoader(yaml.SafeLoader):
        pass

    def construct(loader: Any, suffix: str, node: Any) -> Any:
        if isinstance(node, yaml.SequenceNode):
            items = loader.construct_sequence(node, deep=True)
            return tuple(items) if suffix == "tuple" else items
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        # "!!python/name:torch.nn.ReLU ''": the name is in the tag.
        return loader.construct_scalar(node) or suffix.partition(":")[2]

    PlainLoader.add_multi_constructor(_PYTHON_TAG, construct)
    return PlainLoader


def _found(path: str | Path) -> bool:
    if exists(path):
        return True
    rank_zero_warn(f"{str(path)!r} is not there. No hyperparameters are read from it. Check the path.", stacklevel=5)
    return False


def _read(path: str | Path) -> str:
    if is_local(path):
        return Path(local_path(path)).read_text(encoding="utf-8")
    with get_filesystem(path).open(str(path), "r", encoding="utf-8") as file:
        return str(file.read())
