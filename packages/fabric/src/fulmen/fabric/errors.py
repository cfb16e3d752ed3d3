"""Errors that tell what happened, why, and what to do: three sentences, the user's own argument quoted.

Bad input is a `MisconfigurationException`, of whatever built-in type fits too; what fails later has its own family.
"""

from __future__ import annotations

from fulmen.fabric.printable import printable


class MisconfigurationException(Exception):
    """The user asked for something that cannot be done as asked; the base of all errors about bad input."""


class ConfigurationError(MisconfigurationException, ValueError):
    """A value is wrong, or contradicts another one or the machine."""


class HardwareError(ConfigurationError, RuntimeError):
    """The machine does not have the devices that were asked for."""


class ArgumentTypeError(MisconfigurationException, TypeError):
    """An argument has the wrong type."""


class MissingPackageError(MisconfigurationException, ModuleNotFoundError):
    """An optional package is needed and is not there."""


class NotLaunchedError(MisconfigurationException, RuntimeError):
    """Something was asked of processes that have not been started."""


class ForwardBypassedError(MisconfigurationException, RuntimeError):
    """A call went past the strategy or the precision that has to see it."""


class UnknownMethodError(MisconfigurationException, AttributeError):
    """The module has no method of this name."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, read or removed; the message is printable, whatever names the file holds."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(arg) if isinstance(arg, str) else arg for arg in args))


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at the path."""


class CheckpointKeyError(CheckpointError, KeyError):
    """Something that was asked for is not in the checkpoint."""

    __str__ = Exception.__str__  # KeyError would show the message in quotes


class CheckpointDamagedError(CheckpointError):
    """There is a checkpoint at the path, and it is truncated or changed."""


class ProcessFailedError(RuntimeError):
    """One of the processes of a run ended with an error, or did not start."""


class ProcessHangsError(ProcessFailedError):
    """A process of a run did not come to a collective within its timeout; the message says where it is."""
