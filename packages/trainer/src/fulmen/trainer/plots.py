"""Draw the curves of a run from its `metrics.csv`: `python -m fulmen.trainer.plots RUN_DIR`.

Training and validation together, one panel for each quantity; learning rates in a lower panel; the epoch of the best
checkpoint marked.
"""

from __future__ import annotations

import argparse
import bisect
import math
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fulmen.fabric.errors import CheckpointError, ConfigurationError, MisconfigurationException
from fulmen.fabric.filesystem import atomic_open, exists, is_dir, is_local, join, make_dirs
from fulmen.fabric.loggers.csv import MetricsFile, read_metrics
from fulmen.fabric.optional_packages import require
from fulmen.trainer.checkpoint.kept import Kept, best_in

PICTURE_NAME = "curves.png"

# Blue, orange and green that people with any colour vision tell apart (Okabe and Ito, https://jfly.uni-koeln.de/color).
_COLOURS = {"train": "#0072B2", "val": "#D55E00", "test": "#009E73", "": "#0072B2"}
_LABELS = {"train": "training", "val": "validation", "test": "test", "": ""}
_INK = "#333333"
_FAINT = "#B8B8B8"

_STAGE = re.compile(r"^(train|val|valid|validation|test)[_/.-]+(.+)$|^(.+)[_/.-](train|val|valid|validation|test)$")
_GRAIN = re.compile(r"^(.+)_(step|epoch)$")
_LOADER = re.compile(r"^(.+)/dataloader_idx_(\d+)$")
_RATE = re.compile(r"^(lr|learning_rate)([-_/.].*)?(?<!-momentum)(?<!-weight_decay)$")

_RATE_COLOURS = ("#333333", "#CC79A7", "#56B4E9", "#E69F00", "#8C6BB1", "#999999")
_LINES = ("-", "--", ":", "-.")
_MAX_PANELS = 30  # a picture that nobody can take in shows nothing
_COLUMNS_FROM = (7, 15)  # so many panels, and there are two columns, and three
_MAX_POINTS = 2000  # of a line that can be followed; beyond, it is a band, and its means are drawn on it
_NUM_MEANS = 400


@dataclass(frozen=True)
class Curve:
    """The points of one column.

    Attributes:
        quantity: What is measured, without the stage: "loss".
        stage: "train", "val", "test", or "" if the name says none.
        grain: "step", "epoch", or "" if the name says none.
        loader: The number of the dataloader, "" if there is one.
        steps: Where.
        values: What.
    """

    quantity: str
    stage: str
    grain: str
    loader: str = ""
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def plot_metrics(csv_path_or_run_dir: str | Path, png_path: str | Path | None = None) -> str:
    """Draw what a CSV logger wrote.

    Args:
        csv_path_or_run_dir: The folder of a run (`lightning_logs/version_0`), or its `metrics.csv`; local or remote.
        png_path: Where the picture goes; by default `curves.png` beside the metrics.

    Returns:
        The path of the picture.

    Raises:
        ConfigurationError: If there are no such metrics, or nothing in them to draw.
        MissingPackageError: If matplotlib is not installed.
    """
    source = os.fspath(csv_path_or_run_dir)
    if is_dir(source):
        source = join(source, MetricsFile.NAME_METRICS_FILE)
    if not exists(source):
        raise ConfigurationError(
            f"plot_metrics({str(csv_path_or_run_dir)!r}) finds no metrics. It reads {MetricsFile.NAME_METRICS_FILE!r},"
            f" which CSVLogger writes, and there is no file {source!r}. Pass the folder of a run, or the file."
        )
    curves, epochs = read_curves(source)
    if not curves:
        raise ConfigurationError(
            f"plot_metrics({str(csv_path_or_run_dir)!r}) has nothing to draw. The file {source!r} holds no number"
            " beside step and epoch. Log something with self.log, or pass another run."
        )
    run_dir = os.path.dirname(source)
    target = os.fspath(png_path) if png_path is not None else join(run_dir, PICTURE_NAME)
    figure = _draw(curves, Axis(epochs), _best_of(run_dir), title=_title(run_dir))
    if folder := os.path.dirname(target):
        make_dirs(folder)
    with atomic_open(target) as file:
        figure.savefig(file, format=os.path.splitext(target)[1].removeprefix(".") or "png")
    return target


def read_curves(csv_path: str) -> tuple[list[Curve], dict[int, int]]:
    """The columns of a metrics file as curves, and the last step of each epoch."""
    found: dict[str, Curve] = {}
    epochs: dict[int, int] = {}
    for row in read_metrics(csv_path):
        step = _number(row.get("step"))
        if step is None:
            continue
        epoch = _number(row.get("epoch"))
        if epoch is not None:
            epochs[int(epoch)] = max(epochs.get(int(epoch), 0), int(step))
        for name, text in row.items():
            value = _number(text)
            if value is None or name in ("step", "epoch"):
                continue
            curve = found.setdefault(name, _curve_named(name))
            if curve.steps and curve.steps[-1] >= step + (curve.grain != "epoch"):
                # A run that went on from before: what comes last is what counts, and an epoch ends once.
                kept = bisect.bisect_left(curve.steps, step)
                del curve.steps[kept:], curve.values[kept:]
            curve.steps.append(int(step))
            curve.values.append(value)
    return list(found.values()), epochs


@dataclass(frozen=True)
class Axis:
    """The horizontal axis: epochs if there are several, else steps.

    Args:
        last_steps: The last step of each epoch.
    """

    last_steps: Mapping[int, int]

    @property
    def in_epochs(self) -> bool:
        """Are its units epochs?"""
        return len(self.last_steps) > 1

    @cached_property
    def _ends(self) -> tuple[list[int], list[int]]:
        known = sorted(self.last_steps)
        return known, [self.last_steps[epoch] for epoch in known]

    def place(self, step: int) -> float:
        """Where a step lies: 1.0 is the end of the first epoch.

        >>> Axis({0: 9, 1: 19}).place(4), Axis({0: 9, 1: 19}).place(19)
        (0.5, 2.0)
        """
        if not self.in_epochs:
            return float(step)
        known, ends = self._ends
        index = min(bisect.bisect_left(ends, step), len(ends) - 1)
        before = ends[index - 1] if index else -1
        part = (step - before) / max(1, ends[index] - before)
        # An epoch that logged nothing has no end: it lies somewhere between its neighbours.
        began = known[index - 1] + 1 if index else 0
        return began + part * (known[index] + 1 - began)


def _curve_named(name: str) -> Curve:
    base, grain, loader = name, "", ""
    if match := _LOADER.match(base):
        base, loader = match[1], match[2]
    if match := _GRAIN.match(base):
        base, grain = match[1], match[2]
    if match := _STAGE.match(base):
        stage = match[1] or match[4]
        return Curve(match[2] or match[3], "val" if stage.startswith("val") else stage, grain, loader)
    return Curve(base, "", grain, loader)


def _draw(curves: Sequence[Curve], axis: Axis, best: Kept | None, *, title: str) -> Any:
    require("matplotlib", purpose="plot_metrics")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rates = [curve for curve in curves if _RATE.match(curve.quantity)]
    panels: dict[str, list[Curve]] = {}
    for curve in curves:
        if curve not in rates:
            panels.setdefault(curve.quantity, []).append(curve)
    names = sorted(
        panels,
        key=lambda name: (len({curve.stage for curve in panels[name]}) < 2, "loss" not in name, _with_numbers(name)),
    )
    place = _place_of(best, axis)
    words = [title]
    if best is not None and place is not None:
        words.append(f"Dotted: {_in_words(best)}.")
    if len(names) > _MAX_PANELS:
        words.append(f"{_MAX_PANELS} of {len(names)} quantities.")
        names = names[:_MAX_PANELS]
    num_columns = 1 + sum(len(names) >= count for count in _COLUMNS_FROM)
    num_rows = -(-len(names) // num_columns)
    heights = [3.0 if num_columns == 1 else 2.2] * num_rows + ([1.6] if rates else [])
    # A figure of its own, not pyplot's: nothing global changes, and no window opens.
    figure = Figure(figsize=(8.0 if num_columns == 1 else 5.0 * num_columns, sum(heights) + 1.0), dpi=150)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_wrapped("   ".join(words), 75 * num_columns), x=0.02, ha="left", fontsize=10, color=_INK)
    grid = figure.add_gridspec(len(heights), num_columns, height_ratios=heights)
    axes: list[Any] = []
    for number in range(len(names)):
        cell = grid[number // num_columns, number % num_columns]
        axes.append(figure.add_subplot(cell, sharex=axes[0] if axes else None))
    shown: set[str] = set()
    for name, ax in zip(names, axes, strict=True):
        _style(ax, _wrapped(f"{name}{_gaps_of(panels[name])}", 90 // num_columns))
        labels = _panel(ax, panels[name], axis)
        if not labels <= shown:  # the colours mean the same in all panels
            ax.legend(framealpha=0.9, edgecolor="none", fontsize=9, labelcolor=_INK, loc="best")
            shown |= labels
    if rates:
        axes.append(figure.add_subplot(grid[-1, :], sharex=axes[0] if axes else None))
        _style(axes[-1], "learning rate")
        _rate_panel(axes[-1], rates, axis)
    if best is not None and place is not None:
        _mark_best(dict(zip(names, axes, strict=False)), axes, best, place)
    _label_steps(axes, axis, num_columns, first=min(axis.place(min(curve.steps)) for curve in curves))
    return figure


def _label_steps(axes: Sequence[Any], axis: Axis, num_columns: int, first: float) -> None:
    """Units below the lowest panel of each column; numbers too."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    spec = {ax: ax.get_subplotspec() for ax in axes}
    for ax in axes:
        below = (other for other in axes if spec[other].rowspan.start > spec[ax].rowspan.start)
        if any(set(spec[other].colspan) & set(spec[ax].colspan) for other in below):
            ax.tick_params(labelbottom=False)
        else:
            ax.set_xlabel("epochs" if axis.in_epochs else "step", color=_INK)
    axes[0].xaxis.set_major_locator(MaxNLocator(nbins=10 if num_columns == 1 else 6, integer=True))
    axes[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    begin, end = axes[0].get_xlim()
    if axis.in_epochs:
        begin, end = math.floor(first), max(axis.last_steps) + 1
        axes[0].set_xlim(begin, end + 0.02 * (end - begin))
    elif end - begin < 1:  # a single step
        axes[0].set_xlim(first - 1, first + 1)


def _panel(ax: Any, curves: Sequence[Curve], axis: Axis) -> set[str]:
    """Draw the curves of one quantity; returns what each stands for."""
    both = {(curve.stage, curve.loader) for curve in curves if curve.grain == "epoch" and len(curve.steps) > 1}
    loaders = sorted({curve.loader for curve in curves}, key=lambda loader: (len(loader), loader))
    clear: list[float] = []
    labels: set[str] = set()
    for curve in sorted(curves, key=lambda curve: (curve.stage != "train", curve.grain != "step", curve.loader)):
        places = [axis.place(step) for step in curve.steps]
        values, colour = curve.values, _COLOURS[curve.stage]
        # Beside its own mean over the epoch, the noise of single steps is background; so it is beside means of many.
        faint = curve.grain == "step" and (curve.stage, curve.loader) in both
        if len(places) > _MAX_POINTS and not faint:
            ax.plot(places, values, color=colour, alpha=0.3, linewidth=1.0, zorder=1)
            places, values = _means(places, values)
        label = " ".join(filter(None, (_LABELS[curve.stage], curve.loader)))
        if label in labels or (faint and label):
            label = ""
        if not faint:
            clear += [value for value in values if math.isfinite(value)]
        labels |= {label} - {""}
        ax.plot(
            places,
            values,
            color=colour,
            alpha=0.3 if faint else 1.0,
            linestyle=_LINES[loaders.index(curve.loader) % len(_LINES)],
            linewidth=1.0 if faint else 1.8,
            marker="o" if len(places) <= 40 and not faint else None,
            markersize=3.5,
            label=label or None,
            zorder=1 if faint else 3,
        )
    if _is_long_tailed(clear):
        from matplotlib.ticker import FuncFormatter, NullFormatter

        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(_plain_number))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.tick_params(which="minor", left=False)
    _fit_height(ax, clear)
    if not any(math.isfinite(value) for curve in curves for value in curve.values):
        ax.set_yticks([])  # numbers beside nothing
    return labels


def _rate_panel(ax: Any, rates: Sequence[Curve], axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for number, curve in enumerate(rates):
        colours = len(_RATE_COLOURS)
        # Logged once per epoch, it holds until the next time, or the end.
        holds = axis.in_epochs and 1 < len(curve.steps) <= len(axis.last_steps)
        steps = [*curve.steps, max(axis.last_steps.values())] if holds else curve.steps
        ax.plot(
            [axis.place(step) for step in steps],
            [*curve.values, curve.values[-1]] if holds else curve.values,
            drawstyle="steps-post" if holds else "default",
            color=_RATE_COLOURS[number % colours],
            linestyle=_LINES[number // colours % len(_LINES)],
            linewidth=1.4,
            marker="o" if len(curve.steps) == 1 else None,
            markersize=3.5,
            label=_shortened(curve.quantity, 30),
        )
    ax.yaxis.set_major_locator(MaxNLocator(nbins=3))
    ax.yaxis.set_major_formatter(FuncFormatter(_plain_number))
    if len(rates) > 1:
        handles, labels = ax.get_legend_handles_labels()
        if len(rates) > 2 * len(_RATE_COLOURS):
            handles, labels = handles[:1], [f"{len(rates)} groups"]
        look = {"frameon": False, "fontsize": 8, "labelcolor": _INK}
        # Beside the panel: on it, it would hide what it names.
        ax.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), **look)


def _place_of(best: Kept | None, axis: Axis) -> float | None:
    """Where the best checkpoint was saved; None if nothing says so."""
    step = axis.last_steps.get(best.epoch) if best is not None and best.epoch is not None else None
    return None if step is None else axis.place(step)


def _in_words(best: Kept) -> str:
    words = "best checkpoint"
    if best.monitor is not None and best.score is not None:
        words += f", {best.monitor} = {best.score:.4g}"
    return words + (f", after {best.epoch + 1} epochs" if best.epoch else ", after 1 epoch")


def _mark_best(panels: Mapping[str, Any], axes: Sequence[Any], best: Kept, place: float) -> None:
    for ax in axes:
        ax.axvline(place, color=_INK, linewidth=1.0, linestyle=(0, (2, 3)), zorder=0)
    monitored = _curve_named(best.monitor) if best.monitor else None
    if monitored is not None and monitored.quantity in panels and best.score is not None:
        ax = panels[monitored.quantity]
        ax.plot([place], [best.score], marker="o", markersize=9, markerfacecolor="none", color=_INK, zorder=4)


def _style(ax: Any, name: str) -> None:
    ax.set_title(name, loc="left", color=_INK, fontsize=10)
    ax.grid(axis="y", color=_FAINT, linewidth=0.5, alpha=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(_FAINT)
    ax.tick_params(colors=_INK, labelsize=9, length=3)


def _wrapped(text: str, width: int) -> str:
    """On several lines, broken at spaces, and in the middle of what has none."""
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False))


def _with_numbers(name: str) -> list[tuple[str, int]]:
    """A key that sorts "layer_2" before "layer_10"."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width // 2 - 1]}…{text[-width // 2 :]}"


def _means(places: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of neighbours, as many from each; of what is finite."""
    points = [(place, value) for place, value in zip(places, values, strict=True) if math.isfinite(value)]
    size = max(1, -(-len(points) // _NUM_MEANS))
    groups = [points[begin : begin + size] for begin in range(0, len(points), size)]
    means = [tuple(math.fsum(numbers) / len(group) for numbers in zip(*group, strict=True)) for group in groups]
    return [place for place, _ in means], [value for _, value in means]


def _gaps_of(curves: Sequence[Curve]) -> str:
    """What to say of values that no line can show."""
    num_all = sum(len(curve.values) for curve in curves)
    num_gaps = sum(not math.isfinite(value) for curve in curves for value in curve.values)
    return f"   ({num_gaps:,} of {num_all:,} values are NaN or infinite)" if num_gaps else ""


def _is_long_tailed(values: Sequence[float]) -> bool:
    """Do the values reach over so many orders of magnitude that their end would be a flat line?"""
    # A few that happen to lie near zero are no tail.
    return bool(values) and min(values) > 0 and max(values) / sorted(values)[len(values) // 20] > 50


def _plain_number(value: float, _: object) -> str:
    return f"{value:g}"


def _fit_height(ax: Any, values: Sequence[float]) -> None:
    """Let the clear curves fill the panel; what is faint may leave it."""
    if not values:
        return
    low, high = min(values), max(values)
    if ax.get_yscale() == "log":
        margin = (high / low) ** 0.06
        ax.set_ylim(low / margin, high * margin)
    elif high > low:
        margin = 0.06 * (high - low)
        ax.set_ylim(low - margin, high + margin)


def _best_of(run_dir: str) -> Kept | None:
    try:
        return best_in(join(run_dir, "checkpoints"))
    except CheckpointError:  # the curves are still worth seeing
        return None


def _title(run_dir: str) -> str:
    full = Path(os.path.abspath(run_dir) if is_local(run_dir) else run_dir)
    return f"{full.parent.name}/{full.name}" if full.parent.name else full.name


def _number(cell: Any) -> float | None:
    try:
        return float(cell) if cell not in (None, "") else None
    except (TypeError, ValueError):
        return None


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fulmen.trainer.plots", description=__doc__)
    parser.add_argument("run", help="the folder of a run, or its metrics.csv")
    parser.add_argument("png", nargs="?", help=f"where the picture goes; by default {PICTURE_NAME} beside the metrics")
    given = parser.parse_args(args)
    try:
        print(plot_metrics(given.run, given.png))
    except MisconfigurationException as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
