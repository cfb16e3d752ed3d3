"""Call any method of a wrapped module through the wrapper's forward.

A wrapper such as DDP acts when *it* is called: it prepares the gradient reduction, casts, gathers shards. A user who
calls `training_step` on the wrapped module must get the same. So for one call the inner module's `forward` is that
method, and the wrapper is called. Knows no strategy and no precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_ABSENT = object()


def call_through_forward(
    wrapper: nn.Module, module: nn.Module, method: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """What `method(*args, **kwargs)` gives, computed inside the forward of `wrapper`.

    Args:
        wrapper: Holds `module` and calls it in its forward. May be `module` itself.
        module: The user's module; while `method` runs, its forward is its own again.
        method: Any callable, as a rule a bound method of `module`.
        args, kwargs: Go through the wrapper, which may move or cast them on the way.
    """
    # The user may have put a forward on the instance (a patched or compiled one): it must be there again afterwards.
    instance_forward = module.__dict__.get("forward", _ABSENT)

    def give_back() -> None:
        if instance_forward is _ABSENT:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = instance_forward

    def redirected(*inner_args: Any, **inner_kwargs: Any) -> Any:
        # Before the method runs, not after: it may well call self.forward or self(...).
        give_back()
        return method(*inner_args, **inner_kwargs)

    module.__dict__["forward"] = redirected
    try:
        return wrapper(*args, **kwargs)
    finally:
        if module.__dict__.get("forward") is redirected:
            give_back()
