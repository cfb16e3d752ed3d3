"""What some strategies can do beyond the base; ask with `isinstance`, once, before the first step."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch.nn import Module


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
class HooksForward(Protocol):
    """The strategy may work in hooks of the user's own module, and not in a wrapper around it."""

    def hooks_forward(self, module: Module) -> bool:
        """Does it, for this module? Then whatever the module does must run inside its forward."""
