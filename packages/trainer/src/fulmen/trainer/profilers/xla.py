"""Marks actions for the profiler of XLA."""

from contextlib import ExitStack
from typing import Any, ClassVar

from fulmen.fabric.optional_packages import require
from fulmen.trainer.profilers.base import Profiler


class XLAProfiler(Profiler):
    """Serves the profile of this process, with the steps of the run and their backward passes as ranges.

    Look at it in TensorBoard's profile plugin, or by `torch_xla.debug.profiler.trace`: the address is `localhost:PORT`.
    https://docs.pytorch.org/xla/release/r2.7/debug/debug.html

    Args:
        port: Where it is served; with several processes on one machine, the first has this port, and the others those
            that follow it.

    Raises:
        MissingPackageError: If torch_xla is not installed.
    """

    STEP_FUNCTIONS: ClassVar[set[str]] = {"validation_step", "test_step", "predict_step"}
    RECORD_FUNCTIONS: ClassVar[set[str]] = {
        "training_step",
        "backward",
        "validation_step",
        "test_step",
        "predict_step",
    }

    def __init__(self, port: int = 9012) -> None:
        require("torch_xla", purpose=type(self).__name__)
        super().__init__()
        self.port = port
        self.server: Any = None
        self._ranges: dict[str, list[Any]] = {}
        self._steps: dict[str, int] = {}

    def start(self, action_name: str) -> None:
        """An action begins; with the first that is recorded, so does the server."""
        function = action_name.rpartition(".")[2]
        if function not in self.RECORD_FUNCTIONS:
            return
        xla: Any = require("torch_xla.debug.profiler", purpose=type(self).__name__, pip="torch_xla")
        if self.server is None:
            self.server = xla.start_server(self.port + self.local_rank)
        if function in self.STEP_FUNCTIONS:
            step = self._steps.get(action_name, 0)
            self._steps[action_name] = step + 1
            mark = xla.StepTrace(action_name, step_num=step)
        else:
            mark = xla.Trace(action_name)
        mark.__enter__()
        self._ranges.setdefault(action_name, []).append(mark)

    def stop(self, action_name: str) -> None:
        """An action has ended."""
        marks = self._ranges.get(action_name)
        if marks:
            marks.pop().__exit__(None, None, None)

    def teardown(self, stage: str | None) -> None:
        """The run has ended, also by an error: so do the ranges that nobody has ended, the last ones first."""
        with ExitStack() as ends:
            for marks in self._ranges.values():
                for mark in marks:
                    ends.push(mark)
            self._ranges = {}

    def __getstate__(self) -> dict[str, Any]:
        # A server belongs to its process.
        return {**self.__dict__, "server": None, "_ranges": {}}
