"""Call any method of a wrapped module through the wrapper's forward.

A wrapper such as DDP acts when *it* is called: it prepares the gradient reduction, casts, gathers shards. A user who
calls `training_step` on the wrapped module must get the same. So for one call the inner module's `forward` is that
method, and the wrapper is called. Knows no strategy and no precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MethodType
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
    redirected = _Redirected(module, method, module.__dict__.get("forward", _ABSENT))
    module.__dict__["forward"] = redirected
    try:
        return wrapper(*args, **kwargs)
    finally:
        if module.__dict__.get("forward") is redirected:
            redirected.give_back()


def redirect_to_replicas(module: nn.Module, replicas: Iterable[nn.Module]) -> None:
    """If a call of `module` is redirected now, let each replica's call run the same method, on the replica.

    Args:
        module: The user's module.
        replicas: Copies of it, which share what stands on the instance.
    """
    redirected = module.__dict__.get("forward")
    if isinstance(redirected, _Redirected):
        for replica in replicas:
            replica.__dict__["forward"] = redirected.on(replica)


class _Redirected:
    """Stands in for the forward of one module, for one call."""

    def __init__(self, module: nn.Module, method: Callable[..., Any], instance_forward: Any) -> None:
        self._module = module
        self._method = method
        self._instance_forward = instance_forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Before the method runs, not after: it may well call self.forward or self(...).
        self.give_back()
        return self._method(*args, **kwargs)

    def give_back(self) -> None:
        if self._instance_forward is _ABSENT:
            self._module.__dict__.pop("forward", None)
        else:
            self._module.__dict__["forward"] = self._instance_forward

    def on(self, replica: nn.Module) -> _Redirected:
        method = self._method
        if isinstance(method, MethodType) and method.__self__ is self._module:
            method = MethodType(method.__func__, replica)
        return _Redirected(replica, method, self._instance_forward)
