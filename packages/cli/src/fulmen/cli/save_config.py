"""The full configuration of a run, saved beside its results."""

import importlib
import importlib.metadata
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from fulmen.cli.config_files import ORIGIN
from fulmen.cli.parser import LightningArgumentParser
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.filesystem import atomic_open, exists, get_filesystem, is_local, join, local_path, make_dirs
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule

_CLASS_PATH = re.compile(r"class_path: ['\"]?(\w+)\.")


class SaveConfigCallback(Callback):
    """Writes the configuration when a run begins; it can be passed as `--config` to repeat the run.

    Args:
        parser: What the configuration was parsed with.
        config: What was parsed.
        config_filename: The name of the file. If there is a file of this name with another configuration, neither is
            lost: the new one gets a number, as `config_1.yaml`.
        overwrite: Replace such a file.
        multifile: Keep files that the configuration was read from as files of their own.
        save_to_log_dir: Write into the folder of the run? False leaves all to `save_config` of a subclass.

    Raises:
        ConfigurationError: If `save_to_log_dir` is False and nobody overrides `save_config`.
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace,
        config_filename: str = "config.yaml",
        overwrite: bool = False,
        multifile: bool = False,
        save_to_log_dir: bool = True,
    ) -> None:
        super().__init__()
        self.parser = parser
        self.config = config
        self.config_filename = config_filename
        self.overwrite = overwrite
        self.multifile = multifile
        self.save_to_log_dir = save_to_log_dir
        self.already_saved = False
        self.path: str | None = None  # where it was written; on rank zero
        if not save_to_log_dir and type(self).save_config is SaveConfigCallback.save_config:
            raise ConfigurationError(
                f"{type(self).__name__}(save_to_log_dir=False) would save nothing. Without the folder of the run, only"
                " save_config of a subclass can save, and it is not overridden. Override it, or leave"
                " save_to_log_dir out."
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save, once in the life of the callback."""
        if self.already_saved:
            return
        log_dir = trainer.log_dir if self.save_to_log_dir else None  # asked on all processes: they agree on it
        if trainer.is_global_zero:
            if log_dir is not None:
                self.path = self._write(log_dir)
            self.save_config(trainer, pl_module, stage)
        self.already_saved = True

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """For subclasses: save the configuration elsewhere too; called on rank zero only."""
        return None

    def _write(self, log_dir: str) -> str:
        body = _without_comments(self.parser.dump(self.config, skip_unset=False))
        header = "".join(f"# {line}\n" for line in (*_versions(body), *_origin()))
        text = header + body
        path = join(log_dir, self.config_filename)
        if not self.overwrite:
            path = _free(path, text)
        make_dirs(log_dir)
        # A numbered one holds all: the files beside the first one are not to be written over.
        if self.multifile and is_local(path) and path == join(log_dir, self.config_filename):
            # It writes the files that are named in the configuration, and this one without the header.
            self.parser.save(self.config, local_path(path), skip_unset=False, overwrite=True, multifile=True)
            text = header + _without_comments(_read(path))
        with atomic_open(path, "w") as file:
            file.write(text)
        return path


def _versions(body: str) -> list[str]:
    """What the run was made with: `fulmen.trainer==0.1.0`; the first line is the one that programs look at."""
    named = {match[1] for match in _CLASS_PATH.finditer(body)} - {"fulmen", "torch"}
    modules = ["fulmen.trainer", "fulmen.fabric", "fulmen.cli", "torch", *sorted(named)]
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in modules}
    versions |= {"jsonargparse": importlib.metadata.version("jsonargparse"), "python": sys.version.split()[0]}
    return [f"{name}=={version}" for name, version in versions.items() if version is not None]


def _origin() -> list[str]:
    """How and where the run was started."""
    command = shlex.join([os.path.basename(sys.argv[0] or "python"), *sys.argv[1:]])
    return [*command.splitlines(), f"{ORIGIN.removeprefix('# ')}{Path.cwd()}"]


def _without_comments(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))


def _free(path: str, text: str) -> str:
    """`path`, or a numbered one beside it if there is another configuration."""
    stem, extension = os.path.splitext(path)
    number = 0
    while exists(path) and _configuration(_read(path)) != _configuration(text):
        number += 1
        path = f"{stem}_{number}{extension}"
    return path


def _configuration(text: str) -> Any:
    return _without_comments(text)


def _read(path: str) -> str:
    if is_local(path):
        return Path(local_path(path)).read_text(encoding="utf-8", errors="replace")
    with get_filesystem(path).open(path, "r", encoding="utf-8") as file:
        return str(file.read())
