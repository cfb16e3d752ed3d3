"""Draw the curves of a run from its `metrics.csv`: `python -m fulmen.trainer.plots RUN_DIR`.

Training and validation together, one panel for each quantity; learning rates in a lower panel; the epoch of the best
checkpoint marked.
"""

from __future__ import annotations

import argparse
import bisect
import csv
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from fulmen.fabric.errors import CheckpointError, ConfigurationError, MisconfigurationException
from fulmen.fabric.loggers.csv import MetricsFile
from fulmen.fabric.loggers.waiting_rows import read_waiting_rows
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
_RATE = re.compile(r"^(lr|learning_rate)([-_/.].*)?$")


@dataclass(frozen=True)
class Curve:
    """The points of one column.

    Attributes:
        quantity: What is measured, without the stage: "loss".
        stage: "train", "val", "test", or "" if the name says none.
        grain: "step", "epoch", or "" if the name says none.
        steps: Where.
        values: What.
    """

    quantity: str
    stage: str
    grain: str
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def plot_metrics(csv_path_or_run_dir: str | Path, png_path: str | Path | None = None) -> str:
    """Draw what a CSV logger wrote.

    Args:
        csv_path_or_run_dir: The folder of a run (`lightning_logs/version_0`), or its `metrics.csv`.
        png_path: Where the picture goes; by default `curves.png` beside the metrics.

    Returns:
        The path of the picture.

    Raises:
        ConfigurationError: If there are no such metrics, or nothing in them to draw.
        MissingPackageError: If matplotlib is not installed.
    """
    source = Path(csv_path_or_run_dir)
    if source.is_dir():
        source = source / MetricsFile.NAME_METRICS_FILE
    if not source.is_file():
        raise ConfigurationError(
            f"plot_metrics({str(csv_path_or_run_dir)!r}) finds no metrics. It reads {MetricsFile.NAME_METRICS_FILE!r},"
            f" which CSVLogger writes, and there is no file {str(source)!r}. Pass the folder of a run, or the file."
        )
    curves, epochs = read_curves(source)
    if not curves:
        raise ConfigurationError(
            f"plot_metrics({str(csv_path_or_run_dir)!r}) has nothing to draw. The file {str(source)!r} holds no number"
            " beside step and epoch. Log something with self.log, or pass another run."
        )
    target = Path(png_path) if png_path is not None else source.with_name(PICTURE_NAME)
    _draw(curves, Axis(epochs), _best_of(source.parent), title=_title(source.parent), target=target)
    return str(target)


def read_curves(csv_path: Path) -> tuple[list[Curve], dict[int, int]]:
    """The columns of a metrics file as curves, and the last step of each epoch."""
    found: dict[str, Curve] = {}
    epochs: dict[int, int] = {}
    with open(csv_path, newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        waiting = read_waiting_rows(str(csv_path.with_name(MetricsFile.NAME_WAITING_FILE)), table.fieldnames or ())
        for row in chain(table, waiting):
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

    def place(self, step: int) -> float:
        """Where a step lies: 1.0 is the end of the first epoch.

        >>> Axis({0: 9, 1: 19}).place(4), Axis({0: 9, 1: 19}).place(19)
        (0.5, 2.0)
        """
        if not self.in_epochs:
            return float(step)
        known = sorted(self.last_steps)
        ends = [self.last_steps[epoch] for epoch in known]
        index = min(bisect.bisect_left(ends, step), len(ends) - 1)
        before = ends[index - 1] if index else -1
        part = (step - before) / max(1, ends[index] - before)
        # An epoch that logged nothing has no end: it lies somewhere between its neighbours.
        began = known[index - 1] + 1 if index else 0
        return began + part * (known[index] + 1 - began)


def _curve_named(name: str) -> Curve:
    grain = ""
    base = name
    if match := _GRAIN.match(name):
        base, grain = match[1], match[2]
    if match := _STAGE.match(base):
        stage = match[1] or match[4]
        return Curve(match[2] or match[3], "val" if stage.startswith("val") else stage, grain)
    return Curve(base, "", grain)


def _draw(curves: Sequence[Curve], axis: Axis, best: Kept | None, *, title: str, target: Path) -> None:
    require("matplotlib", purpose="plot_metrics")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rates = [curve for curve in curves if _RATE.match(curve.quantity)]
    panels: dict[str, list[Curve]] = {}
    for curve in curves:
        if curve not in rates:
            panels.setdefault(curve.quantity, []).append(curve)
    names = sorted(
        panels, key=lambda name: (len({curve.stage for curve in panels[name]}) < 2, "loss" not in name, name)
    )
    heights = [3.0] * len(names) + ([1.4] if rates else [])
    # A figure of its own, not pyplot's: nothing global changes, and no window opens.
    figure = Figure(figsize=(8.0, sum(heights) + 1.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, color=_INK)
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
    axes = [row[0] for row in grid]
    shown: set[str] = set()
    for name, ax in zip(names, axes, strict=False):
        _panel(ax, name, panels[name], axis)
        stages = {curve.stage for curve in panels[name]} - {""}
        if not stages <= shown:  # the colours mean the same in all panels
            ax.legend(framealpha=0.9, edgecolor="none", fontsize=9, labelcolor=_INK, loc="best")
            shown |= stages
    if rates:
        _rate_panel(axes[-1], rates, axis)
    if best is not None and best.epoch is not None:
        _mark_best(axes, panels, names, axis, best)
    figure.align_ylabels(axes)
    axes[-1].set_xlabel("epochs" if axis.in_epochs else "step", color=_INK)
    if axis.in_epochs:
        from matplotlib.ticker import MaxNLocator

        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[-1].set_xlim(0, 1.02 * (max(axis.last_steps) + 1))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)


def _panel(ax: Any, quantity: str, curves: Sequence[Curve], axis: Axis) -> None:
    _style(ax, quantity)
    both = {curve.stage for curve in curves if curve.grain == "epoch"}
    clear: list[float] = []
    for curve in sorted(curves, key=lambda curve: (curve.stage != "train", curve.grain != "step")):
        places = [axis.place(step) for step in curve.steps]
        # Beside its own mean over the epoch, the noise of single steps is background.
        faint = curve.grain == "step" and curve.stage in both
        if not faint:
            clear += [value for value in curve.values if math.isfinite(value)]
        ax.plot(
            places,
            curve.values,
            color=_COLOURS[curve.stage],
            alpha=0.3 if faint else 1.0,
            linewidth=1.0 if faint else 1.8,
            marker="o" if len(places) <= 40 and not faint else None,
            markersize=3.5,
            label=None if faint else _LABELS[curve.stage] or quantity,
            zorder=1 if faint else 3,
        )
    if _is_long_tailed(clear):
        from matplotlib.ticker import FuncFormatter, NullFormatter

        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(_plain_number))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.tick_params(which="minor", left=False)
    _fit_height(ax, clear)


def _rate_panel(ax: Any, rates: Sequence[Curve], axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    _style(ax, "learning rate")
    for number, curve in enumerate(rates):
        places = [axis.place(step) for step in curve.steps]
        ax.plot(
            places, curve.values, color=_INK, alpha=max(0.3, 1.0 - 0.25 * number), linewidth=1.4, label=curve.quantity
        )
    ax.yaxis.set_major_locator(MaxNLocator(nbins=3))
    ax.yaxis.set_major_formatter(FuncFormatter(_plain_number))
    if len(rates) > 1:
        ax.legend(frameon=False, fontsize=8, labelcolor=_INK)


def _mark_best(
    axes: Sequence[Any], panels: Mapping[str, list[Curve]], names: Sequence[str], axis: Axis, best: Kept
) -> None:
    assert best.epoch is not None
    steps = axis.last_steps.get(best.epoch)
    if steps is None:
        return
    place = axis.place(steps)
    for ax in axes:
        ax.axvline(place, color=_INK, linewidth=1.0, linestyle=(0, (2, 3)), zorder=0)
    words = "best checkpoint"
    if best.monitor is not None and best.score is not None:
        words += f": {best.monitor} = {best.score:.4g}"
    words += f" after {best.epoch + 1} epochs" if best.epoch else " after 1 epoch"
    on_the_left = axis.in_epochs and place > (max(axis.last_steps) + 1) / 2
    axes[0].annotate(
        words,
        xy=(place, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if on_the_left else 4, 4),
        textcoords="offset points",
        ha="right" if on_the_left else "left",
        va="bottom",
        fontsize=9,
        color=_INK,
    )
    monitored = _curve_named(best.monitor) if best.monitor else None
    if monitored is not None and monitored.quantity in names and best.score is not None:
        ax = axes[names.index(monitored.quantity)]
        ax.plot([place], [best.score], marker="o", markersize=9, markerfacecolor="none", color=_INK, zorder=4)


def _style(ax: Any, label: str) -> None:
    ax.set_ylabel(label, color=_INK)
    ax.grid(axis="y", color=_FAINT, linewidth=0.5, alpha=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(_FAINT)
    ax.tick_params(colors=_INK, labelsize=9, length=3)


def _is_long_tailed(values: Sequence[float]) -> bool:
    """Do the values reach over so many orders of magnitude that their end would be a flat line?"""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 50


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


def _best_of(run_dir: Path) -> Kept | None:
    try:
        return best_in(str(run_dir / "checkpoints"))
    except CheckpointError:  # the curves are still worth seeing
        return None


def _title(run_dir: Path) -> str:
    full = Path(os.path.abspath(run_dir))
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
