"""Total time per action."""

import re
import time
from pathlib import Path

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.profilers.base import Profiler


class SimpleProfiler(Profiler):
    """Adds up how long each action took, and prints a table at the end.

    Args:
        dirpath, filename: As for every profiler.
        extended: Also the number of calls and the share of the whole time.
    """

    def __init__(self, dirpath: str | Path | None = None, filename: str | None = None, extended: bool = True) -> None:
        super().__init__(dirpath, filename)
        self.extended = extended
        self.current_actions: dict[str, float] = {}  # action: when it began, in seconds of a monotonic clock
        self.recorded_durations: dict[str, list[float]] = {}  # action: seconds of each call
        self.start_time = time.monotonic()
        self._around: frozenset[str] | None = None  # actions of the caller, around the run that is set up

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """A run begins; what is under way now goes on when it has ended."""
        super().setup(stage, local_rank, log_dir)
        self._around = frozenset(self.current_actions)

    def start(self, action_name: str) -> None:
        """An action begins.

        Raises:
            ConfigurationError: It is under way already.
        """
        if action_name in self.current_actions:
            raise ConfigurationError(
                f"SimpleProfiler.start({action_name!r}) was called while {action_name!r} is being timed."
                f" One name is one clock, and it cannot run twice at once."
                f" Stop it first, or give the inner action another name."
            )
        self.current_actions[action_name] = time.monotonic()

    def stop(self, action_name: str) -> None:
        """An action has ended.

        Raises:
            ConfigurationError: It was not begun.
        """
        end_time = time.monotonic()
        if action_name not in self.current_actions:
            raise ConfigurationError(
                f"SimpleProfiler.stop({action_name!r}) was called, and {action_name!r} is not being timed."
                f" There is no beginning to measure from."
                f" Call start({action_name!r}) first, or use `with profiler.profile({action_name!r})`."
            )
        duration = end_time - self.current_actions.pop(action_name)
        self.recorded_durations.setdefault(action_name, []).append(duration)

    def summary(self) -> str:
        """A table, the longest action first."""
        whole = time.monotonic() - self.start_time
        header = ["Action", "Mean (s)", "Total (s)"]
        if self.extended:
            header = ["Action", "Mean (s)", "Calls", "Total (s)", "Share (%)"]
        rows = [header]
        for action, durations in sorted(self.recorded_durations.items(), key=lambda item: -sum(item[1])):
            total = sum(durations)
            mean = f"{total / len(durations):.5g}"
            if self.extended:
                rows.append([_short(action), mean, str(len(durations)), f"{total:.5g}", f"{100 * total / whole:.2f}"])
            else:
                rows.append([_short(action), mean, f"{total:.5g}"])
        if self.extended:
            calls = sum(len(durations) for durations in self.recorded_durations.values())
            rows.insert(1, ["Total", "-", str(calls), f"{whole:.5g}", "100.00"])
        return _table(rows)

    def teardown(self, stage: str | None) -> None:
        """The run has ended, also by an error: an action of it that nobody has ended can begin anew."""
        if self._around is not None:
            self.current_actions = {name: since for name, since in self.current_actions.items() if name in self._around}
        self._around = None


def _short(action: str) -> str:
    """The name of an action without most of the arguments of its callback: a table wider than a screen is no table.

    >>> _short("[Callback]EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}.setup")
    "[Callback]EarlyStopping{'monitor': 'val_loss…}.setup"
    """
    return re.sub(r"\{(.{20}).{2,}\}", r"{\1…}", action)


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join(["Profiler report", rule, lines[0], rule, *lines[1:], rule, ""])
