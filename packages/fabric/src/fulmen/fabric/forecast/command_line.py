"""`fulmen-fabric plan`: a forecast for a module that a function makes."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_PLAN: Final = """\
Print what a run would take, on machines that need not exist: mesh, shards,
memory, collectives, steps, size of a checkpoint. Nothing is trained, and no
memory is taken: FUNCTION is called for tensors without numbers.

It returns the module, or a dictionary with "module" and what else the forecast
should know: "batch", "step" (the loss of module and batch), "optimizers" (of
the module), "strategy", "num_samples", "batch_size".
"""
_EXAMPLES: Final = """\
examples:
  fulmen-fabric plan train.py:forecast --devices 8 --num-nodes 128
  fulmen-fabric plan my_package.gpt:make --devices 8 --strategy fsdp --json
"""
_KEYS: Final = ("module", "batch", "step", "optimizers", "strategy", "num_samples", "batch_size")


def add_plan(
    commands: Any, strategies: Sequence[str], precisions: Sequence[str], integer: Callable[[int], Callable[[str], int]]
) -> None:
    """Add the command.

    Args:
        commands: Of argparse.
        strategies, precisions: The names that may be given.
        integer: For a lowest number, a reader of such.
    """
    parser = commands.add_parser(
        "plan",
        help="what a run would take, on machines that need not exist",
        usage="fulmen-fabric plan [options] FILE.py:FUNCTION | MODULE:FUNCTION",
        description=_PLAN,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "target", metavar="FILE.py:FUNCTION", help="a function without parameters that makes the module"
    )
    number = integer(1)
    for names, text in (
        (("--devices",), "processes on each machine; default 1"),
        (("--num-nodes", "--num_nodes"), "machines; default 1"),
        (("--accumulate",), "batches for an optimizer step; default 1"),
        (("--num-samples", "--num_samples"), "samples in the data set"),
        (("--batch-size", "--batch_size"), "of one process; default that of the batch"),
    ):
        parser.add_argument(*names, type=number, metavar="N", help=text)
    parser.add_argument(
        "--strategy", choices=("auto", *strategies), metavar="NAME", help=f"auto, {', '.join(strategies)}"
    )
    parser.add_argument("--precision", choices=precisions, metavar="NAME", help=", ".join(precisions))
    parser.add_argument("--json", action="store_true", help="print JSON in the place of tables")


def print_plan(given: argparse.Namespace) -> int:
    """Make the forecast and print it; the exit code."""
    from fulmen.fabric.errors import MisconfigurationException
    from fulmen.fabric.forecast.rehearse import make_forecast

    try:
        arguments = _called(given.target)
        for name in ("devices", "num_nodes", "accumulate", "num_samples", "batch_size", "strategy", "precision"):
            if getattr(given, name) is not None:
                arguments[name] = getattr(given, name)
        forecast = make_forecast(**arguments)
    except MisconfigurationException as error:
        print(f"fulmen-fabric plan: {error}", file=sys.stderr)
        return 1
    print(json.dumps(forecast.as_dict(), indent=1) if given.json else forecast)
    return 0


def _called(target: str) -> dict[str, Any]:
    """What the function of the user's returns, as arguments of `make_forecast`."""
    import torch

    from fulmen.fabric.errors import ArgumentTypeError

    function = _function(target)
    with torch.device("meta"):
        found = function()
    arguments = dict(found) if isinstance(found, Mapping) else {"module": found}
    unknown = [key for key in arguments if key not in _KEYS]
    if unknown or "module" not in arguments:
        raise ArgumentTypeError(
            f"{target} returned a dictionary with the keys {', '.join(map(repr, arguments))}. A forecast needs 'module'"
            f" and knows {', '.join(map(repr, _KEYS[1:]))}. Return a dictionary of these, or the module alone."
        )
    return arguments


def _function(target: str) -> Callable[[], Any]:
    from fulmen.fabric.errors import ConfigurationError

    place, _, name = target.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigurationError(
            f"{target!r} names no function. What makes the module is found by its file, or module, and its name."
            " Pass for instance train.py:make_module, or package.module:make_module."
        )
    sys.path.insert(0, os.path.dirname(os.path.abspath(place)) if place.endswith(".py") else os.getcwd())
    try:
        module = _from_file(place) if place.endswith(".py") else importlib.import_module(place)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise ConfigurationError(
            f"{target!r} cannot be imported from {os.getcwd()}: {error}. It is imported as Python does it."
            " Look at its name, or pass the path of the file."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigurationError(
            f"{target!r} is no function: {place} has none of the name {name!r}. It is called without arguments, and"
            " returns the module. Write one, or name another."
        )
    return function  # type: ignore[no-any-return]  # just asked


def _from_file(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(os.path.basename(path).removesuffix(".py"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
