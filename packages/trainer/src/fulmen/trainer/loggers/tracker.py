"""What loggers of experiment trackers share: nothing that is logged is lost, and nothing that fails ends a run."""

import os
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from fulmen.fabric.filesystem import is_local, local_path
from fulmen.fabric.loggers.params import add_prefix, as_number, flatten_params, params_dict, printable_params
from fulmen.fabric.optional_packages import is_installed, require
from fulmen.fabric.rank_zero import rank_zero_only, rank_zero_warn
from fulmen.trainer.delivery.backlog import Entry
from fulmen.trainer.delivery.sender import Delivery, in_words
from fulmen.trainer.loggers.base import Logger


class Tracker(Logger):
    """A logger that hands what it gets to somebody else's package or server.

    What cannot be handed over now waits in a file in the folder of the run, and is sent, in order, as soon as it can
    be. What is left when the run ends stays there; `fulmen.trainer.loggers.deliver` sends it later.

    `patience_s`: so long `finalize` waits while nothing gets through.
    """

    opens_first = True
    LOGGER_JOIN_CHAR = "-"
    patience_s: float = 30.0
    package: ClassVar[str]  # the module that is needed
    pip: ClassVar[str | None] = None  # the distribution, if it is called differently

    def __init__(self, prefix: str = "", *, threaded: bool = False) -> None:
        super().__init__()
        if not is_installed(self.package):
            require(self.package, purpose=type(self).__name__, pip=self.pip)
        self._prefix = prefix
        self._threaded = threaded
        self._delivery: Delivery | None = None
        self._kept_in: str | None = None

    @abstractmethod
    def take(self, entries: Sequence[Entry]) -> int:
        """Hand over the first of `entries`, or the first few.

        Returns:
            How many were handed over.

        Raises:
            Refused: If the first one will never be taken.
            Exception: If nothing can be handed over now.
        """

    def how_to_make(self) -> str:
        """A logger that goes on with this run, as Python."""
        return f"{type(self).__name__}(...)"

    @property
    def delivery(self) -> Delivery:
        """What waits, and who sends it."""
        if self._delivery is None:
            self._delivery = Delivery(
                self.take,
                who=type(self).__name__,
                threaded=self._threaded,
                folder=self._folder,
                how_to_send=self._how_to_send,
                chunk=200,
            )
        return self._delivery

    def keep_in(self, folder: str) -> None:
        """Where to keep what waits, if this logger has no folder of its own."""
        self._kept_in = folder

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Hand over numbers; never raises because of the tracker, and never waits for it."""
        named = add_prefix(metrics, self._prefix, self.LOGGER_JOIN_CHAR)
        self.delivery.put("metrics", metrics={name: _plain(value) for name, value in named.items()}, step=step)

    @rank_zero_only
    def save(self) -> None:
        """Hand over what waits, if that can be done now."""
        if self._delivery is not None:
            self._delivery.flush()

    def directly(self, call: Callable[[], Any], what: str) -> None:
        """Hand over what cannot wait, such as pictures; if that fails, say so and go on."""
        self.save()
        try:
            call()
        except Exception as error:
            rank_zero_warn(
                f"{type(self).__name__} could not log {what}: {in_words(error)}. The run goes on without"
                " it. What is no number or text cannot wait until the tracker is back."
            )

    def close(self) -> None:
        """Wait for what waits, and say what could not be delivered."""
        if self._delivery is not None:
            self._delivery.close(self.patience_s)

    def _folder(self) -> Path:
        root = next((folder for folder in (self.save_dir, self._kept_in) if folder and is_local(folder)), ".")
        name, version = self.name, self.version
        return Path(local_path(root), *(str(part) for part in (name, version) if part is not None))

    def _how_to_send(self, path: Path) -> str:
        names = f"{type(self).__name__}, deliver"
        program = f"from fulmen.trainer.loggers import {names}; deliver({os.fspath(path)!r}, {self.how_to_make()})"
        return f'Send them with: python -c "{program}"'

    def __getstate__(self) -> dict[str, Any]:
        # What waits stays in this process, which will send it.
        return {**self.__dict__, "_delivery": None}


def flat_texts(params: Mapping[str, Any] | Namespace | None) -> dict[str, Any]:
    """Hyperparameters on one level, as numbers and texts."""
    return {name: _plain(value) for name, value in printable_params(flatten_params(params_dict(params))).items()}


def _plain(value: Any) -> Any:
    number = as_number(value)
    return number if isinstance(number, (bool, int, float, str)) else str(number)
