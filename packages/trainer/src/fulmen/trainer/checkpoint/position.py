"""What a fit knows of its place beside its counts, and a checkpoint of ours keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ValidationPosition:
    """Where the validation inside a fit is.

    Attributes:
        seen_batches: Validation batches of the whole fit, without those of a pass that is under way.
        rng: The random numbers of this process with which the pass under way began; None if none is under way.
            A checkpoint written inside a pass lets it begin anew.
    """

    seen_batches: int = 0
    rng: Mapping[str, Any] | None = None

    @property
    def is_under_way(self) -> bool:
        """Is there a pass whose batches are not all done?"""
        return self.rng is not None


@dataclass(frozen=True)
class FitPosition:
    """Where a fit is.

    Attributes:
        validation: Where its validation is.
        gradients: Those of this process that wait for further batches of their accumulation window, by parameter.
    """

    validation: ValidationPosition = field(default_factory=ValidationPosition)
    gradients: Mapping[str, Tensor] | None = None
