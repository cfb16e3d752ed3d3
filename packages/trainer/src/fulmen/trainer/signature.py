"""Did the user override it, and which arguments does it take?

Answers are worked out before a loop begins; nothing here belongs on the hot path.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from fulmen.fabric.errors import ConfigurationError

_C = TypeVar("_C", bound=type)

_extension_points: set[type] = set()


def extension_point(cls: _C) -> _C:
    """Marks `cls` as one that users extend: `is_overridden` compares their methods with this class's."""
    _extension_points.add(cls)
    return cls


def is_overridden(method_name: str, instance: object | None = None, parent: type[object] | None = None) -> bool:
    """Does `instance` have its own `method_name`, other than the one of `parent`?

    Args:
        method_name: Name of the method.
        instance: The object to look at; None has overridden nothing.
        parent: The class that declares the default. None: the nearest marked with `extension_point`.

    Raises:
        ConfigurationError: If no parent is given and none is known, or the parent has no such method.
    """
    if instance is None:
        return False
    if parent is None:
        parent = next((cls for cls in type(instance).__mro__ if cls in _extension_points), None)
        if parent is None:
            raise ConfigurationError(
                f"is_overridden({method_name!r}, instance of {type(instance).__qualname__}) knows no class to compare"
                " with. None of its base classes is meant to be extended by users. Pass parent=."
            )
    default = getattr(parent, method_name, None)
    if default is None:
        raise ConfigurationError(
            f"is_overridden({method_name!r}) found no such method in {parent.__qualname__}."
            " Only a method that the parent declares can be overridden. Check its name."
        )
    own = getattr(instance, method_name, None)
    return own is not None and _function(own) is not _function(default)


def is_param_in_hook_signature(
    hook_fx: Callable[..., Any], param: str, explicit: bool = False, min_args: int | None = None
) -> bool:
    """Can `hook_fx` be called with an argument for `param`?

    Args:
        hook_fx: The hook, bound: `self` does not count.
        param: Name of the parameter.
        explicit: Count only a parameter of that name, not `*args`.
        min_args: Also true if the hook takes at least so many positional arguments, under whatever names.
    """
    parameters = inspect.signature(hook_fx).parameters
    if param in parameters:
        return True
    kinds = [parameter.kind for parameter in parameters.values()]
    if not explicit and inspect.Parameter.VAR_POSITIONAL in kinds:
        return True
    num_positional = sum(kind in (_POSITIONAL_ONLY, _POSITIONAL) for kind in kinds)
    return min_args is not None and num_positional >= min_args


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Can `function` be called with the keyword `name`, by its own name or through `**kwargs`?"""
    parameters = inspect.signature(function).parameters
    parameter = parameters.get(name)
    if parameter is not None:
        return parameter.kind in (_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())


_POSITIONAL_ONLY = inspect.Parameter.POSITIONAL_ONLY
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _function(method: Any) -> Any:
    """What is behind a bound method, a partial or a wrapper made with `functools.wraps`."""
    while True:
        if inspect.ismethod(method):
            method = method.__func__
        elif isinstance(method, functools.partial):
            method = method.func
        elif callable(getattr(method, "__wrapped__", None)):
            method = method.__wrapped__
        else:
            return method
