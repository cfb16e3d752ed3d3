"""Which learning rate does the curve of a sweep suggest?

Numbers in, numbers out: knows no tensor, no module, no trainer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Of the losses before, this part is kept in each step of the running mean: about the last fifty count.
MEMORY = 0.98
# Width of the smoothing of a finished curve, as a part of the sweep: a third of a decade, of eight.
WIDTH = 0.04


def swept_rates(low: float, high: float, num_steps: int, *, is_linear: bool) -> list[float]:
    """The learning rate of every step of a sweep, from `low` to `high`, both included.

    Args:
        low, high: Positive, `low` below `high`.
        num_steps: At least 1; of a single step it is `low`.
        is_linear: Equal differences rather than equal ratios?

    >>> swept_rates(1.0, 100.0, 3, is_linear=False)
    [1.0, 10.0, 100.0]
    """
    parts = [step / max(num_steps - 1, 1) for step in range(num_steps)]
    rates = [low + (high - low) * part if is_linear else low * (high / low) ** part for part in parts]
    return rates if num_steps == 1 else [*rates[:-1], high]  # not what rounding makes of it


class Smoother:
    """Running mean of losses in which older ones count ever less; what is not finite is passed over.

    It says while the sweep runs whether it goes wrong. It lags behind by its memory: a suggestion read from it would
    come too late, at too large a learning rate.
    """

    def __init__(self, keep: float = MEMORY) -> None:
        self._keep = keep
        self._mean = 0.0
        self._weight = 0.0

    def add(self, loss: float) -> float:
        """Take one more loss. Returns the mean so far, without the pull of the zero that it began with."""
        if math.isfinite(loss):
            self._mean = self._keep * self._mean + (1 - self._keep) * loss
            self._weight = self._keep * self._weight + (1 - self._keep)
        return self._mean / self._weight if self._weight else math.nan


def has_diverged(loss: float, best: float, threshold: float) -> bool:
    """Is `loss` so much worse than the `best` so far that a larger learning rate can bring nothing?

    For positive losses: above `threshold` times the best. Of negative ones (likelihoods) the distance is taken from
    their size, so that a best loss of -10 is not above 4 times -10.
    """
    return not loss - best <= (threshold - 1) * abs(best)


def smoothed(losses: Sequence[float], width: float) -> list[float]:
    """The losses with their noise taken out, without a lag: each is a mean over its neighbours on both sides.

    Args:
        losses: What is not finite is passed over, and stays where it is.
        width: Standard deviation of the weights, in steps.
    """
    reach = int(3 * width)
    weights = {away: math.exp(-0.5 * (away / width) ** 2) if away else 1.0 for away in range(-reach, reach + 1)}
    result = []
    for here, loss in enumerate(losses):
        near = [
            (weights[index - here], losses[index])
            for index in range(max(here - reach, 0), min(here + reach + 1, len(losses)))
            if math.isfinite(losses[index])
        ]
        total = sum(weight for weight, _ in near)
        result.append(sum(weight * value for weight, value in near) / total if math.isfinite(loss) else loss)
    return result


def steepest_descent(losses: Sequence[float], skip_begin: int = 0, skip_end: int = 0) -> int | None:
    """Where the losses fall fastest from step to step, on the way down to the lowest one.

    Behind the lowest the sweep is on its way to blow up, and a dip there says nothing.

    Args:
        losses: One for each step of a sweep, smoothed.
        skip_begin: So many at the start are left out.
        skip_end: So many at the end: there it blows up.

    Returns:
        An index into `losses`; None if fewer than two finite losses are left, or the first is the lowest.
    """
    kept = range(skip_begin, max(len(losses) - skip_end, 0))
    points = [index for index in kept if math.isfinite(losses[index])]
    lowest = min(points, key=lambda index: losses[index], default=0)
    points = [index for index in points if index <= lowest]
    if len(points) < 2:
        return None
    slopes = []
    for here, index in enumerate(points):
        # Central differences, one-sided at the two ends.
        before, after = points[max(here - 1, 0)], points[min(here + 1, len(points) - 1)]
        slopes.append(((losses[after] - losses[before]) / (after - before), index))
    return min(slopes)[1]
