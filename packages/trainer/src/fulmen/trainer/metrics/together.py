"""The values of one stage over all processes: what is joined at a logging point, and what at the end of the stage."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fulmen.fabric.rank_zero import PossibleUserWarning, warn_once
from fulmen.trainer.errors import MisconfigurationException
from fulmen.trainer.metrics.accumulator import wide_tensor
from fulmen.trainer.metrics.agreement import Part, Reducer, disagreement, in_same_order, join
from fulmen.trainer.metrics.log_call import LogCall
from fulmen.trainer.metrics.results import Entry, Results
from fulmen.trainer.metrics.scalars import to_floats

_IN_PYTHON: dict[str, Callable[[Iterable[float]], float]] = {"mean": fmean, "sum": sum, "min": min, "max": max}
Row = tuple[int, dict[str, float]]


class Together:
    """Joins what was logged with `sync_dist=True`; there is one where a run has several processes.

    All processes call each method at the same moments. Nothing is sent between them.

    Args:
        reducer: The processes.
        device: Where collectives work.
        module: Where metric objects are found again by name.
    """

    def __init__(self, reducer: Reducer, device: torch.device, module: torch.nn.Module | None) -> None:
        self._reducer = reducer
        self._device = device
        self._module = module
        self._held: list[tuple[Entry, int, int, float | Tensor]] = []  # of which entry, batch and step

    def join_step(self, fresh: Sequence[Entry]) -> list[Entry]:
        """In training: the newest values of a step, joined. Called also where nothing was logged.

        Returns:
            The entries whose `unsent` is now that of all processes.
        """
        asked = [entry for entry in in_same_order(fresh) if _joins_steps(entry)]
        fused = [entry for entry in asked if entry.group is None]
        parts = [_step_part(entry, self._device) for entry in fused]
        for entry, [value] in zip(fused, join(parts, self._reducer, self._device) or [], strict=True):
            entry.unsent = value.to(entry.narrow)
        for entry in asked:
            if entry.group is not None:
                [value] = _step_part(entry, self._device).values
                entry.unsent = self._reducer.reduce(value, group=entry.group, reduce_op=entry.call.reduction)
        return asked

    def hold(self, fresh: Sequence[Entry], batch_idx: int, step: int) -> None:
        """In evaluation: keep the values of a step until the end. Processes may have different numbers of batches."""
        for entry in fresh:
            if _joins_steps(entry) and entry.unsent is not None:
                self._held.append((entry, batch_idx, step, entry.unsent))
                entry.unsent = None

    def join_epoch(self, results: Results) -> None:
        """The values of an epoch, and the names of metric objects, which then join themselves.

        Each entry that is joined gets its `final` value.
        """
        asked = in_same_order([entry for entry in results.entries if _joins_epochs(entry)])
        _tell_of_own_values(results.entries)
        fused = [entry for entry in asked if entry.group is None or entry.metric is not None]
        parts = [_epoch_part(entry, self._device) for entry in fused]
        joined = join(parts, self._reducer, self._device, is_whole=results.training or results.saw_all_loaders)
        if joined is None:
            joined, fused = self._join_one_by_one(results)
        for entry, values in zip(fused, joined, strict=True):
            if values and entry.accumulator is not None:
                entry.final = entry.accumulator.from_wide(values)
        self._join_groups([entry for entry in asked if entry not in fused])
        for entry in fused:  # in the same order on all processes: they talk to each other
            entry.compute_metric()

    def join_late(self, entries: Sequence[Entry]) -> None:
        """What hooks of the epoch's end logged: joined at once, for callbacks look at it next; or nothing more came."""
        fused = [entry for entry in entries if entry.group is None]
        parts = [_epoch_part(entry, self._device) for entry in fused]
        for entry, values in zip(fused, join(parts, self._reducer, self._device) or [], strict=True):
            assert entry.accumulator is not None
            entry.final = entry.accumulator.from_wide(values)
        self._join_groups([entry for entry in entries if entry.group is not None])

    def _join_groups(self, entries: Sequence[Entry]) -> None:
        """Those that some of the processes join: one collective for each value."""
        for entry in entries:
            if entry.accumulator is not None:
                kind, own = entry.accumulator.collective, entry.accumulator.wide(self._device)
                entry.final = entry.accumulator.from_wide(
                    [self._reducer.reduce(value, group=entry.group, reduce_op=kind) for value in own]
                )

    def rows_of_steps(self, results: Results) -> list[Row]:
        """What was held, joined batch by batch over the processes that had this batch; in the order of batches."""
        held, self._held = self._held, []
        if results.training or not any(_joins_steps(entry) for entry in results.entries):
            return []
        floats = to_floats({str(number): value for number, (*_, value) in enumerate(held)})
        own = [
            (entry.step_name, entry.call.reduction, batch_idx, float(value))
            for (entry, batch_idx, _, _), value in zip(held, floats.values(), strict=True)
        ]
        found: dict[tuple[str, int], list[float]] = defaultdict(list)
        kinds: dict[str, str] = {}
        for of_process in self._reducer.gather_objects(own):
            for name, kind, batch_idx, value in of_process:
                found[name, batch_idx].append(value)
                kinds[name] = kind
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for entry, batch_idx, step, _ in held:
            name = entry.step_name
            value = _IN_PYTHON[kinds[name]](found[name, batch_idx])
            if entry.call.logger:
                rows[step][name] = value
            entry.unsent = value
        return sorted(rows.items())

    def _join_one_by_one(self, results: Results) -> tuple[list[list[Tensor]], list[Entry]]:
        """Where some process saw no batch of some loader: it learns what the others logged, and has their values.

        Returns:
            The values of entries that are joined, and these entries, in the same order on all processes.
        """
        own = [self._described(entry) for entry in results.entries if entry.group is None or entry.metric is not None]
        told = self._reducer.gather_objects((sorted(results.loaders_seen), own))
        by_text: dict[str, list[_Described]] = defaultdict(list)
        expected: dict[str, set[int]] = {}
        for _, described in told:
            for one in described:
                by_text[one.text].append(one)
                if one.is_joined:
                    expected[one.text] = {
                        rank for rank, (seen, _) in enumerate(told) if not one.of_batch or one.loader in seen
                    }
        names = [{one.text for one in described} for _, described in told]
        if any(text not in names[rank] for text, ranks in expected.items() for rank in ranks):
            raise MisconfigurationException(disagreement(expected, names))
        mine = {self._described(entry).text: entry for entry in results.entries}
        joined: list[list[Tensor]] = []
        entries: list[Entry] = []
        for text in sorted(by_text):
            first = by_text[text][0]
            entry = mine.get(text) or self._learned(results, first)
            if not first.is_joined:
                continue
            columns = zip(*(one.values for one in by_text[text]), strict=True)
            in_python = _IN_PYTHON.get(first.kind, fmean)
            joined.append([wide_tensor(in_python(column), self._device) for column in columns])
            entries.append(entry)
        return joined, entries

    def _described(self, entry: Entry) -> "_Described":
        joins = _joins_epochs(entry)
        part = _epoch_part(entry, self._device)
        path = None
        if entry.metric is not None and self._module is not None:
            path = next((path for path, found in self._module.named_modules() if found is entry.metric), None)
        plain = None
        if not joins and entry.call.on_epoch and entry.has_epoch_value:
            plain = float(entry.epoch_value())
        return _Described(
            part.text,
            asdict(entry.call),
            part.kind,
            [float(value) for value in part.values],
            path,
            plain,
            is_joined=joins,
            of_batch=entry.of_batch,
            double=entry.accumulator is not None and entry.accumulator.dtype is torch.float64,
        )

    def _learned(self, results: Results, told: "_Described") -> Entry:
        entry = Entry(LogCall(**told.call), arguments=None)
        entry.final = told.plain
        if told.metric_path is not None and self._module is not None:
            found: Any = self._module.get_submodule(told.metric_path)
            results.learn_metric(entry, found)
        if entry.accumulator is not None and told.double:
            entry.accumulator.dtype = torch.float64
        results.add(entry)
        return entry


@dataclass(frozen=True, slots=True)
class _Described:
    """An entry as one process tells another of it."""

    text: str
    call: dict[str, Any]
    kind: str
    values: list[float]
    metric_path: str | None
    plain: float | None
    is_joined: bool
    of_batch: bool
    double: bool

    @property
    def loader(self) -> int:
        """The loader whose batches log it; 0 is also the only one."""
        return int(self.call["dataloader_idx"] or 0)


def _tell_of_own_values(entries: Iterable[Entry]) -> None:
    own = [entry.plain_name for entry in entries if entry.accumulator is not None and entry.metric is None]
    joined = {entry.plain_name for entry in entries if _joins_epochs(entry) or entry.call.rank_zero_only}
    names = [name for name in dict.fromkeys(own) if name not in joined]
    if names:
        shown = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
        warn_once(
            f"self.log({shown}) was called without sync_dist=True, in several processes. What is shown and logged for"
            " the epoch is the value of rank 0, which saw its share of the data only. Pass sync_dist=True to have that"
            " of all, or rank_zero_only=True if this is meant.",
            category=PossibleUserWarning,
        )


def _joins_steps(entry: Entry) -> bool:
    return entry.on_step and entry.call.sync_dist and entry.metric is None


def _joins_epochs(entry: Entry) -> bool:
    """Does it take part at the end: with its sum, as a metric object, or only with its name?"""
    if entry.metric is not None:
        return entry.call.on_epoch
    return entry.call.sync_dist


def _epoch_part(entry: Entry, device: torch.device) -> Part:
    name, hook = entry.plain_name, entry.call.hook
    if entry.metric is not None:
        return Part(name, hook, "a metric object")
    if entry.accumulator is None:
        return Part(name, hook, f"{entry.call.reduction} of steps")
    return Part(name, hook, entry.accumulator.collective, entry.accumulator.wide(device))


def _step_part(entry: Entry, device: torch.device) -> Part:
    value = entry.unsent
    assert value is not None
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, device=device)
    return Part(entry.step_name, entry.call.hook, entry.call.reduction, [tensor.detach()])
