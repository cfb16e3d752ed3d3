"""The figures of a forecast, as data and as a table of 80 columns (pure)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

_WIDTH: Final = 80
_SHOWN_SHARDS: Final = 8


@dataclass(frozen=True)
class Shard:
    """One parameter: its shape, and that of the part which rank 0 holds."""

    name: str
    shape: tuple[int, ...]
    part: tuple[int, ...]


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind along one axis, of one process in one optimizer step.

    Attributes:
        operation: "all_gather", "reduce_scatter", "all_reduce", "send" to one other process, ...
        axis: Of the mesh; several joined by " x ".
        num_processes: How many take part in each.
        num_calls: How many there are.
        message_bytes: The whole tensors, added up over the calls.
        sent_bytes: What this process sends, by the usual ring algorithms.
    """

    operation: str
    axis: str
    num_processes: int
    num_calls: int
    message_bytes: int
    sent_bytes: int


@dataclass(frozen=True)
class Forecast:
    """What a configuration would take.

    Attributes:
        strategy, precision: Their names.
        num_nodes, num_processes: Machines, and processes on each.
        mesh: Processes along each axis.
        num_parameters, num_trained: Numbers in the whole module, and those that get gradients.
        shards: Each parameter, the largest first.
        memory_bytes: Of rank 0: "parameters", "buffers", "gradients", "optimizer state", and where a batch was given,
            "activations" (alive when backward begins) and "exchange" (what strategies hold to communicate, at most). Of
            a pipeline, "activations" are the most that its stages keep at one time, and "received" is where they
            receive.
        traffic: The collectives of one optimizer step.
        checkpoint_bytes: Parameters, buffers and optimizer state of the whole module.
        steps_per_epoch: Optimizer steps; None where the number of samples was not given.
        warnings: What the user should look at.
        notes: What the figures do not say.
        context: So many neighbours along the data axis share sequences.
    """

    strategy: str
    precision: str
    num_nodes: int
    num_processes: int
    mesh: Mapping[str, int]
    num_parameters: int
    num_trained: int
    shards: Sequence[Shard]
    memory_bytes: Mapping[str, int]
    traffic: Sequence[Traffic]
    checkpoint_bytes: int
    steps_per_epoch: int | None = None
    warnings: Sequence[str] = ()
    context: int = 1
    notes: Sequence[str] = ()

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self.num_nodes * self.num_processes

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "mesh": dict(self.mesh), "world_size": self.world_size}

    def __str__(self) -> str:
        """A table, 80 columns wide."""
        return "\n".join([*self._head(), *self._shards(), *self._memory(), *self._traffic(), *self._warnings()])

    def _head(self) -> list[str]:
        machines = "1 machine" if self.num_nodes == 1 else f"{self.num_nodes} machines"
        contexts = f"; {self.context} neighbours along data_parallel share sequences" if self.context > 1 else ""
        rows = [
            ("strategy", f"{self.strategy}, precision {self.precision}"),
            (
                "processes",
                f"{self.world_size:,}: {self.num_processes} on {'' if self.num_nodes == 1 else 'each of '}{machines}",
            ),
            ("mesh", " x ".join(f"{axis} {size:,}" for axis, size in self.mesh.items()) + contexts),
            ("parameters", f"{self.num_parameters:,}, of which {self.num_trained:,} are trained"),
            ("checkpoint", size_text(self.checkpoint_bytes)),
        ]
        if self.steps_per_epoch is not None:
            rows.append(("steps per epoch", f"{self.steps_per_epoch:,}"))
        return [
            line
            for name, text in rows
            for line in textwrap.wrap(text, _WIDTH, initial_indent=f"{name:<16} ", subsequent_indent=" " * 17)
        ]

    def _shards(self) -> list[str]:
        heads = ("largest parameters", "shape", "on rank 0")
        shapes = [
            (_shape(one.shape), "whole" if one.part == one.shape else _shape(one.part))
            for one in self.shards[:_SHOWN_SHARDS]
        ]
        # What is left of the line is for the names.
        taken = sum(2 + max(map(len, column)) for column in zip(heads[1:], *shapes, strict=True))
        width = max(min(40, _WIDTH - taken), len(heads[0]))
        rows = [(_end_of(one.name, width), *texts) for one, texts in zip(self.shards, shapes, strict=False)]
        rest = len(self.shards) - len(rows)
        lines = _table(heads, rows, "<<<")
        return ["", *lines, *([f"... and {rest} more"] if rest else [])]

    def _memory(self) -> list[str]:
        rows = [(name, size_text(size)) for name, size in self.memory_bytes.items()]
        rows.append(("together", size_text(sum(self.memory_bytes.values()))))
        return ["", *_table(("memory of rank 0", ""), rows, "<>")]

    def _traffic(self) -> list[str]:
        rows = [
            (
                one.operation,
                one.axis,
                f"{one.num_processes:,}",
                f"{one.num_calls:,}",
                size_text(one.message_bytes),
                size_text(one.sent_bytes),
            )
            for one in self.traffic
        ]
        if not rows and "activations" not in self.memory_bytes:
            return ["", "activations, collectives: not known, as no batch was tried"]
        if not rows:
            return ["", "no collectives"]
        heads = ("collectives of a step", "axis", "processes", "calls", "tensors", "sent")
        return ["", *_table(heads, rows, "<<>>>>")]

    def _warnings(self) -> list[str]:
        lines = [
            textwrap.fill(
                text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
            )
            for start, texts in (("note: ", self.notes), ("warning: ", self.warnings))
            for text in texts
        ]
        return ["", *lines] if lines else []


def size_text(num_bytes: float) -> str:
    """A size, with three digits and a unit.

    >>> size_text(999), size_text(1536), size_text(80 * 2**30)
    ('999 B', '1.50 KiB', '80.0 GiB')
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = 0
    while num_bytes >= 999.5 and power < len(units) - 1:
        num_bytes /= 1024
        power += 1
    digits = 0 if power == 0 else max(0, 2 - int(math.log10(max(num_bytes, 1))))
    return f"{num_bytes:.{digits}f} {units[power]}"


def ring_bytes(operation: str, message_bytes: int, num_processes: int) -> int:
    """What each process sends in a collective, by the algorithms for rings.

    >>> ring_bytes("all_reduce", 100, 4), ring_bytes("all_gather", 100, 4)
    (150, 75)
    """
    if operation == "send":
        return message_bytes
    rounds = 2 if operation == "all_reduce" else 1
    return rounds * message_bytes * (num_processes - 1) // num_processes


def steps_in_epoch(num_samples: int, num_data: int, batch_size: int, accumulate: int) -> int:
    """Optimizer steps of a pass over so many samples.

    Args:
        num_samples: In the data set.
        num_data: Processes that see different data.
        batch_size: Of one process.
        accumulate: Batches for a step; what is left at the end is a step of its own.
    """
    batches = math.ceil(math.ceil(num_samples / num_data) / batch_size)
    return math.ceil(batches / accumulate)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _end_of(text: str, width: int) -> str:
    return text if len(text) <= width else f"...{text[3 - width :]}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
        for row in (heads, *rows)
    ]
    rule = "  ".join("-" * width for width in widths)
    return [line.rstrip() for line in (lines[0], rule, *lines[1:])]
