"""What `--ckpt_path best` and `last` mean in a new process: the checkpoint of the newest run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fulmen.cli.parser import LightningArgumentParser
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.filesystem import join, list_dir
from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.trainer.checkpoint.kept import best_in, last_in, newest_folder
from fulmen.trainer.trainer import Trainer

NAMES = ("best", "last")
# What says where runs are kept.
_DECIDING = ("logger", "callbacks", "default_root_dir", "fast_dev_run", "enable_checkpointing", "barebones")


def find(asked: str, given: Any, defaults: Mapping[str, Any], trainer_class: Callable[..., Trainer]) -> str | None:
    """The file that `asked` stands for, before there is a trainer; None if that cannot be told yet.

    Args:
        asked: "best" or "last".
        given: What the user gave for the arguments of the trainer; None if nothing.
        defaults: Other defaults for them.
        trainer_class: For its own defaults.
    """
    parameters = inspect.signature(trainer_class).parameters
    own = {name: parameters[name].default for name in _DECIDING if name in parameters}
    wanted = {name: given[name] for name in _DECIDING if given is not None and name in given}
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(Trainer, "trainer")
    try:
        made = parser.instantiate(parser.parse_object({"trainer": wanted}))["trainer"]
        arguments = {
            **{name: value for name, value in own.items() if value is not inspect.Parameter.empty},
            **{name: defaults[name] for name in _DECIDING if name in defaults},
            **{name: made[name] for name in wanted},
        }
        added = [arguments.get("callbacks"), defaults.get("callbacks") if "callbacks" in wanted else None]
        callbacks = [one for part in added for one in (part if isinstance(part, (list, tuple)) else [part])]
        arguments["callbacks"] = [one for one in callbacks if isinstance(one, ModelCheckpoint)]
        # Nothing runs on it: it need not have the devices that the run will have.
        return resolve(Trainer(**{**arguments, "accelerator": "cpu", "devices": 1}), asked, subcommand="")
    except Exception:  # whatever is wrong is said when the trainer itself is built
        return None


def resolve(trainer: Trainer, asked: str, *, subcommand: str) -> str | None:
    """The file that `asked` stands for; None leaves the answer to the trainer.

    Args:
        trainer: Built, and nothing run yet: its loggers and callbacks say where runs are kept.
        asked: "best" or "last".
        subcommand: For messages; `fit --ckpt_path last` begins anew if there is nothing to go on from.

    Raises:
        ConfigurationError: If no run has kept such a checkpoint.
    """
    callback = next((found for found in trainer.checkpoint_callbacks if isinstance(found, ModelCheckpoint)), None)
    if callback is None or trainer.fast_dev_run:
        return None
    where, folders = _folders(trainer, callback)
    folder = newest_folder(folders)
    what = f"`{subcommand} --ckpt_path {asked}`"
    if folder is None:
        if subcommand == "fit" and asked == "last":
            return None
        raise ConfigurationError(
            f"{what} finds no checkpoint. The newest run is looked for in {where!r}, and nothing there has kept one."
            " Run fit first, or pass the path of a checkpoint file."
        )
    if asked == "last":
        return last_in(folder)
    best = best_in(folder, callback.state_key)
    if best is None:
        raise ConfigurationError(
            f"{what} finds no best checkpoint in {folder!r}. The files there do not say which of them is the best:"
            " they were saved without the state of ModelCheckpoint, or that file is gone. Pass the path of a file."
        )
    return best.path


def _folders(trainer: Trainer, callback: ModelCheckpoint) -> tuple[str, list[str]]:
    """Where runs are kept, and the folders there that may hold checkpoints; no logger opens a new version for it."""
    if callback.dirpath is not None:
        return callback.dirpath, [callback.dirpath]
    if not trainer.loggers:
        folder = join(trainer.default_root_dir, "checkpoints")
        return folder, [folder]
    logger = trainer.loggers[0]
    experiment = join(logger.save_dir or trainer.default_root_dir, *filter(None, [str(logger.name or "")]))
    return experiment, [join(experiment, version, "checkpoints") for version in list_dir(experiment)]
