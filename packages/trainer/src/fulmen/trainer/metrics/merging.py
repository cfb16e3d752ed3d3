"""The sums that some processes had gathered in an epoch, for another number of processes to go on with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Any]
_JOIN: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "mean": (lambda a, b: a + b, torch.add),
    "sum": (lambda a, b: a + b, torch.add),
    "min": (min, torch.minimum),
    "max": (max, torch.maximum),
}


def share_of(states: Sequence[State], rank: int, num_shares: int) -> State:
    """What process `rank` goes on with: its own state, or its share of those of another number of processes.

    Sums, means and extremes over all processes stay what they were. How two states of a metric object are joined only
    it knows: what further processes had is under "others".

    Args:
        states: What `MetricsBoard.state_dict` gave, of each process then; of those that saw other data.
        rank, num_shares: This process among those that see other data, and how many they are now.
    """
    if len(states) == num_shares:
        return states[rank]
    mine = states[rank::num_shares]
    if not mine:
        return {**states[0], "entries": []}
    entries: dict[str, dict[str, Any]] = {}
    for state in mine:
        for entry in state["entries"]:
            key = repr(entry["call"])
            entries[key] = _joined(entries[key], entry) if key in entries else dict(entry)
    return {**mine[0], "entries": list(entries.values())}


def without_metrics(state: State) -> State:
    """The same for a process in which metric objects see no data: they begin anew, and join what others have."""
    entries = [
        {**entry, "metric": {**entry["metric"], "state": None}} if "metric" in entry else entry
        for entry in state["entries"]
    ]
    return {**state, "entries": entries}


def _joined(one: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    if "metric" in one and "metric" in other:
        mine, state = one["metric"], other["metric"]["state"]
        return {**one, "metric": {**mine, "others": [*mine.get("others", []), state]}}
    if "accumulator" not in one or "accumulator" not in other:
        return one
    a, b = one["accumulator"], other["accumulator"]
    numbers, tensors = _JOIN[one["call"]["reduction"]]
    tensor_a, tensor_b = a["gathered"], b["gathered"]
    both = tensor_a is not None and tensor_b is not None
    gathered = tensors(tensor_a, tensor_b) if both else tensor_b if tensor_a is None else tensor_a
    joined = {
        "gathered": gathered,
        "host": numbers(a["host"], b["host"]),
        "count": a["count"] + b["count"],
        "double": a["double"] or b["double"],
    }
    return {**one, "accumulator": joined}
