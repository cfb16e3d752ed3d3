"""Does the loss jump?"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fulmen.fabric.arguments import check_amount, check_count, check_flag, check_location
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.filesystem import atomic_open, join


class TrainingSpikeException(RuntimeError):
    """The loss jumped.

    Args:
        batch_idx: In which batch.
    """

    def __init__(self, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(f"Training spike detected in batch {batch_idx}", *args, **kwargs)
        self.batch_idx = batch_idx

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an error is made anew from its message; it travels between processes.
        return type(self), (self.batch_idx, *self.args[1:])


class SpikingRun(Protocol):
    """What `SpikeDetection` needs of a Fabric."""

    @property
    def global_rank(self) -> int:
        """Which process this is."""

    @property
    def strategy(self) -> Any:
        """Its `reduce_boolean_decision` is asked."""


class SpikeDetection:
    """Ends a run whose loss jumps, and writes down the batches that did it, so that the next run can leave them out.

    A loss spikes if it is worse than the last one and, by both tolerances, far from the mean of the latest.

    Args:
        mode: "min" if small losses are good, "max" if large ones are.
        window: How many losses the mean is taken over.
        warmup: So many batches at the begin never spike.
        atol: A spike differs by this at least; None for no such limit.
        rtol: A spike differs by this part of the mean at least; None for no such limit.
        exclude_batches_path: A JSON file of batch numbers, or the folder for `skip_batches.json`. None takes the
            folder in which the run is.
        finite_only: A loss that is NaN or infinite is a spike.

    Raises:
        ConfigurationError: If an argument is out of range.
    """

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 1,
        atol: float | None = None,
        rtol: float | None = 2.0,
        exclude_batches_path: str | Path | None = None,
        finite_only: bool = True,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigurationError(
                f"SpikeDetection(mode={mode!r}) is unknown. Losses are good when they are small or when they are large."
                " Pass 'min' or 'max'."
            )
        check_count(self, "window", window, "A loss is compared with the mean of so many before it.")
        check_count(self, "warmup", warmup, "So many batches at the begin never spike.", lowest=0)
        check_amount(self, "atol", atol, "A spike differs by this at least.")
        check_amount(self, "rtol", rtol, "A spike differs by this part of the mean at least.")
        if exclude_batches_path is not None:
            check_location(self, "exclude_batches_path", exclude_batches_path, "Batches that spiked are written there.")
        check_flag(self, "finite_only", finite_only)
        self.mode = mode
        self.window = window
        self.warmup = warmup
        self.atol = atol
        self.rtol = rtol
        self.exclude_batches_path = None if exclude_batches_path is None else os.fspath(exclude_batches_path)
        self.finite_only = finite_only
        self.last_val: float | None = None
        self.bad_batches: list[int] = []
        self._latest: deque[float] = deque(maxlen=window)

    @property
    def running_mean(self) -> float | None:
        """The mean of the latest losses; None before the first."""
        return math.fsum(self._latest) / len(self._latest) if self._latest else None

    @torch.no_grad()
    def on_train_batch_end(self, fabric: SpikingRun, loss: Tensor, batch: Any, batch_idx: int) -> None:
        """Look at one loss; all processes call it. Reads the loss from its device, and asks the other processes.

        Raises:
            TrainingSpikeException: On all processes, if the loss of one of them jumped.
        """
        value = float(loss.detach().float().mean()) if loss.numel() != 1 else loss.item()
        jumped = batch_idx >= self.warmup and self._is_spike(value)
        if fabric.strategy.reduce_boolean_decision(jumped, all=False):
            self._handle_spike(fabric, batch_idx)
        elif math.isfinite(value):
            self._latest.append(value)
            self.last_val = value

    def _is_spike(self, value: float) -> bool:
        if not math.isfinite(value):
            return self.finite_only
        mean = self.running_mean
        if mean is None or self.last_val is None:
            return False
        is_worse = value > self.last_val if self.mode == "min" else value < self.last_val
        difference = abs(value - mean)
        is_far = self.atol is None or difference >= abs(self.atol)
        return is_worse and is_far and (self.rtol is None or difference >= abs(self.rtol * mean))

    def _handle_spike(self, fabric: SpikingRun, batch_idx: int) -> None:
        # The batch may be bad itself, or the one before has spoiled the weights.
        self.bad_batches += [batch_idx - 1, batch_idx] if batch_idx else [batch_idx]
        if fabric.global_rank == 0:
            with atomic_open(self._path(), "w") as file:
                json.dump(self.bad_batches, file, indent=4)
        raise TrainingSpikeException(batch_idx=batch_idx)

    def _path(self) -> str:
        path = os.getcwd() if self.exclude_batches_path is None else self.exclude_batches_path
        return path if path.endswith(".json") else join(path, "skip_batches.json")

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs: numbers, lists and texts."""
        return {
            "last_val": self.last_val,
            "latest": list(self._latest),
            "window": self.window,
            "mode": self.mode,
            "warmup": self.warmup,
            "atol": self.atol,
            "rtol": self.rtol,
            "bad_batches": list(self.bad_batches),
            "bad_batches_path": self.exclude_batches_path,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.last_val = state_dict["last_val"]
        self.window = state_dict.get("window", self.window)
        # Checkpoints of PyTorch Lightning hold the state of a metric of torchmetrics instead.
        self._latest = deque(state_dict.get("latest", ()), maxlen=self.window)
        self.mode = state_dict["mode"]
        self.warmup = state_dict["warmup"]
        self.atol = state_dict["atol"]
        self.rtol = state_dict["rtol"]
        self.bad_batches = list(state_dict["bad_batches"])
        self.exclude_batches_path = state_dict["bad_batches_path"]
