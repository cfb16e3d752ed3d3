"""The value that a callback watches: is its name known, and which way is good?"""

from collections.abc import Iterable
from typing import Literal, cast

from fulmen.fabric.errors import ConfigurationError, MisconfigurationException
from fulmen.trainer._typing import Trainer


class MetricNotLoggedError(MisconfigurationException, RuntimeError):
    """A callback watches a metric that nobody logs."""


def check_mode(mode: str, owner: str) -> Literal["min", "max"]:
    """`mode`, if it is one.

    Raises:
        ConfigurationError: For any other text.
    """
    if mode not in ("min", "max"):
        raise ConfigurationError(
            f"{owner}(mode={mode!r}) is no direction. A metric is good when it is small ('min') or large ('max')."
            " Pass mode='min' or mode='max'."
        )
    return cast(Literal["min", "max"], mode)


def validated_once_per_epoch(trainer: Trainer) -> bool:
    """Does validation come once in every epoch, at its end? Then all metrics of the epoch are there at its end."""
    interval = trainer.val_check_interval
    # 1.0 is the whole epoch, and the int 1 is every batch.
    return isinstance(interval, float) and interval == 1.0 and trainer.check_val_every_n_epoch == 1


def not_logged(monitor: str, logged: Iterable[str], owner: str) -> str:
    """What to tell about a metric that is watched and not there."""
    names = sorted(str(name) for name in logged)
    there = f"Logged so far: {', '.join(map(repr, names))}" if names else "Nothing was logged so far"
    return (
        f"{owner}(monitor={monitor!r}) watches a metric that was not logged. {there}."
        f" Call self.log({monitor!r}, value) in the module, or pass the name of a logged metric as monitor."
    )
