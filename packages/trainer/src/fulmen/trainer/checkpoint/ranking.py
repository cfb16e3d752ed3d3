"""Which k checkpoints to keep.

Ranks candidates by a score; knows no files, no trainer, no tensors. Deleting what falls out is the caller's work.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["min", "max"]


def worst_possible(mode: Mode) -> float:
    """The score that every number beats, or equals: where NaN stands in a ranking."""
    return math.inf if mode == "min" else -math.inf


def is_better(score: float, than: float, mode: Mode) -> bool:
    """Does `score` beat `than`? NaN beats nothing, and an equal score does not beat."""
    return score < than if mode == "min" else score > than


def best_first(scores: Mapping[str, float], best: str) -> list[str]:
    """The paths in the order of their scores, `best` first; which way is good shows in that one being the best.

    >>> best_first({"a": 0.2, "b": 0.9, "c": 0.5}, best="b")
    ['b', 'c', 'a']
    """
    if best not in scores:
        return list(scores)
    sign = 1 if scores[best] == min(scores.values()) else -1
    return sorted(scores, key=lambda path: (path != best, sign * scores[path]))


@dataclass(frozen=True, slots=True)
class Ranking:
    """The kept checkpoints with their scores, in the order in which they came.

    Args:
        k: How many are kept; -1 keeps all, 0 none.
        mode: "min" if a small score is good, "max" if a large one is.
        scores: Path to score, oldest first.
    """

    k: int
    mode: Mode = "min"
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Does the next one push another one out, or fail to come in?"""
        return self.k != -1 and len(self.scores) >= self.k

    @property
    def best(self) -> str | None:
        """The best path; of equals, the oldest."""
        return self._extreme("min" if self.mode == "min" else "max")

    @property
    def worst(self) -> str | None:
        """The worst path; of equals, the oldest: it is the one to give way."""
        return self._extreme("max" if self.mode == "min" else "min")

    def accepts(self, score: float) -> bool:
        """Would a checkpoint with this score be kept now?"""
        if not self.is_full:
            return True
        return self.worst is not None and is_better(score, self.scores[self.worst], self.mode)

    def gives_way(self) -> str | None:
        """The path that falls out when one more is added, if any."""
        return self.worst if self.is_full else None

    def add(self, path: str, score: float) -> "Ranking":
        """The ranking with `path` in it, and without what gave way to it.

        A path that is there already is ranked anew, as the youngest. NaN is ranked as the worst possible score.
        """
        dropped = None if path in self.scores else self.gives_way()
        scores = {kept: value for kept, value in self.scores.items() if kept not in (dropped, path)}
        scores[path] = worst_possible(self.mode) if math.isnan(score) else score
        return Ranking(self.k, self.mode, scores)

    def _extreme(self, side: Mode) -> str | None:
        if not self.scores:
            return None
        pick = min if side == "min" else max
        return pick(self.scores, key=self.scores.__getitem__)
