"""What would a fit take, on machines that need not exist? Memory, communication, steps.

The subcommand `plan` of `lightning-cli`. It reads the configuration of a fit as it is, and trains nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, Final

from fulmen.fabric.errors import ConfigurationError

NAME: Final = "plan"
# So that the configuration of a fit can be read.
like = "fit"
# Of the options of a fit, those that a forecast has no use for: a configuration may have them.
_OF_A_FIT: Final = ("weights_only", "curves")
_CHECKPOINT: Final = "ckpt_path"


def add_arguments(parser: Any) -> None:
    """Add how to print.

    Args:
        parser: Has the options of trainer, model and data already.
    """
    for action in parser._actions:
        if action.dest in _OF_A_FIT:
            action.help = argparse.SUPPRESS
        elif action.dest == _CHECKPOINT:
            action.help = "A checkpoint: the model is made with its hyperparameters. Its weights are not read."
    parser.add_argument("--json", type=bool, default=False, help="JSON in the place of tables.")


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse what would change nothing.

    Raises:
        ConfigurationError: If an option of a fit is among them.
    """
    for name in _OF_A_FIT:
        given = next((one for one in arguments if one.partition("=")[0] == f"--{name}"), None)
        if given is not None:
            raise ConfigurationError(
                f"lightning-cli plan {given} would change nothing. A forecast is made of shapes: it reads no weights,"
                " and draws nothing. Leave it out; in the file of a --config it may stay."
            )


def run(cli: Any, json: bool = False, **arguments: Any) -> None:
    """Print the forecast.

    Args:
        cli: The LightningCLI.
        json: As JSON?
        arguments: Those of a fit, which change nothing.
    """
    forecast = cli.trainer.plan(cli.model, datamodule=cli.datamodule, devices=cli.planned_devices)
    print(_as_json(forecast) if json else forecast)


def trainer_arguments(given: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """What the trainer is built with on a machine that has none of the devices, and how many were asked for.

    Args:
        given: The arguments of the configuration.

    Raises:
        ConfigurationError: If the strategy is of a kind that cannot be forecast: before what it needs is asked for.
    """
    from fulmen.fabric.forecast.rehearse import check_kind
    from fulmen.fabric.strategies.catalog import STRATEGY_REGISTRY

    strategy = given.get("strategy")
    if isinstance(strategy, str) and strategy in STRATEGY_REGISTRY:
        check_kind(STRATEGY_REGISTRY[strategy].value, strategy, "lightning-cli plan --trainer.strategy={}")
    devices = given.get("devices", "auto")
    if isinstance(devices, list):
        number = len(devices)
    elif isinstance(devices, str) and "," in devices:
        number = len([part for part in devices.split(",") if part.strip()])
    else:
        number = int(devices) if str(devices).isdecimal() else 1
    number = max(number, 1)
    return {"accelerator": "cpu", "devices": number, "logger": False}, number


def _as_json(forecast: Any) -> str:
    return json.dumps(forecast.as_dict(), indent=1)
