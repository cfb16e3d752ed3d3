"""Samples, batches, items and FLOPs per second, over a window of the latest updates."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import Module

from fulmen.fabric.arguments import check_amount, check_count, check_function, check_text
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.measure.device_flops import get_available_flops
from fulmen.fabric.rank_zero import rank_zero_only


class _Update(NamedTuple):
    time: float  # seconds
    batches: int
    samples: int
    lengths: int | None
    flops: int | None


class Throughput:
    """Rates of a training loop, from totals that the loop counts.

    `compute` gives the totals, and from the time when the window is full these rates over it, each per second:

    | name | counts |
    | --- | --- |
    | `device/batches_per_sec`, `device/samples_per_sec` | what one device did |
    | `device/items_per_sec` | `lengths`, such as tokens |
    | `device/flops_per_sec`, `device/mfu` | `flops`, and their part of `available_flops` |
    | the same without `device/` | what all devices did, if there are several (not for `mfu`) |

    Args:
        available_flops: What one device can do at best, in FLOPs per second.
        world_size: How many devices do the same work.
        window_size: Over how many updates rates are taken; at least 2.
        separator: What stands between `device` and the rest of a name.

    Raises:
        ArgumentTypeError: If an argument has another type.
        ConfigurationError: If the window or the world is too small.
    """

    def __init__(
        self,
        available_flops: float | None = None,
        world_size: int = 1,
        window_size: int = 100,
        separator: str = "/",
    ) -> None:
        check_amount(self, "available_flops", available_flops, "It is what one device can do at best.")
        check_count(self, "world_size", world_size, "It is the number of devices that do the same work.")
        check_count(self, "window_size", window_size, "A rate is a difference between two updates or more.", lowest=2)
        check_text(self, "separator", separator, "It stands between `device` and a rate.", may_be_none=False)
        self.available_flops = available_flops
        self.world_size = world_size
        self.separator = separator
        self._window: deque[_Update] = deque(maxlen=window_size)

    def update(
        self, *, time: float, batches: int, samples: int, lengths: int | None = None, flops: int | None = None
    ) -> None:
        """Take in the counts of one device.

        Args:
            time: Seconds since the begin.
            batches: Batches since the begin.
            samples: Samples since the begin.
            lengths: Items since the begin, such as tokens; in every update or in none.
            flops: FLOPs since the last update; in every update or in none.

        Raises:
            ConfigurationError: If a total shrinks, or counts contradict each other.
        """
        new = _Update(time, batches, samples, lengths, flops)
        _check_counts(new)
        if self._window:
            _check_follows(self._window[-1], new)
        self._window.append(new)

    def compute(self) -> dict[str, int | float]:
        """Totals by name, and rates once the window is full; see the class."""
        if not self._window:
            return {}
        last = self._window[-1]
        metrics: dict[str, int | float] = {"time": last.time, "batches": last.batches, "samples": last.samples}
        if last.lengths is not None:
            metrics["lengths"] = last.lengths
        first = self._window[0]
        seconds = last.time - first.time
        if len(self._window) < (self._window.maxlen or 0) or seconds <= 0:
            return metrics
        rates = {
            "batches_per_sec": (last.batches - first.batches) / seconds,
            "samples_per_sec": (last.samples - first.samples) / seconds,
        }
        if last.lengths is not None and first.lengths is not None:
            rates["items_per_sec"] = (last.lengths - first.lengths) / seconds
        if last.flops is not None:
            # Those of the first update were done before its time.
            rates["flops_per_sec"] = (sum(each.flops or 0 for each in self._window) - (first.flops or 0)) / seconds
        metrics |= {f"device{self.separator}{name}": rate for name, rate in rates.items()}
        if self.world_size > 1:
            metrics |= {name: rate * self.world_size for name, rate in rates.items()}
        if "flops_per_sec" in rates and self.available_flops:
            metrics[f"device{self.separator}mfu"] = rates["flops_per_sec"] / self.available_flops
        return metrics

    def reset(self) -> None:
        """Forget all updates."""
        self._window.clear()


def _check_counts(new: _Update) -> None:
    if new.samples < new.batches:
        raise ConfigurationError(
            f"Throughput.update(samples={new.samples}, batches={new.batches}) has more batches than samples. A batch"
            " holds one sample at least, and both are totals since the begin. Pass the number of all samples so far."
        )
    if new.lengths is not None and new.lengths < new.samples:
        raise ConfigurationError(
            f"Throughput.update(lengths={new.lengths}, samples={new.samples}) has more samples than items. A sample"
            " holds one item at least, and both are totals since the begin. Pass the number of all items so far."
        )


def _check_follows(last: _Update, new: _Update) -> None:
    for name, before, now in zip(_Update._fields, last, new, strict=True):
        if (before is None) != (now is None):
            raise ConfigurationError(
                f"Throughput.update({name}={now!r}) follows an update with {name}={before!r}. A rate needs the value in"
                f" all updates of its window. Pass {name} always or never, or call reset() between."
            )
        if name != "flops" and now is not None and before is not None and now < before:
            raise ConfigurationError(
                f"Throughput.update({name}={now!r}) is less than the {before!r} of the update before. It is a total"
                " since the begin, which cannot shrink. Pass the total, or call reset() when you begin anew."
            )


class MeasuredRun(Protocol):
    """What `ThroughputMonitor` needs of a Fabric."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""

    @property
    def world_size(self) -> int:
        """How many processes there are."""

    @property
    def strategy(self) -> Any:
        """Its `precision` says in which type products are computed, its `distributed_sampler_kwargs` who sees what."""

    def log_dict(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send metrics to the loggers."""


class ThroughputMonitor(Throughput):
    """`Throughput` of a Fabric: knows its device and its processes, and logs. On ranks other than zero it does nothing.

    Processes that split tensors, a sequence or stages among them work on the same batches. They stand for one device:
    count whole batches, with all of their FLOPs; `available_flops` are what all of them can do.

    Args:
        fabric: Must be launched.
        kwargs: As for `Throughput`, but for `available_flops` and `world_size`, which come from the Fabric.
    """

    def __init__(self, fabric: MeasuredRun, **kwargs: Any) -> None:
        available_flops = get_available_flops(fabric.device, fabric.strategy.precision.compute_dtype)
        sharing = fabric.strategy.distributed_sampler_kwargs or {}
        world_size = int(sharing.get("num_replicas", fabric.world_size))
        if available_flops is not None:
            available_flops *= fabric.world_size // world_size
        super().__init__(available_flops=available_flops, world_size=world_size, **kwargs)
        self._fabric = fabric
        self.step = -1

    @rank_zero_only
    def update(
        self, *, time: float, batches: int, samples: int, lengths: int | None = None, flops: int | None = None
    ) -> None:
        """See `Throughput.update`."""
        super().update(time=time, batches=batches, samples=samples, lengths=lengths, flops=flops)

    def compute(self) -> dict[str, int | float]:
        """See `Throughput.compute`; empty on ranks other than zero."""
        return super().compute() if rank_zero_only.rank == 0 else {}

    def compute_and_log(self, step: int | None = None, **kwargs: Any) -> dict[str, int | float]:
        """`compute(**kwargs)`, and send the result to the loggers of the Fabric.

        Args:
            step: Of the loggers; None counts the calls, from 0 or on from the last step given.
        """
        self.step = self.step + 1 if step is None else step
        metrics = self.compute(**kwargs)
        if rank_zero_only.rank == 0:
            self._fabric.log_dict(metrics=metrics, step=self.step)
        return metrics


def measure_flops(
    model: Module, forward_fn: Callable[[], Tensor], loss_fn: Callable[[Tensor], Tensor] | None = None
) -> int:
    """The FLOPs of one forward, and with a loss of its backward too. Parameters keep their gradients of before.

    A model on the "meta" device is measured without computing anything.

    Args:
        model: Whose operations are counted.
        forward_fn: Calls the model on a batch.
        loss_fn: The loss of what `forward_fn` returned.

    Raises:
        ArgumentTypeError: If one of them is no module or no function.
    """
    if not isinstance(model, Module):
        raise ArgumentTypeError(
            f"measure_flops(model={model!r}) got no module. Its operations are counted while `forward_fn` runs."
            " Pass the module first, and then a function that calls it on a batch."
        )
    if not callable(forward_fn):
        raise ArgumentTypeError(
            f"measure_flops(forward_fn={forward_fn!r}) got no function. It calls the model on a batch."
            " Pass one without parameters, as in `lambda: model(batch)`."
        )
    check_function("measure_flops", "loss_fn", loss_fn, "It gets what `forward_fn` returned.")
    from torch.utils.flop_counter import FlopCounterMode

    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None  # backward would add to the tensor that is there
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            output = forward_fn()
            if loss_fn is not None:
                loss_fn(output).backward()
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
    return int(counter.get_total_flops())
