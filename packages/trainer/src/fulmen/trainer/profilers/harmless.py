"""A profiler as a run uses it: what it raises is reported once for each method, and ends nothing."""

import logging
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.profilers.base import Profiler

log = logging.getLogger(__name__)


class Harmless:
    """Calls the methods of a profiler. It only watches a run, so no error of it ends one, or hides another error."""

    def __init__(self, profiler: Profiler) -> None:
        self._profiler = profiler
        self._reported: set[str] = set()

    def setup(self, **about_the_run: Any) -> None:
        """A run begins.

        Args:
            about_the_run: As for `Profiler.setup`.

        Raises:
            MisconfigurationException: From the profiler: one of its arguments is wrong, which is said before any work.
        """
        self._reported.clear()
        try:
            self._profiler.setup(**about_the_run)
        except MisconfigurationException:
            raise
        except Exception as error:
            self._report("setup", error)

    def end(self, stage: str) -> None:
        """The run has ended well: the report, and then the end of the profiler."""
        self._call("describe", self._profiler.describe)
        self.teardown(stage)

    def teardown(self, stage: str) -> None:
        """The run has ended."""
        self._call("teardown", partial(self._profiler.teardown, stage=stage))

    def watch(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, each call of which is an action of this name."""
        profiler = self._profiler
        own = getattr(profiler.profile, "__func__", None) is not Profiler.profile
        make: Callable[[], Any] = partial(_OwnAction if own else _Action, profiler, label, self._report)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with make():
                return function(*args, **kwargs)

        return watched

    def _call(self, method: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self._report(method, error)

    def _report(self, method: str, error: Exception) -> None:
        if method in self._reported:
            return
        self._reported.add(method)
        log.error(
            "%s.%s failed: %r. A profiler only watches a run, so it goes on. The report may lack something: the"
            " traceback says why; further errors of this method are not told.",
            type(self._profiler).__name__,
            method,
            error,
            exc_info=error,
        )


class _Action:
    """One action, by `start` and `stop`. One that could not begin does not end either."""

    __slots__ = ("_label", "_profiler", "_report", "_runs")

    def __init__(self, profiler: Profiler, label: str, report: Callable[[str, Exception], None]) -> None:
        self._profiler, self._label, self._report = profiler, label, report
        self._runs = False

    def __enter__(self) -> None:
        try:
            self._profiler.start(self._label)
            self._runs = True
        except Exception as error:
            self._report("start", error)

    def __exit__(self, *_: object) -> None:
        if not self._runs:
            return
        try:
            self._profiler.stop(self._label)
        except Exception as error:
            self._report("stop", error)


class _OwnAction:
    """One action of a profiler with a `profile` of its own; that one swallows no error either."""

    __slots__ = ("_label", "_profiler", "_report", "_runs")

    def __init__(self, profiler: Profiler, label: str, report: Callable[[str, Exception], None]) -> None:
        self._profiler, self._label, self._report = profiler, label, report
        self._runs: Any = None

    def __enter__(self) -> None:
        try:
            runs = self._profiler.profile(self._label)
            runs.__enter__()
            self._runs = runs
        except Exception as error:
            self._report("profile", error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._runs is None:
            return
        try:
            self._runs.__exit__(kind, error, traceback)
        except Exception as later:
            if later is not error:
                self._report("profile", later)
