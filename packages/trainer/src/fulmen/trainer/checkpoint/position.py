"""What a fit knows of its place beside its counts, and a checkpoint of ours keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ValidationPosition:
    """Where the validation inside a fit is.

    Attributes:
        seen_of: Batches of each validation loader in the whole fit, without those of a pass that is under way.
        rng: The random numbers of this process with which the pass under way began; None if none is under way.
            A checkpoint written inside a pass, before its means are out, lets it begin anew.
        data: What makes the next pass over the loaders, or the one under way; None if there are none yet.
    """

    seen_of: tuple[int, ...] = ()
    rng: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None

    @property
    def is_under_way(self) -> bool:
        """Is there a pass whose means are not out?"""
        return self.rng is not None


@dataclass(frozen=True)
class CutEpoch:
    """Where a fit was when it ended inside an epoch: `max_steps` was reached, or a stop was asked for.

    Hooks hear that the epoch has ended, and it counts as done. A fit that goes on goes on inside it.

    Attributes:
        fit_loop: The saved form of the counts.
        metrics: What the rest of the epoch needs of the metrics of this process.
    """

    fit_loop: Mapping[str, Any]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class FitPosition:
    """Where a fit is.

    Attributes:
        validation: Where its validation is.
        owed: What still follows the batch before, as `loops.resume.Owed` numbers it; known between two batches only.
        gradients: Those that wait for further batches of their accumulation window, of each process by parameter. All
            processes are in the same window, or none is in one.
        since_validation_s: Seconds since the last validation, or since the fit began.
        cut: Where it was, if it has ended inside an epoch.
    """

    validation: ValidationPosition = field(default_factory=ValidationPosition)
    owed: int = 0
    gradients: Sequence[Mapping[str, Tensor]] | None = None
    since_validation_s: float = 0.0
    cut: CutEpoch | None = None
