"""What would a fit take, on machines that need not exist? Memory, communication, steps.

The subcommand `plan` of `lightning-cli`. It reads the configuration of a fit as it is, and trains nothing.
"""

from __future__ import annotations

import json
from typing import Any, Final

NAME: Final = "plan"
# So that the configuration of a fit can be read.
like = "fit"


def add_arguments(parser: Any) -> None:
    """Add how to print.

    Args:
        parser: Has the options of trainer, model and data already.
    """
    parser.add_argument("--json", type=bool, default=False, help="JSON in the place of tables.")


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
    """
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
