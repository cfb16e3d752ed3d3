"""The next batch, and was it the last?

Knows nothing of what a batch is and where it goes. This is the hot path: one `next` costs one method call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

from fulmen.fabric.data.length import sized_len
from fulmen.trainer.data.combined_loader import CombinedLoader
from fulmen.trainer.errors import ConfigurationError

_NOTHING = object()


class Fetcher(Iterator[Any]):
    """Iterates a source of batches up to a limit.

    Iterating gives the batches as the source gives them, with one exception: of a `CombinedLoader` that is not
    sequential it gives the combined batch alone. With `indexed=True` it is always `(batch, batch_idx, dataloader_idx)`.

    When the limit is reached the source is not touched again. When a source ends by itself, it is asked once more, as
    a `for` loop does, so that whatever it does at its end happens.

    Args:
        source: A view of a loader, a `CombinedLoader`, or any iterable.
        limit: At most how many batches, counted from the begin of the epoch; a list is one for each loader of a
            `CombinedLoader`.
        start: How many batches of this epoch are done already; only the first iteration leaves them out. A source
            with `skip_to` is told, from any other they are taken and dropped.
        indexed: See above; None is True for a sequential `CombinedLoader` only.
    """

    def __init__(
        self,
        source: Iterable[Any],
        limit: int | float | Sequence[int | float] = math.inf,
        *,
        start: int = 0,
        indexed: bool | None = None,
    ) -> None:
        self.count = start
        """How many batches were fetched in this epoch, those before `start` included."""
        self._source = source
        self._start: int | None = start  # until the first iteration has begun there
        if not isinstance(limit, int | float):
            assert isinstance(source, CombinedLoader)
            source.limits = list(limit)
            limit = math.inf
        self._limit: int | float = limit
        combined = isinstance(source, CombinedLoader) and source.mode == "sequential"
        self.indexed = combined if indexed is None else indexed
        """Does it give `(batch, batch_idx, dataloader_idx)`?"""
        self._iterator: Iterator[Any] = iter(())
        self._ahead: Any = _NOTHING
        self.bound: int | float = limit
        """After how many batches the epoch ends, as far as is known without a look ahead."""
        self.end = self._measure()
        """After how many batches the epoch ends; None while nobody knows."""

    @property
    def is_last(self) -> bool:
        """Does no batch follow the one that was fetched last?

        Of a source without a length, the next batch is fetched to find out, when this is read and not before: a loop
        that reads it after its step draws random numbers in the order of a plain loop.
        """
        if self.end is not None:
            return self.count >= self.end
        if self.count >= self._limit:
            return True
        if self._ahead is _NOTHING:
            self._ahead = next(self._iterator, _NOTHING)
            if self._ahead is _NOTHING:
                self.end = self.bound = self.count
        return self._ahead is _NOTHING

    @property
    def length(self) -> int | float:
        """How many batches the epoch has; `math.inf` if nobody knows."""
        return self._limit if self.end is None else self.end

    def __iter__(self) -> Fetcher:
        """Begin the epoch: at `start` the first time, from then on at 0."""
        self.close()
        start, self._start = self._start, None
        self.count = start or 0
        self.end = self._measure()
        # A run that was stopped behind the last batch still asks for the end.
        if self.count < self.bound or (start and self.count == self.bound and self._ends_by_itself):
            self._iterator = self._begin(start)
        return self

    def __next__(self) -> Any:
        """The next batch."""
        if self.count >= self.bound:
            self._finish()
            raise StopIteration
        if self._ahead is _NOTHING:
            try:
                batch = next(self._iterator)
            except StopIteration:
                # Sooner than the length said, or no length was known: either way the epoch is over.
                self.end = self.bound = self.count
                self.close()
                raise
        else:
            batch, self._ahead = self._ahead, _NOTHING
        self.count += 1
        return batch

    def close(self) -> None:
        """Let go of the iteration under way; worker processes that live for one iteration end."""
        self._iterator = iter(())
        self._ahead = _NOTHING
        if isinstance(self._source, CombinedLoader):
            self._source.reset()  # it keeps its iteration itself

    def items(self, on_fetch: Callable[[Any, int, int], None]) -> Iterator[BatchIterator]:
        """For a step that fetches its batches itself: this epoch's `BatchIterator`, again and again until it is over.

        Args:
            on_fetch: Hears each batch, its index and that of its loader.
        """
        handle = BatchIterator(iter(self), on_fetch)
        while not self.is_last:
            yield handle

    def _measure(self) -> int | None:
        length = sized_len(self._source)
        self.bound = self._limit if length is None else min(length, self._limit)
        self._ends_by_itself = length is not None and length <= self._limit
        return None if length is None else int(self.bound)

    def _begin(self, first: int | None) -> Iterator[Any]:
        source, start = self._source, first or 0
        skips = hasattr(source, "skip_to")
        # Told also that nothing is done: a source with a restored state would go on behind the batch that was in work.
        if skips and first is not None:
            source.skip_to(first)  # type: ignore[attr-defined]
        if isinstance(source, CombinedLoader):
            items = source.begin()
            if start > 0 and not skips:
                next(islice(items, start, start), None)
            return items if self.indexed else map(itemgetter(0), items)
        iterator = iter(source)
        if start > 0 and not skips:
            next(islice(iterator, start, start), None)
        if self.indexed:
            return ((batch, batch_idx, 0) for batch_idx, batch in enumerate(iterator, start))
        return iterator

    def _finish(self) -> None:
        if self._ends_by_itself:
            self._ends_by_itself = False
            next(self._iterator, None)
        self.close()


class BatchIterator(Iterator[tuple[Any, int, int]]):
    """What a step with the parameter `dataloader_iter` gets: its `next` is `(batch, batch_idx, dataloader_idx)`.

    Batches come as the loader gives them; no hook moves them to a device.

    Args:
        fetcher: Its iteration has begun.
        on_fetch: Hears each batch, its index and that of its loader.
    """

    def __init__(self, fetcher: Fetcher, on_fetch: Callable[[Any, int, int], None]) -> None:
        self.batch: Any = None
        """The batch that was taken last."""
        self.index = 0
        self.loader = 0
        self._fetcher = fetcher
        self._on_fetch = on_fetch

    def __next__(self) -> tuple[Any, int, int]:
        item = next(self._fetcher)
        if self._fetcher.indexed:
            self.batch, self.index, self.loader = item
        else:
            self.batch, self.index = item, self._fetcher.count - 1
        self._on_fetch(self.batch, self.index, self.loader)
        return self.batch, self.index, self.loader

    def where(self, several: bool) -> tuple[int, ...]:
        """What hooks hear: the index of the batch, and of several loaders also that of the loader."""
        return (self.index, self.loader) if several else (self.index,)

    def check_taken(self, before: int, step: str) -> None:
        """Refuse a step that took nothing: its epoch would never end.

        Args:
            before: How many batches were taken before it.
            step: How the message calls it.

        Raises:
            ConfigurationError: Nothing was taken since.
        """
        if self._fetcher.count == before:
            raise ConfigurationError(
                f"{step}(dataloader_iter) took no batch."
                " A pass over the data ends when all batches are taken, so this one would never end."
                " Call next(dataloader_iter) in the step; it gives (batch, batch_idx, dataloader_idx)."
            )
