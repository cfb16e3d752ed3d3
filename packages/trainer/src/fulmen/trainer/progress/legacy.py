"""Read and write the four-counter form of checkpoints. Pure.

The format keeps, for each loop, how many units were ready, started, processed and completed, in all and in the current
round (layout: `loops` of a checkpoint). We keep a count and a phase; this file is the only place that knows both.
"""

from collections.abc import Mapping
from typing import Any

from fulmen.trainer.progress.counts import EvaluationCounts, FitCounts
from fulmen.trainer.progress.cursor import Cursor, Position, Tally
from fulmen.trainer.progress.phase import Phase

_FOUR = ("ready", "started", "processed", "completed")


def _counters(completed: int, phase: Phase) -> dict[str, int]:
    moved = {"ready": phase >= Phase.READY, "started": phase >= Phase.STARTED, "processed": phase >= Phase.PROCESSED}
    # The order of the keys is the format's.
    return {
        "ready": completed + moved["ready"],
        "completed": completed,
        "started": completed + moved["started"],
        "processed": completed + moved["processed"],
    }


def write_cursor(cursor: Cursor) -> dict[str, dict[str, int]]:
    """The two groups of four counters that stand for a cursor."""
    return {"total": _counters(cursor.total, cursor.phase), "current": _counters(cursor.current, cursor.phase)}


def read_cursor(saved: Mapping[str, Mapping[str, int]]) -> Position:
    """The position that two groups of four counters describe.

    Older runs may hold counters that no run of ours can reach (a skipped batch left `ready` ahead of the others): what
    is not completed counts as one unit in work, as far as it came.

    Raises:
        ValueError: If the counters fall where they must not, for example more completed than ready.
    """
    total, current = saved["total"], saved["current"]
    for group in (total, current):
        counts = [int(group[name]) for name in _FOUR]
        if counts != sorted(counts, reverse=True) or counts[-1] < 0:
            raise ValueError(f"{dict(group)} is no progress: expected ready >= started >= processed >= completed >= 0")
    completed = int(total["completed"])
    begun = sum(int(total[name]) > completed for name in _FOUR[:3])
    return Position(completed, min(int(current["completed"]), completed), Phase(begun))


def _write_tally(tally: Tally, *, names: tuple[str, ...] = ("ready", "completed")) -> dict[str, dict[str, int]]:
    return {"total": dict.fromkeys(names, tally.total), "current": dict.fromkeys(names, tally.current)}


def _read_tally(tally: Tally, saved: Mapping[str, Mapping[str, int]]) -> None:
    total = int(saved["total"]["completed"])
    tally.move_to(total, min(int(saved["current"]["completed"]), total))


def write_evaluation(counts: EvaluationCounts, *, is_last_batch: bool = True) -> dict[str, Any]:
    """The saved form of an evaluation loop; the predict loop has no `is_last_batch`."""
    progress: dict[str, Any] = write_cursor(counts.batch)
    if is_last_batch:
        progress["is_last_batch"] = counts.is_last_batch
    return {"state_dict": {}, "batch_progress": progress}


def write_fit(counts: FitCounts) -> dict[str, Any]:
    """The saved form of the fit loop with all loops inside."""
    batch: dict[str, Any] = write_cursor(counts.batch)
    batch["is_last_batch"] = counts.is_last_batch
    validation = write_evaluation(counts.validation)
    return {
        "state_dict": {},
        "epoch_loop.state_dict": {"_batches_that_stepped": counts.stepped_batches},
        "epoch_loop.batch_progress": batch,
        "epoch_loop.scheduler_progress": _write_tally(counts.scheduler_steps),
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {
                "step": _write_tally(counts.optimizer_steps),
                "zero_grad": _write_tally(counts.zero_grads, names=("ready", "completed", "started")),
            }
        },
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": _write_tally(counts.manual_steps),
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": validation["batch_progress"],
        "epoch_progress": write_cursor(counts.epoch),
    }


def read_evaluation(counts: EvaluationCounts, saved: Mapping[str, Any]) -> None:
    """Move `counts` to what `write_evaluation` wrote."""
    counts.batch.move_to(read_cursor(saved["batch_progress"]))
    counts.is_last_batch = bool(saved["batch_progress"].get("is_last_batch", False))


def read_fit(counts: FitCounts, saved: Mapping[str, Any]) -> None:
    """Move `counts` to what `write_fit` wrote."""
    counts.epoch.move_to(read_cursor(saved["epoch_progress"]))
    counts.batch.move_to(read_cursor(saved["epoch_loop.batch_progress"]))
    counts.is_last_batch = bool(saved["epoch_loop.batch_progress"].get("is_last_batch", False))
    steps = saved["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    _read_tally(counts.optimizer_steps, steps["step"])
    _read_tally(counts.zero_grads, steps["zero_grad"])
    _read_tally(counts.manual_steps, saved["epoch_loop.manual_optimization.optim_step_progress"])
    _read_tally(counts.scheduler_steps, saved["epoch_loop.scheduler_progress"])
    counts.stepped_batches = int(saved["epoch_loop.state_dict"].get("_batches_that_stepped", counts.global_step))
    counts.validation.batch.move_to(read_cursor(saved["epoch_loop.val_loop.batch_progress"]))
    counts.validation.is_last_batch = bool(saved["epoch_loop.val_loop.batch_progress"].get("is_last_batch", False))
