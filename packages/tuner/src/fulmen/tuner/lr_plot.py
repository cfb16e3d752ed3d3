"""Draw the curve of a learning-rate sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fulmen.fabric.optional_packages import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Blue and orange that people with any colour vision tell apart (Okabe and Ito, https://jfly.uni-koeln.de/color).
_LINE = "#0072B2"
_MARK = "#D55E00"
_INK = "#333333"


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
    plt = require("matplotlib.pyplot", purpose="LRFinder.plot()", pip="'fulmen-tuner[plots]'")
    if ax is None:
        figure, ax = plt.subplots(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    else:
        figure = ax.figure
    assert ax is not None
    rates, smoothed = results["lr"], results["loss"]
    raw = results.get("raw_loss", ())
    if raw:
        ax.plot(rates, raw, color=_LINE, alpha=0.3, linewidth=1, label="loss")
    ax.plot(rates, smoothed, color=_LINE, linewidth=2, label="loss, smoothed")
    if suggested is not None:
        _mark(ax, rates[suggested], smoothed[suggested])
    ax.set_xscale("linear" if is_linear else "log")
    ax.set_ylim(_loss_limits(smoothed, raw))
    ax.set_xlabel("learning rate")
    ax.set_ylabel("loss")
    ax.grid(visible=True, color="#E6E6E6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(labelcolor=_INK, edgecolor="none", framealpha=0.9)
    if show:
        plt.show()
    return figure


def _mark(ax: Axes, rate: float, loss: float) -> None:
    ax.axvline(rate, color=_MARK, linewidth=1, linestyle=(0, (4, 3)))
    ax.plot([rate], [loss], "o", color=_MARK, markersize=7, zorder=5, label=f"suggestion: {rate:.2e}")


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
    noise = [loss for loss in raw[: len(way_down)] if math.isfinite(loss)]
    lowest = max(min(noise, default=low), low - height)
    highest = min(max(noise, default=high), high + height)
    return min(lowest, low) - 0.1 * height, max(highest, high + 0.2 * height)
