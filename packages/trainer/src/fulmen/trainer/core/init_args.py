"""Which arguments was this object built with?

The one place that reads frames of callers: an `__init__` that is running holds its arguments as locals, and `self` as
the first of them. A subclass's `__init__` that called it with `super().__init__(...)` stands above it on the stack.
"""

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any


def init_arguments(obj: object, frame: FrameType | None = None) -> dict[str, Any]:
    """The arguments of every running `__init__` of `obj`; what a subclass was given wins over what it passed on.

    Of `**kwargs` the content is taken, `*args` have no names and are left out. For a dataclass these are its fields.

    Args:
        obj: The object whose `__init__` is running, perhaps some calls further up.
        frame: Where to begin to look; None: at the caller.
    """
    arguments: dict[str, Any] = {}
    for running in _running_inits(obj, frame or sys._getframe(1)):
        arguments.update(get_init_args(running))
    if dataclasses.is_dataclass(obj):
        # The generated __init__ has placeholders in its locals where a field has a default factory.
        fields = (field.name for field in dataclasses.fields(obj) if field.init)
        arguments.update({name: getattr(obj, name) for name in fields if hasattr(obj, name)})
    return arguments


def get_init_args(frame: FrameType) -> dict[str, Any]:
    """The named arguments of the method that runs in `frame`, without `self`.

    An argument that was assigned to since has its new value; one that was deleted is missing.
    """
    code = frame.f_code
    num_named = code.co_argcount + code.co_kwonlyargcount
    names = code.co_varnames[1 if code.co_argcount else 0 : num_named]
    found = frame.f_locals
    arguments = {name: found[name] for name in names if name in found}
    if code.co_flags & inspect.CO_VARKEYWORDS:
        position = num_named + bool(code.co_flags & inspect.CO_VARARGS)
        arguments.update(found.get(code.co_varnames[position], {}))
    return arguments


def collect_init_args(
    frame: FrameType, path_args: list[dict[str, Any]], inside: bool = False, classes: tuple[type, ...] = ()
) -> list[dict[str, Any]]:
    """`path_args` and the arguments of each `__init__` that runs above `frame` for one object, innermost first.

    Args:
        frame: Where to begin to look.
        path_args: What to append to; it is not changed.
        inside: Begin only if `frame` itself is such an `__init__`.
        classes: Take the first object that is an instance of one of these; none: of any class.
    """
    start: FrameType | None = frame
    while start is not None:
        obj = _object_under_construction(start)
        if obj is not None and (not classes or isinstance(obj, classes)):
            return [*path_args, *(get_init_args(running) for running in _running_inits(obj, start))]
        start = None if inside else start.f_back
    return list(path_args)


def parse_class_init_keys(cls: type) -> tuple[str, str | None, str | None]:
    """The names that `cls.__init__` gives to self, to `*args` and to `**kwargs`; None for what it does not take."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())  # type: ignore[misc]

    def name_of(kind: Any) -> str | None:
        return next((parameter.name for parameter in parameters if parameter.kind is kind), None)

    return parameters[0].name, name_of(inspect.Parameter.VAR_POSITIONAL), name_of(inspect.Parameter.VAR_KEYWORD)


def _running_inits(obj: object, frame: FrameType | None) -> Iterator[FrameType]:
    """Frames from `frame` upwards that are an `__init__` of `obj`."""
    while frame is not None:
        if _object_under_construction(frame) is obj:
            yield frame
        frame = frame.f_back


def _object_under_construction(frame: FrameType) -> object | None:
    code = frame.f_code
    # By name first: reading the locals of a frame copies them.
    if code.co_name != "__init__" or not code.co_argcount:
        return None
    found: object | None = frame.f_locals.get(code.co_varnames[0])
    return found
