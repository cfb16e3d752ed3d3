"""The logger flag to loggers."""

from collections.abc import Iterable

from fulmen.trainer.errors import ArgumentTypeError
from fulmen.trainer.loggers.base import DummyLogger, Logger
from fulmen.trainer.loggers.csv import CSVLogger
from fulmen.trainer.run.settings import Settings, barebones_conflict

LoggerFlag = Logger | Iterable[Logger] | bool | None


def choose_loggers(logger: LoggerFlag, settings: Settings) -> list[Logger]:
    """The loggers of a Trainer.

    Args:
        logger: None or True is a CSV logger in `default_root_dir`; False is none.
        settings: Barebones mode and a quick development run log nothing.

    Raises:
        ArgumentTypeError: For anything that is no logger.
    """
    if settings.barebones:
        if logger:
            raise barebones_conflict("logger", logger)
        return []
    loggers = _as_list(logger, settings)
    for one in loggers:
        if isinstance(one, type) or not isinstance(one, Logger):
            fix = f"{one.__name__}(...), an object" if isinstance(one, type) else "CSVLogger('logs'), for example"
            raise ArgumentTypeError(
                f"Trainer(logger={logger!r}) holds {one!r}, which is no logger."
                f" Metrics are sent to objects of the class Logger. Pass {fix}."
            )
    if settings.fast_dev_run and loggers:
        # The program runs as it would, and nothing is left behind.
        return [DummyLogger()]
    return loggers


def _as_list(logger: LoggerFlag, settings: Settings) -> list[Logger]:
    if logger is False:
        return []
    if logger is None or logger is True:
        return [CSVLogger(settings.default_root_dir)]
    if isinstance(logger, Iterable) and not isinstance(logger, (str, Logger)):
        return list(logger)
    return [logger]
