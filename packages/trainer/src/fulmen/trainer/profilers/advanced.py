"""Which functions take the time within each action."""

import io
import pstats
from cProfile import Profile
from pathlib import Path
from typing import Any

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.trainer.profilers.base import Profiler
from fulmen.trainer.profilers.report_files import action_file


class AdvancedProfiler(Profiler):
    """Runs Python's cProfile over each action, and reports the functions of each, the most expensive first.

    Python profiles one thing at a time: while an action inside another one runs, only the inner one is measured.

    Args:
        dirpath, filename: As for every profiler.
        line_count_restriction: How many functions are listed for each action: a whole number of them, or a share of
            all as a float up to 1.0.
        dump_stats: Also write a `.prof` file for each action, for `python -m pstats` or snakeviz. They go to
            `dirpath`, or to the log folder of the run.

    Raises:
        ConfigurationError: For a restriction that lists nothing.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        line_count_restriction: float = 1.0,
        dump_stats: bool = False,
    ) -> None:
        super().__init__(dirpath, filename)
        number = isinstance(line_count_restriction, (int, float)) and not isinstance(line_count_restriction, bool)
        if not number or line_count_restriction <= 0 or (line_count_restriction > 1 and line_count_restriction % 1):
            raise ConfigurationError(
                f"AdvancedProfiler(line_count_restriction={line_count_restriction!r}) cannot restrict a table."
                " It is a number of lines, or a share of all lines that is above 0 and at most 1."
                " Pass 20, or 0.1, for example."
            )
        # A float means a share to pstats: 20.0 lines are told as 20.
        whole = line_count_restriction > 1
        self.line_count_restriction = int(line_count_restriction) if whole else line_count_restriction
        self.dump_stats = dump_stats
        self.profiled_actions: dict[str, Profile] = {}
        self._running: list[str] = []  # the innermost action is the last, and the only one that is measured
        self._around: frozenset[str] | None = None  # actions of the caller, around the run that is set up

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """A run begins; what is under way now goes on when it has ended."""
        super().setup(stage, local_rank, log_dir)
        self._around = frozenset(self._running)

    def start(self, action_name: str) -> None:
        """An action begins; the one around it is not measured until it ends.

        Raises:
            ConfigurationError: It is under way already, or something else profiles this program.
        """
        if action_name in self._running:
            raise ConfigurationError(
                f"AdvancedProfiler.start({action_name!r}) was called while {action_name!r} is being profiled."
                " One name is one profile, and it cannot run twice at once."
                " Stop it first, or give the inner action another name."
            )
        self._pause()
        profile = self.profiled_actions.setdefault(action_name, Profile())
        try:
            profile.enable()
        except ValueError as error:  # from Python 3.12 on
            raise ConfigurationError(
                f"AdvancedProfiler.start({action_name!r}) cannot profile: {error}."
                " Python profiles one thing at a time, and this program runs under another profiler."
                " Run it without, or use profiler='simple'."
            ) from error
        self._running.append(action_name)

    def stop(self, action_name: str) -> None:
        """An action has ended; the one around it is measured again.

        Raises:
            ConfigurationError: It was not begun.
        """
        if action_name not in self._running:
            raise ConfigurationError(
                f"AdvancedProfiler.stop({action_name!r}) was called, and {action_name!r} is not being profiled."
                " There is nothing to end."
                f" Call start({action_name!r}) first, or use `with profiler.profile({action_name!r})`."
            )
        self._pause()
        self._running.remove(action_name)
        self._resume()

    def summary(self) -> str:
        """For each action the functions that it called, those with the longest time first."""
        self._pause()
        tables = []
        for action, profile in sorted(self.profiled_actions.items()):
            text = io.StringIO()
            stats = pstats.Stats(profile, stream=text).strip_dirs().sort_stats("cumulative")
            stats.print_stats(self.line_count_restriction)
            tables.append(f"Profile of {action}\n{text.getvalue().strip()}\n")
        self._resume()
        return "\n".join(["Profiler report", *tables]) if tables else ""

    def describe(self) -> None:
        """Print the summary, or write it to the file that was asked for; write the `.prof` files."""
        super().describe()
        if not self.dump_stats or not self.profiled_actions:
            return
        folder = self.dirpath or self._log_dir
        if folder is None:
            rank_zero_warn(
                "AdvancedProfiler(dump_stats=True) wrote no .prof files. It was given no folder, and the run has none."
                " Pass dirpath."
            )
            return
        self._pause()
        rank = None if self._local_rank is None else str(self._local_rank)
        for action, profile in self.profiled_actions.items():
            profile.dump_stats(action_file(folder, [self._stage, self.filename, rank, action], ".prof"))
        self._resume()

    def teardown(self, stage: str | None) -> None:
        """The run has ended; the next one begins without the numbers of this one."""
        self._pause()
        if self._around is not None:
            self._running = [action for action in self._running if action in self._around]
        self._around = None
        self.profiled_actions = {action: self.profiled_actions[action] for action in self._running}
        self._resume()

    def _pause(self) -> None:
        if self._running:
            self.profiled_actions[self._running[-1]].disable()

    def _resume(self) -> None:
        if self._running:
            self.profiled_actions[self._running[-1]].enable()

    def __getstate__(self) -> dict[str, Any]:
        # Profiles hold code objects, which cannot be sent to another process.
        return {**self.__dict__, "profiled_actions": {}, "_running": [], "_around": None}
