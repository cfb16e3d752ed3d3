"""Save when a run fails."""

import os
from pathlib import Path
from typing import Any

from fulmen.fabric.arguments import check_location
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.filesystem import check_writable, exists
from fulmen.trainer._typing import Trainer
from fulmen.trainer.callbacks.checkpoint import Checkpoint


class OnExceptionCheckpoint(Checkpoint):
    """Leave a checkpoint when a run fails; the next `fit` goes on from it, and a run that succeeds removes it.

    Args:
        dirpath: Folder of the checkpoint.
        filename: Its name, without extension.

    Raises:
        ArgumentTypeError: If the folder is no path.
        ConfigurationError: If the name is empty.
    """

    FILE_EXTENSION = ".ckpt"

    def __init__(self, dirpath: str | Path, filename: str = "on_exception") -> None:
        super().__init__()
        check_location(self, "dirpath", dirpath, "It is the folder to save in.")
        if not filename:
            raise ConfigurationError(
                f"OnExceptionCheckpoint(filename={filename!r}) has no name to save under."
                " The checkpoint of a failed run needs one, so that the next run can find it."
                " Pass a name without extension, or leave the argument out."
            )
        self.dirpath = dirpath
        self.filename = filename
        self._has_failed = False
        self._can_save = True

    @property
    def ckpt_path(self) -> str:
        """Where the checkpoint lies, or will lie."""
        return os.path.join(os.fspath(self.dirpath), self.filename + self.FILE_EXTENSION)

    def path_after_exception(self) -> str:
        """The same, as the search for checkpoints asks for it."""
        return self.ckpt_path

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """See that it could save; when a run has failed it is too late.

        Raises:
            ConfigurationError: If the folder cannot be written.
        """
        self._can_save = False
        if trainer.is_global_zero:
            check_writable(self.dirpath, f"{type(self).__name__}(dirpath={os.fspath(self.dirpath)!r})")
        self._can_save = True

    def on_exception(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Save."""
        self._has_failed = True
        if self._can_save and not self.fails_alone(trainer):
            trainer.save_checkpoint(self.ckpt_path)

    def teardown(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Remove what an earlier failure left, once a run has succeeded."""
        if not self._has_failed and exists(self.ckpt_path):
            trainer.strategy.remove_checkpoint(self.ckpt_path)
        self._has_failed = False
