"""Which samples are in the batch that runs? Asked for by those who write predictions, and by nobody else."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from fulmen.fabric.data.resumable import ResumableLoader

Indices = list[Any]


class NotedIndices:
    """The indices of samples, batch by batch, as the loaders drew them.

    Workers draw ahead; what they drew waits here until its batch comes.

    Args:
        views: The loaders, one after the other.
    """

    def __init__(self, views: Sequence[ResumableLoader]) -> None:
        self._views = views
        self._drawn: list[deque[Any]] = [deque() for _ in views]
        pairs = zip(views, self._drawn, strict=True)
        self._is_known = [view.hear_indices(drawn.append) for view, drawn in pairs]

    def of_batch(self, loader: int) -> Indices | None:
        """Those of the batch of this loader that runs; None where nobody knows them."""
        if loader >= len(self._drawn) or not self._is_known[loader] or not self._drawn[loader]:
            return None
        indices = self._drawn[loader][0]
        return list(indices) if isinstance(indices, (list, tuple)) else [indices]

    def next_batch(self, loader: int) -> None:
        """The batch is done."""
        if loader < len(self._drawn) and self._drawn[loader]:
            self._drawn[loader].popleft()

    def close(self) -> None:
        """Hear nothing more."""
        for view in self._views:
            view.hear_indices(None)
