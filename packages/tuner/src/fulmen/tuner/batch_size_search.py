"""Which batch size to try next: double until it fails; or, if exactness is wanted, bisect, first between octaves.

Numbers in, numbers out: knows no memory, no loader, no trainer. Doubling asks for at most twice the memory that is
there, and needs log2(range) trials. Finding the limit exactly as well would need as many again; bisecting the octaves
(1, 2, 4, 8, ... times the first size) needs log2(log2(range)) of them, and then log2(range) within the last one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class BatchSizeSearch:
    """What is known so far; moving on gives a new one. No size is asked for twice.

    Attributes:
        initial: The first size to try.
        ceiling: Larger ones are not wanted.
        bisects: Find the largest size that fits exactly? It takes log2(ceiling) + log2(log2(ceiling)) + 3 trials at
            most. Else the largest on the way of doubling or halving, in log2(ceiling) + 2.
        max_trials: So many are made at most.
        fits: The largest size known to fit; 0: none.
        fails: The smallest size known to fail; None: none.
        trials: Every size that was tried, in order, and whether it fits.
    """

    initial: int
    ceiling: int
    bisects: bool = False
    max_trials: int = 25
    fits: int = 0
    fails: int | None = None
    trials: tuple[tuple[int, bool], ...] = ()

    @property
    def num_trials(self) -> int:
        """Made so far."""
        return len(self.trials)

    @property
    def next_size(self) -> int | None:
        """The size to try next; None: the search is over."""
        if self.num_trials >= self.max_trials or self.fits >= self.ceiling:
            return None
        if not self.trials:
            return min(self.initial, self.ceiling)
        if self.fails is not None and (self.fails - self.fits <= 1 or (self.fits and not self.bisects)):
            return None
        if self.bisects and self.fits:
            return self._between_octaves()
        if self.fails is None:
            return min(self.fits * 2, self.ceiling)
        return (self.fits + self.fails) // 2

    def _between_octaves(self) -> int:
        end = self.ceiling + 1 if self.fails is None else self.fails
        octaves = ((end - 1) // self.fits).bit_length()  # the fewest doublings of what fits that reach the end
        if octaves > 1:
            return self.fits << (octaves // 2)
        # If all that is wanted fits, one trial tells.
        return self.ceiling if self.fails is None else (self.fits + self.fails) // 2

    def after(self, size: int, *, fits: bool) -> BatchSizeSearch:
        """What is known when `size` has been tried."""
        trials = (*self.trials, (size, fits))
        if fits:
            return replace(self, trials=trials, fits=max(self.fits, size))
        return replace(self, trials=trials, fails=size if self.fails is None else min(self.fails, size))

    def below(self, ceiling: int) -> BatchSizeSearch:
        """The same with a ceiling that is at most `ceiling`: there are no more samples. What fits stays below it."""
        lower = max(min(self.ceiling, ceiling), 1)
        return replace(self, ceiling=lower, fits=min(self.fits, lower))

    def result(self, margin: float = 0.0) -> int | None:
        """The size that was found; None if none fits.

        Args:
            margin: If exactness was wanted and a limit was met, stay below it by this part: memory use varies from
                batch to batch.
        """
        if not self.fits:
            return None
        if self.bisects and self.fails is not None:
            return max(int(self.fits * (1 - margin)), 1)
        return self.fits
