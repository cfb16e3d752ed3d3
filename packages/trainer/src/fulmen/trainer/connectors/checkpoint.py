"""`ckpt_path` to a checkpoint: what it may mean, looked up before any work begins."""

import os
from dataclasses import replace
from pathlib import Path

from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.trainer._typing import Trainer
from fulmen.trainer.checkpoint.fetch import check_registry, is_registry
from fulmen.trainer.checkpoint.paths import Choice, check_exists, choose, folders_of, gather_offers
from fulmen.trainer.checkpoint.requeue import Requeue
from fulmen.trainer.checkpoint.whole import clear_leftovers
from fulmen.trainer.stages import EntryPoint


def choose_checkpoint(
    trainer: Trainer, entry: EntryPoint, asked: str | Path | None, *, model_given: bool, requeue: Requeue | None
) -> Choice:
    """What a run is to be restored from. A fit clears away first what killed runs have left half-written.

    Args:
        trainer: Says where checkpoints are kept; not changed.
        entry: What the user called.
        asked: The user's `ckpt_path`.
        model_given: Did the user hand over a model in this call?
        requeue: If this is a job of SLURM: it may have left something when it was requeued.

    Raises:
        CheckpointNotFoundError: If there is nothing at a path.
        ConfigurationError: See `choose`.
    """
    call, fits = f"Trainer.{entry}", entry is EntryPoint.FIT
    word = None if asked is None else os.fspath(asked)
    model_given = model_given or trainer.lightning_module is None or trainer.checkpoint_callback is None
    # The root may hold anything, thousands of files too: it is looked through only where a requeued job matters.
    wants_hpc = requeue is not None or word in ("hpc", "auto")
    if fits and trainer.is_global_zero and not trainer.fast_dev_run:
        folders = folders_of(trainer.callbacks, root_dir=trainer.default_root_dir, loggers=trainer.loggers)
        clear_leftovers([*folders, trainer.default_root_dir] if wants_hpc else folders)
    offers = gather_offers(
        trainer.callbacks,
        root_dir=trainer.default_root_dir,
        loggers=trainer.loggers,
        wants_best=word == "best" or (word is None and not fits and not model_given),
        wants_hpc=wants_hpc,
    )
    requeued = requeue is not None and requeue.num_restarts > 0 and fits
    if requeue is not None and requeued:
        offers = replace(offers, hpc=requeue.left_before(offers.hpc))
    choice = choose(
        word,
        offers,
        call=call,
        fits=fits,
        model_given=model_given,
        fast_dev_run=bool(trainer.fast_dev_run),
        requeued=requeued,
    )
    if choice.warning:
        rank_zero_warn(choice.warning)
    if is_registry(choice.path):
        check_registry(str(choice.path), trainer.model_registry)
    elif choice.path is not None and choice.asked is None:
        check_exists(choice.path, call=call)
    return choice
