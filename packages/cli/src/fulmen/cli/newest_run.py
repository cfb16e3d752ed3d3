"""What `--ckpt_path best` and `last` mean in a new process: the checkpoint of the newest run."""

from __future__ import annotations

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.filesystem import join, list_dir
from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.trainer.checkpoint.kept import best_in, last_in, newest_folder
from fulmen.trainer.trainer import Trainer

NAMES = ("best", "last")


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
