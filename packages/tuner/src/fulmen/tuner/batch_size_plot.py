"""Draw the sizes that a search has tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fulmen.tuner.plot_style import ACCENT, LINE, axes_in_style, finish, open_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_trials(
    sizes: Sequence[int], fits: Sequence[bool], suggested: int | None, *, show: bool, ax: Axes | None
) -> Any:
    """Batch sizes in the order of the trials; those that did not fit are crosses.

    Args:
        sizes: The size of every trial.
        fits: Did it fit?
        suggested: The size to mark; None marks none.
        show: Open a window?
        ax: Draw here; None makes a new figure.

    Returns:
        The matplotlib figure.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    figure, axes = open_figure(ax, purpose="BatchSizeTrials.plot()")
    numbers = range(1, len(sizes) + 1)
    axes.plot(numbers, sizes, color=LINE, alpha=0.3, linewidth=1)
    for kind, label, marker, color in ((True, "fits", "o", LINE), (False, "out of memory", "X", ACCENT)):
        places = [(number, size) for number, size, one in zip(numbers, sizes, fits, strict=True) if one is kind]
        if places:
            axes.plot(*zip(*places, strict=True), marker, color=color, markersize=7, label=label)
    if suggested is not None:
        axes.axhline(suggested, color=ACCENT, linewidth=1, linestyle=(0, (4, 3)), label=f"suggestion: {suggested}")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.locator_params(axis="x", integer=True)
    axes_in_style(axes, "trial", "batch size")
    return finish(figure, show=show)
