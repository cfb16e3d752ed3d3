"""What loggers share that write files to `save_dir/name/version_N`."""

from fulmen.fabric.filesystem import join
from fulmen.trainer.loggers.base import Logger


class FolderLogger(Logger):
    """A logger whose files lie below the folder that the user gave."""

    NAME_HPARAMS_FILE = "hparams.yaml"
    root_argument = "save_dir"

    _save_dir: str

    @property
    def root_dir(self) -> str:
        """The folder of this experiment: of all its versions."""
        return join(self.save_dir, self.name or "")

    @property
    def save_dir(self) -> str:
        """The folder of all experiments."""
        return self._save_dir
