"""One iteration over a loader: how it began, how far it is, and from what its newest batch was made."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fulmen.fabric.data.generators import GlobalGenerators, generator_state
from fulmen.fabric.data.position import Position
from fulmen.fabric.data.worker_seeds import Givers, reads_again
from fulmen.fabric.seeding import isolate_rng


@dataclass(slots=True)
class Pass:
    """One iteration over the loader.

    Args:
        epoch: Of which epoch.
        place: Where it is, when it begins.
        is_dealt: Are the units dealt out to processes by us?
        order_rng: The random state of a lone process whose order several go on with.
        reuses_workers: Did it begin with workers of an earlier iteration?
        num_workers: How many workers load.
        rng: The global generators when it began.
        generators: Those of the loader's parts when it began.
        stateful: The states of parts that keep their own, when it began.
        given: How many batches it has given.
        is_finished: Was it read to its end?
        snapshots: The last states of a dataset or loader that keeps its own: the number of batches given, the state,
            and who had given them.
        givers: Which worker has given how many batches, where that is needed to go on.
        made_from: The generators, global ones and those of the loader, before the newest batch was made.
        unread: What goes on from a state of the dataset or loader, until the first batch of it is asked for.
    """

    epoch: int
    place: Position
    is_dealt: bool
    order_rng: dict[str, Any] | None
    reuses_workers: bool
    num_workers: int
    rng: dict[str, Any] | GlobalGenerators
    generators: list[Any]
    stateful: dict[str, Any]
    given: int = 0
    is_finished: bool = False
    snapshots: deque[tuple[int, Any, Any]] = field(default_factory=lambda: deque(maxlen=2))
    givers: Givers | None = None
    made_from: tuple[GlobalGenerators, list[Any]] | None = None
    unread: Iterator[Any] | None = None

    def note(self, generators: list[Any]) -> None:
        """A batch is about to be made."""
        self.made_from = (GlobalGenerators(), [generator_state(generator) for generator in generators])

    def note_and_tell(self, generators: list[Any], hear: Callable[[Any], Any] | None, indices: Any) -> None:
        """A batch is about to be made from `indices`, which `hear` wants to know."""
        self.note(generators)
        if hear is not None:
            hear(indices)

    def snapshot(self, given: int, keeper: Any) -> tuple[int, Any, Any]:
        """The state of `keeper` after `given` batches."""
        return given, keeper.state_dict(), None if self.givers is None else self.givers.state_dict()

    def restore(self, keeper: Any, snapshot: Sequence[Any]) -> int:
        """Give `keeper` back its state; how many batches had been given then?"""
        self.given, state, *givers = snapshot
        self.givers = None
        if givers and givers[0]:
            self.givers = Givers(**givers[0])
            self.givers.read_again = reads_again(state)
        keeper.load_state_dict(state)
        return self.given

    def drop_unread(self) -> None:
        """Nobody asked for a batch of what went on from a state: let that state be used up, or it would be used later.

        Many a dataset takes it when its generator runs for the first time.
        """
        if self.unread is not None:
            with isolate_rng(include_cuda=False):
                next(self.unread, None)
            self.unread = None

    def state_dict(self) -> dict[str, Any]:
        """All but how far it is, as plain data."""
        return {
            "epoch": self.epoch,
            "start": self.place.start,
            "before": self.place.before,
            "world_size": self.place.world_size,
            "batch_size": self.place.batch_size,
            "is_dealt": self.is_dealt,
            "order_rng": self.order_rng,
            "reuses_workers": self.reuses_workers,
            "num_workers": self.num_workers,
            "rng": self.rng.plain() if isinstance(self.rng, GlobalGenerators) else self.rng,
            "generators": self.generators,
            "stateful": self.stateful,
            "snapshots": [list(snapshot) for snapshot in self.snapshots],
            "made_from": None if self.made_from is None else [self.made_from[0].plain(), self.made_from[1]],
        }


def usable_snapshots(saved: dict[str, Any], skip: int, *, ends_itself: bool) -> list[Sequence[Any]]:
    """The states from before batch `skip`, and of a loader that has ended one from before its end, if there is one."""
    usable = [snapshot for snapshot in saved["snapshots"] if snapshot[0] <= skip]
    # Restored at its end it would begin anew with its dataset still there: its last batch is read again, and its end.
    earlier = [snapshot for snapshot in usable if snapshot[0] < saved["batch"]]
    return earlier if ends_itself and saved["is_finished"] and earlier else usable


def saved_place(saved: dict[str, Any], number: int) -> Position:
    """The place behind `number` batches of a saved iteration."""
    batch = max(number - saved["before"], 0)
    return Position(saved["start"], batch, saved["world_size"], saved["batch_size"], saved["before"])
