"""What some strategies can do beyond the base; ask with `isinstance`, once, before the first step."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch.nn import Module

from fulmen.fabric.precision.base import Precision


@runtime_checkable
class SkipsGradientSync(Protocol):
    """Gradients can be accumulated without exchanging them at every backward."""

    def no_backward_sync(self, module: Module, enabled: bool) -> AbstractContextManager[Any]:
        """Backward inside exchanges no gradients, if `enabled`; forward must run inside too."""


@runtime_checkable
class ShardsAtInit(Protocol):
    """Large modules can be made in pieces, one per process."""

    def module_sharded_context(self) -> AbstractContextManager[Any]:
        """Modules made inside are sharded."""


@runtime_checkable
class MakesPrecision(Protocol):
    """Numbers are held and computed by the strategy's own engine, which may be told how by its own configuration."""

    def make_precision(self, name: str | None, where: str) -> Precision:
        """The precision of a flag; None: none was given. `where` quotes it, for errors."""


@runtime_checkable
class SetsUpTogether(Protocol):
    """Module and optimizer cannot be set up one after the other."""

    def sets_up_together(self) -> bool:
        """Must they be set up in one call?"""


@runtime_checkable
class HooksForward(Protocol):
    """The strategy may work in hooks of the user's own module, and not in a wrapper around it."""

    def hooks_forward(self, module: Module) -> bool:
        """Does it, for this module? Then whatever the module does must run inside its forward."""
