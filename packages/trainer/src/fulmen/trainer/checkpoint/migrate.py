"""Checkpoints of older versions of the format to the current form (pure).

Each step below says which version of the format (`format_version.py`) brought the change, and leaves alone what is not
there, so that any checkpoint may be passed.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from fulmen.trainer.format_version import FORMAT_VERSION, VERSION_KEY, as_numbers, version_of, warn_of_newer

Checkpoint: TypeAlias = dict[str, Any]
Step: TypeAlias = Callable[[Checkpoint], None]


def migrate_checkpoint(
    checkpoint: Checkpoint, target_version: str | None = None
) -> tuple[Checkpoint, dict[str, list[str]]]:
    """Bring `checkpoint` to the current form, in place.

    Args:
        checkpoint: As it was loaded.
        target_version: Go no further than the form of this version.

    Returns:
        The same checkpoint, and per version the names of the steps that were taken.
    """
    warn_of_newer(checkpoint)
    target = target_version or FORMAT_VERSION
    written = as_numbers(version_of(checkpoint))
    done: dict[str, list[str]] = {}
    for version, steps in MIGRATIONS.items():
        if written < as_numbers(version) <= as_numbers(target):
            for step in steps:
                step(checkpoint)
            done[version] = [step.__name__ for step in steps]
    if done:
        checkpoint[VERSION_KEY] = target
    return checkpoint, done


def nest_callback_states(checkpoint: Checkpoint) -> None:
    """0.10.0: the states of two known callbacks lay flat in the checkpoint; now each callback has a dict."""
    monitor: dict[str, tuple[str, ...]] = {
        "best_model_score": ("checkpoint_callback_best_model_score", "checkpoint_callback_best"),
        "best_model_path": ("checkpoint_callback_best_model_path",),
    }
    stopping: dict[str, tuple[str, ...]] = {
        "wait_count": ("early_stop_callback_wait",),
        "patience": ("early_stop_callback_patience",),
    }
    found = {"ModelCheckpoint": monitor, "EarlyStopping": stopping}
    states = {name: _take_flat(checkpoint, keys) for name, keys in found.items()}
    for name, state in states.items():
        if state:
            checkpoint.setdefault("callbacks", {}).setdefault(name, state)


def _take_flat(checkpoint: Checkpoint, keys: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, old_names in keys.items():
        for old_name in old_names:
            if old_name in checkpoint:
                state.setdefault(name, checkpoint.pop(old_name))
    return state


def name_callbacks_by_text(checkpoint: Checkpoint) -> None:
    """1.5.0: the states of callbacks were kept under their classes; now under their names."""
    states = checkpoint.get("callbacks")
    if states:
        checkpoint["callbacks"] = {
            key.__qualname__ if isinstance(key, type) else key: state for key, state in states.items()
        }


def count_epochs_and_steps(checkpoint: Checkpoint) -> None:
    """1.6.0: `epoch` and `global_step` were the only counters of old runs; now the loops count."""
    if "global_step" not in checkpoint or "epoch" not in checkpoint:
        return
    epoch, steps = checkpoint["epoch"], checkpoint["global_step"]
    fit = checkpoint.setdefault("loops", {}).setdefault("fit_loop", _no_loops())
    if "epoch_progress" not in fit:
        fit["epoch_progress"] = {"total": _counts(epoch), "current": _counts(epoch)}
    else:
        fit["epoch_progress"]["current"].update(ready=epoch, completed=epoch)
    optimizers = fit.setdefault("epoch_loop.batch_loop.optimizer_loop.optim_progress", {"optimizer": _no_steps()})
    optimizers["optimizer"]["step"]["total"].update(ready=steps, completed=steps)


def count_batches_that_stepped(checkpoint: Checkpoint) -> None:
    """1.6.5: loggers got their own count of steps."""
    fit = checkpoint.get("loops", {}).get("fit_loop")
    if fit is not None and "global_step" in checkpoint:
        fit.setdefault("epoch_loop.state_dict", {}).setdefault("_batches_that_stepped", checkpoint["global_step"])


def drop_epoch_end_from_keys(checkpoint: Checkpoint) -> None:
    """1.9.0: `save_on_train_epoch_end` is no longer part of what tells two ModelCheckpoints apart."""
    states = checkpoint.get("callbacks")
    if states:
        pattern = re.compile(r", 'save_on_train_epoch_end': (None|True|False)")
        checkpoint["callbacks"] = {
            pattern.sub("", key) if isinstance(key, str) and key.startswith("ModelCheckpoint") else key: state
            for key, state in states.items()
        }


def drop_apex(checkpoint: Checkpoint) -> None:
    """2.0.0: apex is gone, and with it its scaling state."""
    checkpoint.pop("amp_scaling_state", None)


def name_scaler_by_precision(checkpoint: Checkpoint) -> None:
    """2.0.0: the state of the gradient scaler is kept under the name of the precision plugin."""
    for old_name in ("native_amp_scaling_state", "NativeMixedPrecisionPlugin", "MixedPrecisionPlugin"):
        if old_name in checkpoint:
            checkpoint.setdefault("MixedPrecision", checkpoint.pop(old_name))


def flatten_loops(checkpoint: Checkpoint) -> None:
    """2.0.0: fewer loops inside loops: batch loop, optimizer loop and the loop over loaders are gone."""
    for name, loop in checkpoint.get("loops", {}).items():
        checkpoint["loops"][name] = _renamed(loop, _RENAMED_IN_FIT if name == "fit_loop" else _RENAMED_IN_EVALUATION)


# Old key (a prefix) to new key; None drops it. The first that fits is taken.
_RENAMED_IN_FIT: dict[str, str | None] = {
    "epoch_loop.batch_loop.optimizer_loop.optim_progress": "epoch_loop.automatic_optimization.optim_progress",
    "epoch_loop.batch_loop.optimizer_loop.": "epoch_loop.automatic_optimization.",
    "epoch_loop.batch_loop.manual_loop.": "epoch_loop.manual_optimization.",
    "epoch_loop.batch_loop.": None,
    "epoch_loop.val_loop.dataloader_progress": None,
    "epoch_loop.val_loop.epoch_loop.state_dict": None,
    "epoch_loop.val_loop.epoch_loop.": "epoch_loop.val_loop.",
    "epoch_loop.val_loop._results": None,
    "epoch_loop._results": None,
}
_RENAMED_IN_EVALUATION: dict[str, str | None] = {
    "dataloader_progress": None,
    "epoch_loop.state_dict": None,
    "epoch_loop.": "",
    "_results": None,
}


def _renamed(loop: dict[str, Any], names: dict[str, str | None]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for key, value in loop.items():
        prefix = next((old for old in names if key.startswith(old)), None)
        if prefix is None:
            renamed[key] = value
        elif (new := names[prefix]) is not None:
            renamed[new + key[len(prefix) :]] = value
    progress = renamed.get("epoch_loop.automatic_optimization.optim_progress")
    if isinstance(progress, dict):
        progress.pop("optimizer_position", None)
    return renamed


def _counts(completed: int = 0) -> dict[str, int]:
    return {"ready": completed, "completed": completed, "started": completed, "processed": completed}


def _no_steps() -> dict[str, Any]:
    return {
        "step": {"total": {"ready": 0, "completed": 0}, "current": {"ready": 0, "completed": 0}},
        "zero_grad": {
            "total": {"ready": 0, "completed": 0, "started": 0},
            "current": {"ready": 0, "completed": 0, "started": 0},
        },
    }


def _no_loops() -> dict[str, Any]:
    # Every part that a fit loop of 1.6 saved, with nothing counted.
    return {
        "state_dict": {},
        "epoch_loop.state_dict": {},
        "epoch_loop.batch_progress": _no_batches(),
        "epoch_loop.scheduler_progress": {
            "total": {"ready": 0, "completed": 0},
            "current": {"ready": 0, "completed": 0},
        },
        "epoch_loop.batch_loop.optimizer_loop.state_dict": {},
        "epoch_loop.batch_loop.optimizer_loop.optim_progress": {"optimizer": _no_steps()},
        "epoch_loop.batch_loop.manual_loop.state_dict": {},
        "epoch_loop.batch_loop.manual_loop.optim_step_progress": {
            "total": {"ready": 0, "completed": 0},
            "current": {"ready": 0, "completed": 0},
        },
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.epoch_loop.batch_progress": _no_batches(),
    }


def _no_batches() -> dict[str, Any]:
    return {"total": _counts(), "current": _counts(), "is_last_batch": False}


MIGRATIONS: dict[str, Iterable[Step]] = {
    "0.10.0": (nest_callback_states,),
    "1.5.0": (name_callbacks_by_text,),
    "1.6.0": (count_epochs_and_steps,),
    "1.6.5": (count_batches_that_stepped,),
    "1.9.0": (drop_epoch_end_from_keys,),
    "2.0.0": (drop_apex, name_scaler_by_precision, flatten_loops),
}
