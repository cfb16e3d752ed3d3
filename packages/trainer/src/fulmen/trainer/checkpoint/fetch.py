"""A checkpoint that is not on this machine yet: from a URL, or from a model registry.

In a registry, models have names and versions. `ckpt_path` says which one. That it begins with "registry" is Lightning's
word; how the rest is read is ours:

| ckpt_path                     | stands for                                       |
| ----------------------------- | ------------------------------------------------ |
| "registry"                    | the model of `Trainer(model_registry=...)`       |
| "registry:version:2"          | version 2 of that model                          |
| "registry:team/net"           | the newest version of "team/net"                 |
| "registry:team/net:version:2" | version 2 of "team/net"                          |

The package litmodels talks to the registry; without it a registry cannot be used.
"""

import os
import re
from pathlib import Path
from typing import Any

from fulmen.fabric.errors import ArgumentTypeError, CheckpointNotFoundError, ConfigurationError
from fulmen.fabric.filesystem import list_dir
from fulmen.fabric.optional_packages import require
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.download import download, is_url

_PREFIX = re.compile(r"registry(:|$)", re.IGNORECASE)


def is_registry(path: object) -> bool:
    """Does `path` name a model in a registry?"""
    return isinstance(path, str) and _PREFIX.match(path) is not None


def is_elsewhere(path: object) -> bool:
    """Must the file be fetched first?"""
    return is_registry(path) or is_url(path)


def registered_name(ckpt_path: str, default_model_registry: str | None) -> str:
    """The name of the model, with ":version" if one was asked for.

    Raises:
        CheckpointNotFoundError: If neither names a model.
    """
    parts = ckpt_path.split(":")[1:]
    version: str | None = None
    if len(parts) >= 2 and parts[-2].lower() == "version":
        version = parts[-1]
        parts = parts[:-2]
    name = ":".join(parts).strip() or (default_model_registry or "").strip()
    if not name or (version is not None and not version.strip()):
        raise CheckpointNotFoundError(
            f"ckpt_path={ckpt_path!r} names no model in a registry, and Trainer(model_registry="
            f"{default_model_registry!r}) gives none. A model has a name, and perhaps a version."
            " Pass ckpt_path='registry:NAME', 'registry:NAME:version:VERSION', or model_registry='NAME'."
        )
    return f"{name}:{version}" if version is not None else name


def check_default(model_registry: str | None) -> str | None:
    """The argument `model_registry` of a Trainer, if it is None or the name of a model.

    Raises:
        ArgumentTypeError: If it is no text.
        ConfigurationError: If it names nothing, or holds what belongs into `ckpt_path`.
    """
    if model_registry is None:
        return None
    if not isinstance(model_registry, str):
        raise ArgumentTypeError(
            f"Trainer(model_registry={model_registry!r}) is a {type(model_registry).__name__}, not a name."
            " It names the model that ckpt_path='registry' stands for. Pass a str such as 'team/net', or None."
        )
    if not model_registry.strip() or is_registry(model_registry):
        raise ConfigurationError(
            f"Trainer(model_registry={model_registry!r}) names no model. It is the one that ckpt_path='registry'"
            " stands for, without that word. Pass a name such as 'team/net', or leave it out."
        )
    return model_registry.strip()


def model_folder(name: str, default_root_dir: str) -> str:
    """Where the files of a registered model are put."""
    return os.path.join(default_root_dir, re.sub(r"[/:]", "_", name))


def check_registry(ckpt_path: str, default_model_registry: str | None) -> None:
    """Refuse, before any work begins, a registry that cannot be asked.

    Raises:
        CheckpointNotFoundError: If no model is named.
        MissingPackageError: If the package litmodels is not installed.
    """
    registered_name(ckpt_path, default_model_registry)
    require("litmodels", purpose=f"ckpt_path={ckpt_path!r}")


def download_model_from_registry(ckpt_path: str | Path | None, trainer: Trainer) -> None:
    """Bring the model that `ckpt_path` names to this machine; every process must call it, and one downloads.

    Raises:
        CheckpointNotFoundError: If no model is named.
        MissingPackageError: If the package litmodels is not installed.
    """
    asked = str(ckpt_path)
    if trainer.local_rank == 0:
        name = registered_name(asked, trainer.model_registry)
        litmodels: Any = require("litmodels", purpose=f"ckpt_path={asked!r}")
        litmodels.download_model(name, download_dir=model_folder(name, trainer.default_root_dir))
    trainer.strategy.barrier("download_model_from_registry")


def find_model_local_ckpt_path(
    ckpt_path: str | Path | None, default_model_registry: str | None, default_root_dir: str
) -> str:
    """The checkpoint file of the model that `ckpt_path` names, once it was downloaded.

    Raises:
        CheckpointNotFoundError: If no model is named, or its folder holds no checkpoint.
    """
    name = registered_name(str(ckpt_path), default_model_registry)
    folder = model_folder(name, default_root_dir)
    found = [file for file in list_dir(folder) if file.endswith(".ckpt")]
    if not found:
        raise CheckpointNotFoundError(
            f"ckpt_path={str(ckpt_path)!r} stands for the model {name!r}, and {folder!r} holds no .ckpt file of it."
            " It was not downloaded, or it is no checkpoint of a run. Check what the registry has under this name."
        )
    return os.path.join(folder, found[0])


def fetch(path: str, trainer: Trainer) -> str:
    """`path`, or the local file that it stands for; every process must call it."""
    if is_registry(path):
        download_model_from_registry(path, trainer)
        return find_model_local_ckpt_path(path, trainer.model_registry, trainer.default_root_dir)
    if is_url(path):
        if trainer.local_rank == 0:
            download(path)
        trainer.strategy.barrier("download")
        return str(download(path))
    return path
