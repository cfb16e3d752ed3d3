"""Say where the results of a run are."""

from __future__ import annotations

import os
from pathlib import Path

from fulmen.cli.save_config import SaveConfigCallback
from fulmen.fabric.filesystem import exists, is_local, join
from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.trainer.trainer import Trainer

_METRICS = "metrics.csv"


def report(trainer: Trainer, *, curves: bool | None = None) -> str:
    """Where the results of the last fit are, as text of several lines; "" if it left none, and on other ranks.

    All processes must call it: they agree on the folder.

    Args:
        trainer: Has run.
        curves: Draw the curves of `metrics.csv`? None: if matplotlib is installed.
    """
    folder = trainer.log_dir
    if folder is None or trainer.fast_dev_run or not trainer.is_global_zero:
        return ""
    found: dict[str, str] = {}
    if trainer.loggers:
        found["folder"] = _short(folder)
    ranking = next((one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)), None)
    if ranking is not None and ranking.best_model_path:
        found["best checkpoint"] = _short(ranking.best_model_path)
        if ranking.monitor is not None and ranking.best_model_score is not None:
            found["best score"] = f"{ranking.monitor} = {float(ranking.best_model_score):.4g}"
    metrics = join(folder, _METRICS)
    if exists(metrics):
        found["metrics"] = _short(metrics)
    for saver in trainer.callbacks:
        if isinstance(saver, SaveConfigCallback):
            path = saver.path or join(folder, saver.config_filename)  # no path: another process has saved it
            if exists(path):
                found["configuration"] = _short(path)
    if "metrics" in found:
        picture = _draw(metrics, curves)
        if picture is not None:
            found["curves"] = _short(picture)
    if not found:
        return ""
    width = max(map(len, found)) + 2
    return "\n".join(["Results:", *(f"  {name:<{width}}{value}" for name, value in found.items())])


def _draw(metrics: str, curves: bool | None) -> str | None:
    if curves is False or (curves is None and not is_installed("matplotlib")):
        return None
    from fulmen.trainer.plots import plot_metrics

    try:
        return plot_metrics(metrics)
    except Exception as error:  # the run has ended well, and a picture must not change that
        rank_zero_warn(f"The curves of {metrics!r} were not drawn: {error}")
        return None


def _short(path: str) -> str:
    """Relative to the current folder where it lies below it."""
    if not is_local(path):
        return path
    here = Path.cwd()
    full = Path(os.path.abspath(path))
    return str(full.relative_to(here)) if full.is_relative_to(here) else str(full)
