"""What a fit knows of its place beside its counts, and a checkpoint of ours keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ValidationPosition:
    """Where the validation inside a fit is.

    Attributes:
        seen_batches: Validation batches of the whole fit, without those of a pass that is under way.
        rng: The random numbers of this process with which the pass under way began; None if none is under way.
            A checkpoint written inside a pass, before its means are out, lets it begin anew.
    """

    seen_batches: int = 0
    rng: Mapping[str, Any] | None = None

    @property
    def is_under_way(self) -> bool:
        """Is there a pass whose means are not out?"""
        return self.rng is not None


@dataclass(frozen=True)
class FitPosition:
    """Where a fit is.

    Attributes:
        validation: Where its validation is.
        owed: What still follows the batch before, as `loops.resume.Owed` numbers it; known between two batches only.
        gradients: Those that wait for further batches of their accumulation window, of each process by parameter. All
            processes are in the same window, or none is in one.
    """

    validation: ValidationPosition = field(default_factory=ValidationPosition)
    owed: int = 0
    gradients: Sequence[Mapping[str, Tensor]] | None = None
