"""What the pictures of the tuner have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.fabric.optional_packages import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Blue and orange that people with any colour vision tell apart (Okabe and Ito, https://jfly.uni-koeln.de/color).
LINE = "#0072B2"
ACCENT = "#D55E00"
_INK = "#333333"


def open_figure(ax: Axes | None, *, purpose: str) -> tuple[Any, Axes]:
    """The figure and the axes to draw on; new ones if there are none.

    Args:
        ax: The user's.
        purpose: What is drawn, for the message.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    plt = require("matplotlib.pyplot", purpose=purpose, pip="'fulmen-tuner[plots]'")
    if ax is not None:
        return ax.figure, ax
    # The width of one column and a half, in inches; 200 dots each are enough for print.
    figure, axes = plt.subplots(figsize=(5.6, 3.6), dpi=200, layout="constrained")
    return figure, axes


def axes_in_style(axes: Axes, x_label: str, y_label: str) -> None:
    """Labels, a quiet grid, no frame, a legend that hides nothing."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(visible=True, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(labelcolor=_INK, edgecolor="none", framealpha=0.9)


def finish(figure: Any, *, show: bool) -> Any:
    """Open a window if wanted. Returns the figure."""
    if show:
        require("matplotlib.pyplot", purpose="show=True", pip="'fulmen-tuner[plots]'").show()
    return figure
