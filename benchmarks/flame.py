"""A flame graph of a fit with the defaults: where the CPU time of the main thread goes, as a picture.

An MLP on the digits, 20 epochs of ten steps, so that the ends of epochs show. The process is interrupted after each
few milliseconds of CPU, and the Python functions that it is in are counted. Width is the share of all samples; calls go
upward. Frames outside of the fit are left out.

    python benchmarks/flame.py flame.png
    python benchmarks/flame.py flame.png --row off --rounds 20
"""

from __future__ import annotations

import argparse
import signal
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from peer_rows import FRAMEWORKS, quiet
from peer_work import WORKS, Job
from step_overhead import Stopwatch, terminal

NUM_EPOCHS, STEPS_OF_AN_EPOCH = 20, 10
INTERVAL_S = 1e-3  # many systems tick only every fourth
NARROWEST, NARROWEST_TEXT = 0.002, 0.02  # of all samples
FIRST_FRAME = "FitLoop.run"
# Okabe and Ito: told apart also by who sees few colours.
COLOURS = {"fulmen": "#56B4E9", "torch": "#E69F00", "": "#CCCCCC"}


@dataclass(slots=True)
class Node:
    """A function, as called from where it stands in the graph."""

    code: CodeType | None = None
    num_samples: int = 0
    calls: dict[CodeType, Node] = field(default_factory=dict)


class Sampler(Stopwatch):
    """Counts where the main thread is, between start and stop."""

    def __init__(self, root: Node) -> None:
        super().__init__()
        self._root = root
        self.cpu_s = 0.0

    def start(self) -> None:
        """From here on."""
        self.cpu_s -= time.process_time()
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    def stop(self) -> None:
        """Up to here."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        self.cpu_s += time.process_time()

    def _take(self, number: int, frame: FrameType | None) -> None:
        stack: list[CodeType] = []
        while frame is not None:
            stack.append(frame.f_code)
            frame = frame.f_back
        names = [code.co_qualname for code in reversed(stack)]
        if FIRST_FRAME not in names:
            return
        node = self._root
        node.num_samples += 1
        for code in list(reversed(stack))[names.index(FIRST_FRAME) :]:
            node = node.calls.setdefault(code, Node(code))
            node.num_samples += 1


def kind(code: CodeType) -> str:
    """Whose function it is: a key of COLOURS."""
    path = Path(code.co_filename).parts
    return "fulmen" if "fulmen" in path else "torch" if "torch" in path else ""


def draw(root: Node, title: str, path: Path) -> None:
    """One box for each function; those of the fit itself at the bottom."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    boxes: list[tuple[float, int, float, CodeType]] = []

    def lay(node: Node, left: float, level: int) -> None:
        for child in sorted(node.calls.values(), key=lambda child: -child.num_samples):
            width = child.num_samples / root.num_samples
            if width >= NARROWEST and child.code is not None:
                boxes.append((left, level, width, child.code))
                lay(child, left, level + 1)
            left += width

    lay(root, 0.0, 0)
    depth = 1 + max(level for _, level, _, _ in boxes)
    figure, axes = plt.subplots(figsize=(14, 0.21 * depth + 1.0))
    for left, level, width, code in boxes:
        axes.barh(level, width, left=left, height=1, color=COLOURS[kind(code)], edgecolor="white", linewidth=0.5)
        room = int(width * 210)  # letters that fit
        name = code.co_qualname.replace(".<locals>", "")
        if width >= NARROWEST_TEXT:
            shown = name if len(name) <= room else name.rpartition(".")[2][:room]
            axes.text(left + 0.002, level, shown, va="center", fontsize=6.5, clip_on=True)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.5, depth - 0.5)
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("share of the CPU time", fontsize=9)
    axes.spines[:].set_visible(False)
    patches = [Patch(color=colour) for colour in COLOURS.values()]
    labels = ["Fulmen", "torch", "the rest: the user's module and data, Python, tqdm"]
    axes.legend(patches, labels, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8, frameon=False)
    axes.set_title(title, fontsize=10, loc="left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, metavar="PNG", help="where to draw")
    parser.add_argument("--row", default="defaults", help="off, log, bar or defaults (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="fits that are added up (%(default)s)")
    given = parser.parse_args(arguments)
    rows: dict[str, Any] = {each.key: each for each in FRAMEWORKS if each.key in ("off", "log", "bar", "defaults")}
    if given.row not in rows or given.rounds < 1:
        wanted = f"--row {given.row} --rounds {given.rounds}"
        parser.error(f"{wanted} draws nothing. It takes fits of one row. Pass one of {', '.join(rows)}, and 1 or more.")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    root, cpu_s = Node(), 0.0
    for round_idx in range(-1, given.rounds):
        # The first round is for imports and caches.
        sampler = Sampler(root if round_idx >= 0 else Node())
        with terminal(), quiet():
            rows[given.row].train(Job(WORKS[1], NUM_EPOCHS * STEPS_OF_AN_EPOCH, NUM_EPOCHS, watch=sampler))
        cpu_s += sampler.cpu_s if round_idx >= 0 else 0.0
    name, num_epochs = rows[given.row].title.replace("*", ""), given.rounds * NUM_EPOCHS
    each = f"{cpu_s / num_epochs * 1e3:.1f} ms of CPU for an epoch of {STEPS_OF_AN_EPOCH} steps"
    draw(root, f"{name}: {each}", given.picture)
    print(f"{given.picture}: {root.num_samples} samples. {name}: {each}.")


if __name__ == "__main__":
    main()
