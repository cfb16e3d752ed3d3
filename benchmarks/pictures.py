"""The picture of docs/performance.md: training beside the plain loop.

Colours are those of Okabe and Ito, which people who see few colours can tell apart; ours also have a hatch.

    python benchmarks/pictures.py training docs/performance.json docs/performance.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OURS, OTHERS, LINE = "#0072B2", "#C8C8C8", "#333333"
# One row for each way to work; settings that lie between are left to the table.
ROWS = (
    ("fabric", "Fulmen Fabric"),
    ("off", "Fulmen Trainer, all off"),
    ("defaults", "Fulmen Trainer, defaults"),
    ("accelerate", "Accelerate"),
    ("ignite.off", "Ignite, all off"),
    ("ignite.bar", "Ignite, with bar"),
    ("skorch.off", "skorch, all off"),
    ("skorch.bar", "skorch, defaults"),
    ("keras.off", "Keras on torch"),
    ("transformers.off", "Transformers Trainer, all off"),
    ("transformers.bar", "Transformers Trainer, defaults"),
    ("lightning.fabric", "Lightning Fabric"),
    ("lightning.off", "Lightning Trainer, all off"),
    ("lightning.defaults", "Lightning Trainer, defaults"),
)


def draw_training(numbers: dict[str, Any], path: Path) -> None:
    """Bars of what a training step takes, the plain loop's being 1; one panel for each job."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = [(key, title) for key, title in ROWS if key in numbers["titles"]]
    works: dict[str, str] = numbers["works"]
    with plt.rc_context({"font.size": 9, "hatch.color": "white", "hatch.linewidth": 0.6}):
        figure, panels = plt.subplots(
            1, len(works), figsize=(2.6 * len(works) + 2.6, 0.3 * len(rows) + 1.6), sharey=True, squeeze=False
        )
        for axes, (work, title) in zip(panels[0], works.items(), strict=True):
            found = [numbers["train"][work][key]["ratios"] for key, _ in rows]
            for place, ((key, _), (low, middle, high)) in enumerate(zip(rows, found, strict=True)):
                own = "." not in key and key != "accelerate"
                # From 1 on: what is left of the line would be nothing but the plain loop.
                axes.barh(
                    place, middle - 1, left=1, height=0.72, color=OURS if own else OTHERS, hatch="///" if own else ""
                )
                axes.plot([low, high], [place, place], color=LINE, linewidth=1)
                end = max(middle, high, 1)
                axes.text(
                    end * 1.06, place, f"{middle:.2f}", va="center", fontsize=8, fontweight="bold" if own else "normal"
                )
            top = max(high for _, _, high in found)
            axes.set_xscale("log")
            axes.set_xlim(min(0.9, *(low for low, _, _ in found)), max(2.0, 2.2 * top))
            axes.axvline(1, color=LINE, linewidth=1)
            ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 50) if tick <= max(2.0, top)]
            axes.set_xticks(ticks, [f"{tick}" for tick in ticks])
            axes.set_xticks([], minor=True)
            axes.set_title(title.replace(", ", ",\n").replace(" on digits", "\non digits"), fontsize=9, loc="left")
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
        panels[0][0].set_yticks(range(len(rows)), [title for _, title in rows])
        panels[0][0].invert_yaxis()
        figure.supxlabel(
            "time of a training step; the plain torch loop takes 1 (log scale; line: quartiles)", fontsize=9
        )
        figure.tight_layout()
        figure.savefig(path, dpi=150)
        plt.close(figure)


def main(arguments: list[str]) -> None:
    """Command line."""
    if len(arguments) != 3 or arguments[0] != "training":
        raise SystemExit(__doc__)
    data = json.loads(Path(arguments[1]).read_text())
    draw_training(data["parts"]["peers"]["numbers"], Path(arguments[2]))


if __name__ == "__main__":
    main(sys.argv[1:])
