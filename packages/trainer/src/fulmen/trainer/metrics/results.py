"""Every logged value of one stage: what each place of `self.log` gathered, for the step and for the epoch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from fulmen.fabric.rank_zero import warn_once
from fulmen.trainer.metrics.accumulator import ACCUMULATORS, Accumulator, Scalar, wide_tensor
from fulmen.trainer.metrics.log_call import LogCall
from fulmen.trainer.metrics.scalars import metric_result
from fulmen.trainer.stages import Stage


class Phase(Enum):
    """Where in its epoch a stage is."""

    BEFORE = "no batch yet"
    BATCHES = "batches run"
    EPOCH_END = "batches are over, hooks of the epoch's end run"
    CLOSED = "the epoch was published"


class MetricObject(Protocol):
    """The part of a torchmetrics.Metric that is used."""

    device: torch.device
    metric_state: Mapping[str, Any]
    _forward_cache: Any
    _update_count: int
    _computed: Any
    _reductions: Mapping[str, Any]  # of each state: from one tensor of those of all processes to their joint one

    def compute(self) -> Any:
        """The value so far, over all processes."""

    def reset(self) -> None:
        """Forget all."""


class Entry:
    """One place that logs one name, and what it logged.

    A step's value goes through three hands: `pending` (logged, nobody looked), `unsent` (callbacks have seen it, no
    logger has), None. A value must outlive the user's tensor, which may change in place: so it is copied into `slot`,
    which is cheaper than a clone, and read from there when somebody looks. `slot` is as wide as the running sums: to
    convert while copying costs nothing, while adding it costs as much again as the addition.
    """

    __slots__ = (
        "accumulator",
        "arguments",
        "call",
        "device",
        "dtype",
        "epoch_name",
        "final",
        "group",
        "kept",
        "late",
        "metric",
        "narrow",
        "of_batch",
        "on_step",
        "pending",
        "plain_name",
        "slot",
        "step_name",
        "unsent",
        "weighted",
    )

    def __init__(self, call: LogCall, arguments: tuple[Any, ...] | None) -> None:
        self.call = call
        self.arguments = arguments  # as the user wrote them: the fast answer to "is it the same call?"
        self.plain_name, self.step_name, self.epoch_name = call.plain_name, call.step_name, call.epoch_name
        self.on_step = call.on_step
        self.accumulator: Accumulator | None = ACCUMULATORS[call.reduction]() if call.on_epoch else None
        self.weighted = call.on_epoch and call.reduction == "mean"
        self.metric: MetricObject | None = None
        self.kept: dict[str, Any] | None = None  # the state of the metric when its loader ended
        self.slot: Tensor | None = None
        self.narrow = torch.float32  # the dtype of the newest tensor
        # Tensors of this dtype and device may take the fast path; None: none may.
        self.dtype: torch.dtype | None = None
        self.device: torch.device | None = None
        self.group: Any | None = None  # the processes that `sync_dist` joins; None: all
        self.of_batch = True  # logged while a batch was at work?
        self.late = False  # logged after the batches, and to be joined over processes at once?
        self.pending: Scalar | None = None
        self.unsent: Scalar | None = None
        self.final: Scalar | None = None  # the epoch's value where it had to be agreed on with other processes

    def take(self, value: Scalar, weight: float) -> None:
        """Take a value for the step, the epoch or both: the careful path, for whatever `to_scalar` makes."""
        if not isinstance(value, Tensor):
            if self.on_step:
                self.pending = value
            if self.accumulator is not None:
                self.accumulator.add_number(value, weight)
        elif self.call.enable_graph:
            if self.on_step:
                self.pending = value.clone()
            if self.accumulator is not None:
                self.accumulator.add_graph(value, weight)
        else:
            wide = self._ready_for(value).copy_(value.detach())
            if self.on_step:
                self.pending = wide
            if self.accumulator is not None:
                self.accumulator.add(wide, weight)

    def _ready_for(self, value: Tensor) -> Tensor:
        """`slot`, made for values like this one, so that the next may take the fast path."""
        if self.slot is None or self.slot.device != value.device:
            self.slot = wide_tensor(0.0, value.device)
        if self.accumulator is not None:
            self.accumulator.prepare(value)
        self.narrow = value.dtype
        if not self.late:
            self.dtype, self.device = value.dtype, value.device
        return self.slot

    def take_pending(self) -> Scalar | None:
        """The step's value that nobody looked at yet, as one that may be handed out."""
        value = self.pending
        if value is None:
            return None
        self.pending = None
        if isinstance(value, Tensor) and value is self.slot:
            value = value.to(self.narrow, copy=True)
        self.unsent = value
        return value

    @property
    def has_epoch_value(self) -> bool:
        """Is there a value for the epoch?"""
        return self.final is not None or self.has_own_sum

    @property
    def has_own_sum(self) -> bool:
        """Is the epoch's value gathered here, and not by a metric object?"""
        return self.metric is None and self.accumulator is not None and self.accumulator.count > 0

    def epoch_value(self) -> Scalar:
        """The value for the epoch; never talks to other processes."""
        if self.final is not None:
            return self.final
        assert self.accumulator is not None
        return self.accumulator.compute()

    def compute_metric(self) -> None:
        """Ask the metric object for the epoch's value. It may talk to the other processes."""
        if self.metric is None or not self.call.on_epoch:
            return
        if self.call.dataloader_idx is not None:
            # Never from its cache: where one process asks anew, for what another loader left, all have to.
            self.metric._computed = None
        if self.kept is None:
            self.final = metric_result(self.plain_name, self.metric.compute())
            return
        now = _state_of(self.metric)
        _put_state(self.metric, self.kept)
        self.final = metric_result(self.plain_name, self.metric.compute())
        _put_state(self.metric, now)

    def keep_metric(self) -> None:
        """The loader that logs it has ended: what the metric object gathers from now on is of other loaders."""
        if self.metric is not None and self.kept is None:
            self.kept = _copy_of(self.metric)

    def state_dict(self, metric_path: str | None) -> dict[str, Any]:
        """What the rest of the epoch needs, as plain data; `metric_path` says where the metric object is."""
        state: dict[str, Any] = {"call": asdict(self.call)}
        if self.metric is not None:
            state["metric"] = {
                "path": metric_path,
                "state": {name: _plain(value) for name, value in self.metric.metric_state.items()},
                "updates": self.metric._update_count,
            }
        elif self.accumulator is not None:
            state["accumulator"] = self.accumulator.state_dict()
        state["unsent"], state["final"] = _on_cpu(self.unsent), _on_cpu(self.final)
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device, module: torch.nn.Module | None) -> "Entry":
        """The entry that goes on from a state; tensors go to `device`, metric objects are found in `module`."""
        entry = cls(LogCall(**state["call"]), arguments=None)
        if "metric" in state:
            entry.metric = cast("MetricObject", cast("torch.nn.Module", module).get_submodule(state["metric"]["path"]))
            _restore_metric(entry.metric, state["metric"])
        elif entry.accumulator is not None:
            entry.accumulator.load_state_dict(state["accumulator"], device)
        for name in ("unsent", "final"):
            value = state.get(name)
            setattr(entry, name, value.to(device) if isinstance(value, Tensor) else value)
        if isinstance(entry.unsent, Tensor):
            entry.narrow = entry.unsent.dtype
        return entry


def _on_cpu(value: Scalar | None) -> Scalar | None:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    return [item.detach().to("cpu", copy=True) for item in value]


def _state_of(metric: MetricObject) -> dict[str, Any]:
    return {"state": dict(metric.metric_state), "updates": metric._update_count}


def _copy_of(metric: MetricObject) -> dict[str, Any]:
    state = _state_of(metric)
    # Tensors may be added to in place; lists get new items, and are emptied.
    values = {name: list(one) if isinstance(one, list) else one.clone() for name, one in state["state"].items()}
    return {**state, "state": values}


def _restore_metric(metric: MetricObject, saved: Mapping[str, Any]) -> None:
    if saved["state"] is None:
        metric.reset()
        return
    states = [_on_device(state, metric.device) for state in (saved["state"], *saved.get("others", ()))]
    try:
        joined = _joined(states, metric._reductions) if len(states) > 1 else states[0]
    except TypeError as error:
        joined = states[0]
        warn_once(
            f"{type(metric).__name__} ({saved['path']!r}) goes on in this epoch with what one of {len(states)}"
            f" processes had. Fewer read data now, and {error}, so its value of this epoch lacks what the others saw."
            " Give that state one, log numbers instead, or resume at the end of an epoch."
        )
    _put_state(metric, {"state": joined, "updates": saved["updates"]})


def _joined(states: Sequence[Mapping[str, Any]], reductions: Mapping[str, Any]) -> dict[str, Any]:
    """What several processes had gathered, as a metric object joins itself at the end of an epoch."""
    joined: dict[str, Any] = {}
    for name, first in states[0].items():
        values, reduction = [state[name] for state in states], reductions[name]
        if isinstance(first, list):
            joined[name] = [item for value in values for item in value]
        elif reduction is None:
            raise TypeError(f"its state {name!r} has no dist_reduce_fx that joins two")
        else:
            joined[name] = reduction(torch.stack(values))
    return joined


def _on_device(state: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: [item.to(device) for item in value] if isinstance(value, list) else value.to(device)
        for name, value in state.items()
    }


def _put_state(metric: MetricObject, state: Mapping[str, Any]) -> None:
    for name, value in state["state"].items():
        setattr(metric, name, value)
    # torchmetrics has no public way to say that a metric was updated: it would warn, and compute from its cache.
    metric._update_count = state["updates"]
    metric._computed = None


class Results:
    """All entries of one stage.

    Args:
        stage: Which stage.
        num_dataloaders: Where there are several, a name is kept apart for each.
    """

    def __init__(self, stage: Stage | None = None, num_dataloaders: int = 1) -> None:
        self.stage = stage
        self.num_dataloaders = num_dataloaders
        self.training = stage is Stage.TRAIN
        self.phase = Phase.BEFORE
        self.loaders_seen: set[int] = set()  # those of which a batch was at work
        self.entries: list[Entry] = []  # in the order in which they were first logged
        self.stepping: list[Entry] = []  # those of them that keep values of steps
        self.outside: dict[tuple[str, str], Entry] = {}  # those that belong to no loader
        self.of_loader: list[dict[tuple[str, str], Entry]] = [{} for _ in range(num_dataloaders)]

    def enter_loader(self, dataloader_idx: int) -> dict[tuple[str, str], Entry]:
        """A batch of this loader is at work; where its entries are."""
        self.phase = Phase.BATCHES
        self.loaders_seen.add(dataloader_idx)
        if self.num_dataloaders == 1:
            return self.outside
        for entry in self.entries:
            if entry.call.dataloader_idx not in (None, dataloader_idx):
                entry.keep_metric()
        return self.place(dataloader_idx)

    @property
    def saw_all_loaders(self) -> bool:
        """Did every loader give this process a batch? With few samples for many processes, one may go without."""
        return len(self.loaders_seen) == self.num_dataloaders

    def place(self, dataloader_idx: int | None) -> dict[tuple[str, str], Entry]:
        """Where the entries of a loader are; None: of no loader, or of the only one."""
        return self.outside if dataloader_idx is None else self.of_loader[dataloader_idx]

    def add(self, entry: Entry) -> None:
        """Take in a new entry."""
        call = entry.call
        self.place(call.dataloader_idx)[call.hook, call.name] = entry
        self.entries.append(entry)
        if entry.on_step:
            self.stepping.append(entry)

    def learn_metric(self, entry: Entry, metric: MetricObject) -> None:
        """Other processes log `metric` in `entry`; this one saw no batch of its loader, and has what came before it."""
        entry.metric = metric
        loader = entry.call.dataloader_idx
        if loader is None:
            return
        states = {
            one.call.dataloader_idx: one.kept
            for one in self.entries
            if one.metric is metric and one.call.dataloader_idx is not None
        }
        if all(seen < loader for seen in states):
            return  # no later one has added to it
        earlier = [seen for seen in states if seen < loader]
        if earlier:
            entry.kept = states[max(earlier)]
            return
        now = _copy_of(metric)
        metric.reset()
        entry.kept = _copy_of(metric)
        _put_state(metric, now)

    def twins(self, call: LogCall) -> Iterator[LogCall]:
        """Calls of the same name in the same hook for other loaders."""
        for place in (self.outside, *self.of_loader):
            twin = place.get((call.hook, call.name))
            if twin is not None and twin.call.dataloader_idx != call.dataloader_idx:
                yield twin.call

    def clear(self) -> None:
        """Forget all entries; metric objects are reset."""
        for entry in self.entries:
            if entry.metric is not None:
                entry.metric.reset()
        self.entries.clear()
        self.stepping.clear()
        self.outside.clear()
        for entries in self.of_loader:
            entries.clear()

    def epoch_values(self, dataloader_idx: int | None = None) -> dict[str, Scalar]:
        """What loggers get at the end of the epoch: of all loaders, or of one and of no loader."""
        return {
            entry.epoch_name: entry.epoch_value()
            for entry in self.entries
            if entry.call.logger
            and entry.call.on_epoch
            and entry.has_epoch_value
            and (dataloader_idx is None or entry.call.dataloader_idx in (None, dataloader_idx))
        }

    def state_dict(self, module: torch.nn.Module | None) -> dict[str, Any]:
        """What the rest of the epoch needs, as plain data; metric objects are found in `module`."""
        if self.phase not in (Phase.BATCHES, Phase.EPOCH_END):
            return {"entries": []}  # hooks of an epoch's start run again
        paths = {id(part): path for path, part in module.named_modules()} if module is not None else {}
        return {
            "has_ended": self.phase is Phase.EPOCH_END,
            "entries": [
                entry.state_dict(paths.get(id(entry.metric)))
                for entry in self.entries
                if entry.call.hook != "on_train_start" and (entry.metric is None or id(entry.metric) in paths)
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device, module: torch.nn.Module | None) -> None:
        """Go on from a state."""
        for saved in state["entries"]:
            if "metric" not in saved or (
                module is not None and saved["metric"]["path"] in dict(module.named_modules())
            ):
                self.add(Entry.from_state(saved, device, module))
        if state.get("has_ended"):
            self.phase = Phase.EPOCH_END
