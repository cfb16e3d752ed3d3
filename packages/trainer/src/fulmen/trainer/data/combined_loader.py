"""CombinedLoader: any nested collection of loaders, iterated as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fulmen.fabric.data.length import sized_len
from fulmen.trainer.data.combine_modes import MODES, Count, Item, check_mode, combined_length
from fulmen.trainer.data.members import Members, resumed
from fulmen.trainer.errors import ConfigurationError


class CombinedLoader(Iterable[Item]):
    """Loaders in a list, tuple, dict or any nesting of them, iterated together or one after the other.

    Iterating gives `(batch, batch_idx, dataloader_idx)`. In the mode "sequential" `batch` is a batch of the loader
    `dataloader_idx`; in the others it is a collection of the shape of `iterables`, and `dataloader_idx` is 0.

    Args:
        iterables: Loaders, or anything that can be iterated again and again.
        mode: "min_size" stops with the shortest, "max_size" with the longest (None for those that have ended),
            "max_size_cycle" with the longest (the others begin again), "sequential" takes one after the other.

    Raises:
        ConfigurationError: For any other mode.

    >>> list(CombinedLoader({"a": [1, 2], "b": [3]}, "max_size"))
    [({'a': 1, 'b': 3}, 0, 0), ({'a': 2, 'b': None}, 1, 0)]
    """

    def __init__(
        self, iterables: Any, mode: Literal["min_size", "max_size_cycle", "max_size", "sequential"] = "min_size"
    ) -> None:
        self._mode = check_mode(mode)
        self._flattened, self._shape = tree_flatten(iterables)
        self._limits: list[Count] | None = None
        self._iterator: Iterator[Item] | None = None
        self._first_batch = 0
        self._rounds_are_done = False
        self._given_before: int | None = None
        self._marks: Sequence[Any] = ()
        self._members: Members | None = None
        self._ended: list[bool] = []  # of "max_size_cycle": which had ended when the iteration under way went on
        self.num_given: int | None = None
        """How many items the iteration under way has given; None if none has begun, or one after the other."""

    @property
    def mode(self) -> str:
        """How the loaders take turns."""
        return self._mode

    @property
    def iterables(self) -> Any:
        """The collection of loaders."""
        return tree_unflatten(self._flattened, self._shape)

    @property
    def flattened(self) -> list[Any]:
        """The loaders in a list; a list of the same length may be put in their place."""
        return self._flattened

    @flattened.setter
    def flattened(self, flattened: list[Any]) -> None:
        self._check_one_each("flattened", flattened)
        self._flattened = list(flattened)

    @property
    def limits(self) -> list[Count] | None:
        """At most how many batches of each loader are used; one number stands for all, None is no limit."""
        return self._limits

    @limits.setter
    def limits(self, limits: Count | Sequence[Count] | None) -> None:
        if isinstance(limits, int | float):
            limits = [limits] * len(self._flattened)
        if limits is not None:
            self._check_one_each("limits", limits)
        self._limits = None if limits is None else list(limits)

    @property
    def sampler(self) -> Any:
        """The samplers, in a collection of the same shape; None where a loader has none."""
        return tree_map(lambda loader: getattr(loader, "sampler", None), self.iterables)

    @property
    def batch_sampler(self) -> Any:
        """The batch samplers, in a collection of the same shape; None where a loader has none."""
        return tree_map(lambda loader: getattr(loader, "batch_sampler", None), self.iterables)

    def skip_to(self, batch: int) -> None:
        """Let the next iteration begin after `batch` items.

        Loaders that can skip do; from the others the batches are taken and dropped.
        """
        self._first_batch = batch

    def keep_rounds(self, given: int | None = None, marks: Sequence[Any] = ()) -> None:
        """The loaders' own states have brought them to their current round: `skip_to` starts from there.

        Args:
            given: How many items had been given when these states were taken: one more than `skip_to` is told where
                the last one was still in work. None: as many as `skip_to` is told.
            marks: What `marks` gave then.
        """
        self._rounds_are_done, self._given_before, self._marks = True, given, marks
        # Until an iteration begins, they are what it would be saved with.
        self._members, self.num_given = None, given

    @property
    def marks(self) -> list[Any]:
        """How far each loader is, where no length says it; as plain data, for `keep_rounds`."""
        return list(self._marks) if self._members is None else self._members.state_dict()

    def reset(self) -> None:
        """Forget the iteration under way; the workers of its loaders end."""
        self._iterator = None

    def __iter__(self) -> CombinedLoader:
        """Begin an iteration; one that is under way ends."""
        self.begin()
        return self

    def begin(self) -> Iterator[Item]:
        """As `iter`, but gives what `next` of this object asks: one call less for each item."""
        self.reset()
        start, self._first_batch = self._first_batch, 0
        items = self._items(start)
        self._rounds_are_done = False
        self._iterator = items if self._mode == "sequential" else self._shaped(items)
        return self._iterator

    def __next__(self) -> Item:
        """The next `(batch, batch_idx, dataloader_idx)`."""
        if self._iterator is None:
            raise _NotIteratingError(
                "next() was called on a CombinedLoader that is not being iterated."
                " It keeps one iteration, and none has begun, or it was reset."
                " Call iter(loader) first."
            )
        return next(self._iterator)

    def __len__(self) -> int:
        """How many items one iteration gives.

        Raises:
            TypeError: Nobody knows, because a loader has no length.
        """
        length = self.length()
        if length is None or math.isinf(length):
            unsized = [type(loader).__name__ for loader in self._flattened if sized_len(loader) is None]
            raise TypeError(f"CombinedLoader(mode={self._mode!r}) has no length: unsized are {', '.join(unsized)}.")
        return int(length)

    def length(self) -> Count | None:
        """As `len`, but None if nobody knows."""
        lengths: list[Count | None] = [sized_len(loader) for loader in self._flattened]
        ended = self._ended if self._taken is None else [taken < (self._given_before or 0) for taken in self._taken]
        if any(ended) and not all(ended):
            # Their rounds may have another length, on another number of processes, and say nothing of the whole.
            lengths = [
                None if length is None else min(length, 1) if over else length
                for length, over in zip(lengths, ended, strict=True)
            ]
        return combined_length(self._mode, lengths, self._limits)

    @property
    def _taken(self) -> list[int] | None:
        """How far each loader is in its round, as the states say that were loaded into all of them; else None."""
        if self._mode != "max_size_cycle" or not self._rounds_are_done or self._given_before is None:
            return None
        taken = [getattr(loader, "saved_batch", None) for loader in self._flattened]
        return None if None in taken or not taken else taken  # type: ignore[return-value]

    def __getstate__(self) -> dict[str, Any]:
        """The loaders and settings, without the iteration under way, which cannot travel to another process."""
        state = {key: value for key, value in vars(self).items() if key not in ("_flattened", "_shape")}
        return {**state, "_iterator": None, "iterables": self.iterables}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put back what `__getstate__` gave."""
        self._flattened, self._shape = tree_flatten(state["iterables"])
        vars(self).update({key: value for key, value in state.items() if key != "iterables"})

    def __repr__(self) -> str:
        return f"CombinedLoader({self.iterables!r}, mode={self._mode!r})"

    def _shaped(self, items: Iterator[Item]) -> Iterator[Item]:
        shape = self._shape
        members = self._members
        for batches, batch_idx, dataloader_idx in items:
            self.num_given = batch_idx + 1
            if members is not None:
                members.note(batch_idx + 1)
            yield tree_unflatten(batches, shape), batch_idx, dataloader_idx

    def _items(self, start: int) -> Iterator[Item]:
        loaders, combine = self._flattened, MODES[self._mode]
        limits = self._limits or [math.inf] * len(loaders)
        lengths = [sized_len(loader) for loader in loaders]
        can_skip = all(hasattr(loader, "skip_to") for loader in loaders)
        self._members = None
        self._ended = []
        if None in lengths and self._limits is None and self._mode != "sequential":
            members = resumed(loaders, start, self._marks) if self._rounds_are_done else None
            self._marks = ()
            if members is not None or start == 0:
                self._members = members = members or Members(loaders)
                ended = [member.has_ended for member in members.members]
                how: dict[str, Any] = {"ended": ended} if self._mode == "max_size_cycle" else {}
                return combine(members.members, limits, first_idx=start, **how)
        if start == 0 or None in lengths or self._limits is not None or not can_skip:
            for loader in loaders if self._rounds_are_done else ():
                if hasattr(loader, "skip_to"):
                    loader.skip_to(0)  # not to behind the batch at which the state was saved
            return _dropping(combine(loaders, limits), start)
        return self._skipped(combine, [length or 0 for length in lengths], limits, start)

    def _skipped(
        self, combine: Callable[..., Iterator[Item]], lengths: list[int], limits: list[Count], start: int
    ) -> Iterator[Item]:
        loaders = self._flattened
        if self._mode == "sequential":
            index = 0
            while index < len(loaders) and start >= lengths[index]:
                start -= lengths[index]
                index += 1
            if index < len(loaders):
                loaders[index].skip_to(start)
            return combine(loaders, limits, first=(index, start))
        if self._mode != "max_size_cycle":
            for loader, length in zip(loaders, lengths, strict=True):
                loader.skip_to(min(start, length))
            return combine(loaders, limits, first_idx=start)
        if 0 in lengths:
            return iter(())
        taken = self._taken
        if taken is not None and self._given_before is not None:
            in_work = self._given_before - start  # for the batch that was, all were asked
            for loader, count in zip(loaders, taken, strict=True):
                loader.skip_to(count - in_work)
            self._ended = [start > count - in_work for count in taken]
            return combine(loaders, limits, ended=self._ended, first_idx=start)
        ended = []
        for loader, length in zip(loaders, lengths, strict=True):
            # Behind the last batch of a round, it has still to be asked for the end of it.
            rounds, place = divmod(start - 1, length)
            if self._rounds_are_done and (self._given_before or 0) > start and start % length == 0:
                rounds, place = rounds + 1, -1  # and has been, for the batch in work
            # Each finished round drew its own order: draw it again, without loading what it ordered.
            for _ in range(0 if self._rounds_are_done else rounds):
                loader.skip_to(length)
                for _ in loader:
                    pass
            loader.skip_to(place + 1)
            ended.append(rounds > 0)
        return combine(loaders, limits, ended=ended, first_idx=start)

    def _check_one_each(self, name: str, values: Sequence[Any]) -> None:
        if len(values) != len(self._flattened):
            raise ConfigurationError(
                f"CombinedLoader.{name} was given {len(values)} values for {len(self._flattened)} loaders."
                " Each value belongs to the loader at its place."
                f" Pass {len(self._flattened)} values, in the order of `CombinedLoader.flattened`."
            )


class _NotIteratingError(ConfigurationError, RuntimeError):
    """next() without iter()."""


def _dropping(items: Iterator[Item], count: int) -> Iterator[Item]:
    next(islice(items, count, count), None)
    return items
