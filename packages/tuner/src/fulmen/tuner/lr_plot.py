"""Draw the curve of a learning-rate sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fulmen.tuner.plot_style import ACCENT, LINE, axes_in_style, finish, open_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_sweep(
    results: Mapping[str, Sequence[float]], suggested: int | None, *, is_linear: bool, show: bool, ax: Axes | None
) -> Any:
    """Raw and smoothed loss over the learning rate.

    Args:
        results: "lr", "loss" and "raw_loss", one value for each step.
        suggested: The step to mark; None marks none.
        is_linear: Were the rates spread evenly? Else their axis is logarithmic.
        show: Open a window?
        ax: Draw here; None makes a new figure.

    Returns:
        The matplotlib figure.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    figure, axes = open_figure(ax, purpose="LRFinder.plot()")
    rates, smoothed = results["lr"], results["loss"]
    raw = results.get("raw_loss", ())
    if raw:
        axes.plot(rates, raw, color=LINE, alpha=0.3, linewidth=1, label="loss")
    axes.plot(rates, smoothed, color=LINE, linewidth=2, label="loss, smoothed")
    if suggested is not None:
        _mark(axes, rates[suggested], smoothed[suggested])
    axes.set_xscale("linear" if is_linear else "log")
    axes.margins(x=0.02)
    axes.set_ylim(_loss_limits(smoothed, raw))
    axes_in_style(axes, "learning rate", "loss")
    return finish(figure, show=show)


def _mark(ax: Axes, rate: float, loss: float) -> None:
    ax.axvline(rate, color=ACCENT, linewidth=1, linestyle=(0, (4, 3)))
    ax.plot([rate], [loss], "o", color=ACCENT, markersize=7, zorder=5, label=f"suggestion: {_in_print(rate)}")


def _in_print(rate: float) -> str:
    """Two digits and a power of ten, as books set it."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return rf"${mantissa} \times 10^{{{int(exponent)}}}$"


def _loss_limits(smoothed: Sequence[float], raw: Sequence[float]) -> tuple[float, float]:
    """Room for the way down and the beginning of the way up: a last loss of thousands would flatten all the rest."""
    losses = [loss for loss in smoothed if math.isfinite(loss)]
    if not losses:
        return 0.0, 1.0
    low = min(losses)
    way_down = [loss for loss in smoothed[: smoothed.index(low) + 1] if math.isfinite(loss)]
    high = max(way_down)
    if high == low:  # it only rises
        high = max(losses)
    height = (high - low) or max(abs(low), 1.0)
    lowest = max(min((loss for loss in raw if math.isfinite(loss)), default=low), low - height)
    noise = [loss for loss in raw[: len(way_down)] if math.isfinite(loss)]
    highest = min(max(noise, default=high), high + height)
    return min(lowest, low) - 0.1 * height, max(highest, high + 0.2 * height)
