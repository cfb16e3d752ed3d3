"""What the user's own code raised, without the frames of the machinery that called it."""

from __future__ import annotations

import os
import sys
from types import TracebackType

import jsonargparse

from fulmen.cli.class_sources import has_module

# This command and the parser it stands on; what they call is the user's.
_MACHINERY = (os.path.dirname(jsonargparse.__file__), os.path.dirname(__file__))
_IMPORT = "<frozen importlib"


def fault_in_module(error: BaseException | None) -> BaseException | None:
    """What a module raised while it was imported, if that is behind `error`: from its own line on."""
    for cause in _chain(error):
        trace = _own_part(cause.__traceback__)
        if trace is not None and trace.tb_frame.f_code.co_name == "<module>":
            return _cut(cause, trace)
        if isinstance(cause, SyntaxError) and cause.filename and os.path.isfile(cause.filename):
            return _cut(cause, None)  # it says itself where it is; nothing of the module has run
    return None


def fault_of(class_path: str) -> BaseException | None:
    """What the module of a class raises when it is imported once more; None if it is not there, or imported by now.

    For a class that its type allows, and whose import has failed: of several errors, jsonargparse keeps one.
    """
    module = class_path.rpartition(".")[0]
    if module in sys.modules or not has_module(module):
        return None
    try:
        __import__(module)  # not importlib.import_module, which would be a frame of its own
    except Exception as error:
        return fault_in_module(error)
    return None


def fault_in_class(error: BaseException) -> BaseException | None:
    """What a class raised while it was built, if jsonargparse made `error` of that: from its own line on."""
    for cause in _chain(error):
        trace = _own_part(cause.__traceback__)
        if trace is not None:
            return _cut(cause, trace)
    return None


def _cut(error: BaseException, trace: TracebackType | None) -> BaseException:
    error.__suppress_context__ = True
    return error.with_traceback(trace)


def _chain(error: BaseException | None) -> list[BaseException]:
    """`error`, its cause, the cause of that, ...: the innermost first."""
    found: list[BaseException] = []
    while error is not None and all(error is not other for other in found):
        found.insert(0, error)
        error = error.__cause__ or error.__context__
    return found


def _own_part(trace: TracebackType | None) -> TracebackType | None:
    """What comes after the last frame of the machinery; None if nothing does, or if it was not there at all."""
    begin: TracebackType | None = None
    has_left = False
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if os.path.dirname(filename) in _MACHINERY:
            begin, has_left = None, True
        elif has_left and begin is None and not filename.startswith(_IMPORT):
            begin = trace
        trace = trace.tb_next
    return begin
