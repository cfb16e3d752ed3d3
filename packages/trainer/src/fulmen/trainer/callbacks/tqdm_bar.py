"""The bar that TQDMProgressBar draws: tqdm, with short numbers, and whole lines where there is no terminal."""

import math
import os
import sys
from collections.abc import MutableMapping
from typing import Any

from tqdm import tqdm
from tqdm.utils import disp_len, disp_trim

# With a bar, and then what is left of it on narrower screens: the numbers that a person waits for come last.
FORMATS = (
    "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]",
    "{desc}{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]",
    "{desc}{n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
    "{desc}{n_fmt}/{total_fmt}{postfix}",
)
# Without a total there is nothing that a bar could show, and nobody knows how long it will take.
_FORMATS_WITHOUT_TOTAL = (
    "{desc}{n_fmt}/{total_fmt} [{elapsed}, {rate_noinv_fmt}{postfix}]",
    "{desc}{n_fmt}/{total_fmt} [{elapsed}{postfix}]",
    "{desc}{n_fmt}/{total_fmt}{postfix}",
)
_MIN_BAR = 5
# A terminal writes "^C" behind the bar. If that ran over its edge, all that is drawn later would be a line too low.
_ROOM_FOR_ECHO = 2


def can_draw_over(file: Any) -> bool:
    """Can what was written to `file` be drawn over, as on a terminal?"""
    is_terminal = getattr(file, "isatty", None)
    if is_terminal is None or not is_terminal() or os.environ.get("TERM") == "dumb":
        return False
    try:
        # Terminals without a size are there in some CI systems: tqdm would cut each line to nothing.
        return os.get_terminal_size(file.fileno()).columns > 0
    except (OSError, ValueError, AttributeError):
        return True


def short_number(n: int | float | str) -> str:
    """A number in about three significant digits.

    >>> [short_number(n) for n in (7, 12345, 0.98000001, 0.5, 12.345, 1234.56, 1.5e-6, float("nan"))]
    ['7', '12345', '0.98', '0.5', '12.3', '1235', '1.5e-06', 'nan']
    """
    if isinstance(n, float) and math.isfinite(n):
        return f"{n:.0f}" if 1000 <= abs(n) < 1e6 else f"{n:.3g}"
    return str(n)


class Tqdm(tqdm):  # type: ignore[type-arg]  # generic in its stubs only
    """A tqdm bar that is refreshed by whoever owns it, and never by a thread.

    Where lines cannot be drawn over, `is_plain` is true: the bar draws nothing, and `write_line` writes it as a line.
    """

    monitor_interval = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.is_plain = not can_draw_over(kwargs.get("file") or sys.stderr)
        self._is_quiet = False
        # Narrowed for good, until the screen changes: what comes and goes makes a screen restless.
        self._narrowed: tuple[Any, int] = (None, 0)
        if self.is_plain:
            kwargs["bar_format"] = FORMATS[1]
            kwargs["desc"] = f"{kwargs.get('desc') or 'Progress'}: "  # as set_description ends it
        super().__init__(*args, **kwargs)

    @staticmethod
    def format_num(n: int | float | str) -> str:
        """Numbers as they stand in the bar."""
        return short_number(n)

    def __str__(self) -> str:
        """The bar in the width that there is; formats of your own are left alone."""
        values = self.format_dict
        if values["bar_format"] not in FORMATS:
            return super().__str__()
        if values["prefix"] and not values["prefix"].endswith(": "):
            values["prefix"] += ": "
        width = None if self.is_plain or not values["ncols"] else values["ncols"] - _ROOM_FOR_ECHO
        formats = _FORMATS_WITHOUT_TOTAL if not values["total"] else FORMATS[self.is_plain :]
        if width is None:
            return str(self.format_meter(**{**values, "ncols": None, "bar_format": formats[0]}))
        at = self._narrowed[1] if self._narrowed[0] == (width, len(formats)) else 0
        while at < len(formats) - 1 and self._least(values, formats[at]) > width:
            at += 1
        self._narrowed = (width, len(formats)), at
        if "{bar}" in formats[at]:
            return str(self.format_meter(**{**values, "ncols": width, "bar_format": formats[at]}))
        text = str(self.format_meter(**{**values, "ncols": None, "bar_format": formats[at]}))
        return text if disp_len(text) <= width else f"{disp_trim(text, width - 1)}…"

    def _least(self, values: MutableMapping[str, Any], wanted: str) -> int:
        """How much room a format needs."""
        bar = _MIN_BAR if "{bar}" in wanted else 0
        return bar + len(self.format_meter(**{**values, "ncols": None, "bar_format": wanted.replace("{bar}", "")}))

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw, where lines can be drawn over."""
        if not (self.is_plain or self._is_quiet):
            super().display(msg, pos)

    def clear(self, nolock: bool = False) -> None:
        """Make room for something else that is written."""
        if not self.is_plain:
            super().clear(nolock)

    def close(self) -> None:
        """No more of this bar."""
        if self.is_plain and not self.disable:
            # tqdm would write carriage returns.
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]  # the stubs leave it out
        else:
            super().close()

    def restart(self, total: int | float | None) -> None:
        """Begin again from 0, without drawing."""
        self._is_quiet = True
        self.reset(total)
        self.total = total
        self._is_quiet = False

    def write_line(self) -> None:
        """Write the bar as a line of its own."""
        print(str(self), file=self.fp, flush=True)


def new_bar(**kwargs: Any) -> Any:
    """A bar as it suits this place: a widget in a notebook, otherwise `Tqdm`."""
    if "ipykernel" in sys.modules:
        from tqdm.auto import tqdm as widget

        return widget(**kwargs)
    return Tqdm(**kwargs)


def convert_inf(x: int | float | None) -> int | float | None:
    """`x`, or None if it is infinite or NaN: tqdm's word for an unknown total."""
    return None if x is None or not math.isfinite(x) else x
