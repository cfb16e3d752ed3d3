"""Names of checkpoints that come and go, in their turn: also where they are written in the background."""

from collections.abc import Iterable
from functools import partial

from fulmen.fabric.filesystem import is_local
from fulmen.trainer._typing import Trainer
from fulmen.trainer.callbacks.links import keep_for_link, link_or_copy
from fulmen.trainer.checkpoint.place import absolute


def give_second_name(trainer: Trainer, path: str, name: str, *, symbolic: bool) -> None:
    """Let `name` stand for the checkpoint `path` too, once that is on the disk; every process must call it."""
    if trainer.is_global_zero:
        trainer.strategy.checkpoint_io.after_saves(partial(link_or_copy, path, name, symbolic=symbolic))
    trainer.strategy.barrier()


def remove_outdated(trainer: Trainer, paths: Iterable[str], link: str) -> None:
    """Remove checkpoints, once what was saved before is on the disk; not that which the run was restored from.

    Args:
        trainer: Of the run.
        paths: To remove.
        link: What leads to one of them as a symbolic link becomes that one.
    """
    restored_from = absolute(trainer.ckpt_path) if trainer.ckpt_path else None
    for path in paths:
        if absolute(path) == restored_from:
            continue
        if link and is_local(path) and trainer.is_global_zero:
            trainer.strategy.checkpoint_io.after_saves(partial(keep_for_link, path, link))
        trainer.strategy.remove_checkpoint(path)
