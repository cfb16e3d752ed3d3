"""What is printed while bars stand on a terminal appears above them, in whole lines."""

import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

_STREAMS = ("stdout", "stderr")


def underlying(stream: Any) -> Any:
    """The stream itself, without what stands before it here."""
    return stream.stream if isinstance(stream, _AboveBars) else stream


class _AboveBars:
    """Stands in the place of `sys.stdout` or `sys.stderr`: lines go out with the bars cleared, and drawn again below.

    What has no end of line, a question of a debugger for example, goes out when the stream is flushed; the bars come
    back when they are drawn next.
    """

    def __init__(self, stream: TextIO, bars: Callable[[], Iterable[Any]]) -> None:
        self.stream = stream
        self._bars = bars
        self._held = ""
        self._is_inside_line = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        lines, newline, rest = (self._held + text).rpartition("\n")
        self._held = rest
        if newline:
            self._send(lines + newline)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        held, self._held = self._held, ""
        if held:
            self._send(held)
        self.stream.flush()

    def _send(self, text: str) -> None:
        bars = list(self._bars())
        if not self._is_inside_line:  # what stands there would be gone too
            for bar in bars:
                bar.clear()
        self.stream.write(text)
        self.stream.flush()
        self._is_inside_line = not text.endswith("\n")
        if not self._is_inside_line:
            for bar in bars:
                bar.refresh()


class PrintsAboveBars:
    """Puts `sys.stdout` and `sys.stderr` above bars, as far as they are terminals, and gives them back."""

    def __init__(self) -> None:
        self._here: dict[str, _AboveBars] = {}

    def begin(self, bars: Callable[[], Iterable[Any]]) -> None:
        """From now on; `bars` gives those that are on the screen."""
        for name in _STREAMS:
            stream = getattr(sys, name)
            is_terminal = getattr(stream, "isatty", None)
            if is_terminal is not None and is_terminal() and not isinstance(stream, _AboveBars):
                self._here[name] = _AboveBars(stream, bars)
                setattr(sys, name, self._here[name])

    def end(self) -> None:
        """Until now. A stream that somebody else has exchanged meanwhile is theirs."""
        for name, stream in self._here.items():
            stream.flush()
            if getattr(sys, name) is stream:
                setattr(sys, name, stream.stream)
        self._here.clear()
