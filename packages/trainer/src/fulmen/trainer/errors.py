"""What can end a run from inside; errors about input come from fabric and are handed on here.

Every message is three sentences: what happened, why, and what to do.
"""

import signal

from fulmen.fabric.errors import ArgumentTypeError as ArgumentTypeError
from fulmen.fabric.errors import CheckpointDamagedError as CheckpointDamagedError
from fulmen.fabric.errors import CheckpointError as CheckpointError
from fulmen.fabric.errors import CheckpointNotFoundError as CheckpointNotFoundError
from fulmen.fabric.errors import ConfigurationError as ConfigurationError
from fulmen.fabric.errors import MisconfigurationException as MisconfigurationException
from fulmen.fabric.errors import MissingPackageError as MissingPackageError
from fulmen.fabric.errors import ProcessFailedError as ProcessFailedError
from fulmen.fabric.errors import ProcessHangsError as ProcessHangsError


class StopRun(Exception):
    """Ends the run in good order, from any depth; no failure."""


class InterruptedBySignal(SystemExit):
    """The operating system asked the process to end, and the loop has come to a place where it may.

    A `SystemExit`, so that no `except Exception` in user code swallows it; if nobody catches it, the process ends with
    128 + `signum`, as shells expect.
    """

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        super().__init__(128 + int(signum))
        self.signum = int(signum)

    def __reduce__(self) -> tuple[type["InterruptedBySignal"], tuple[int]]:
        return type(self), (self.signum,)  # it travels from process to process


SIGTERMException = InterruptedBySignal
