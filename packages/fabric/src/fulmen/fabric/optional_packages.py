"""Optional packages: are they present, and what is to be installed if not?"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from fulmen.fabric.errors import MissingPackageError


def is_installed(name: str) -> bool:
    """Can `name` (of a package or a module in it) be found? The module itself is not imported."""
    if sys.modules.get(name) is not None:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        # A parent is missing or broken, or the module stands in `sys.modules` without a spec.
        return False


def require(name: str, *, purpose: str, pip: str | None = None) -> ModuleType:
    """Import an optional package.

    Args:
        name: The module to import.
        purpose: Who needs it, as the subject of a sentence: "TQDMProgressBar", "Trainer(accelerator='tpu')".
        pip: The distribution to install, where it is not called as the top-level module.

    Raises:
        MissingPackageError: If the package is not there, or there and broken.
    """
    package = name.partition(".")[0]
    install = f"Install it with `python -m pip install {pip or package}`."
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise MissingPackageError(
                f"{purpose} needs the package {package!r}. The module {name!r} is not installed here. {install}"
            ) from error
        raise MissingPackageError(_broken(name, purpose, error)) from error
    except ImportError as error:
        raise MissingPackageError(_broken(name, purpose, error)) from error


def _broken(name: str, purpose: str, error: ImportError) -> str:
    return (
        f"{purpose} needs the module {name!r}, which is installed but cannot be imported. Its import ended with:"
        f" {type(error).__name__}: {error}. Try `python -c 'import {name}'` and mend what it reports."
    )
