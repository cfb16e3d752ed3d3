"""Which operators take the time and the memory: torch.profiler over the steps of a run."""

import inspect
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, HardwareError, MisconfigurationException
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.trainer.profilers.base import Profiler
from fulmen.trainer.profilers.report_files import action_file

if TYPE_CHECKING:
    from torch.autograd.profiler_util import EventList

# Arguments of the table that are parameters of the profiler, and their names there.
_OWN_TABLE_ARGUMENTS = {"sort_by": "sort_by_key", "row_limit": "row_limit"}

# Options that are called, and an example of each.
_FUNCTIONS = {
    "schedule": "torch.profiler.schedule(wait=1, warmup=1, active=3)",
    "on_trace_ready": "torch.profiler.tensorboard_trace_handler('traces')",
}


class TableArgumentError(MisconfigurationException, KeyError):
    """`table_kwargs` names an argument that the table does not have."""

    __str__ = Exception.__str__  # KeyError would quote the whole sentence


class PyTorchProfiler(Profiler):
    """Records operators with `torch.profiler`, prints a table of them, and writes traces for chrome://tracing.

    Every action and every call of a module is a range of its own in the trace. A trace is written to `dirpath`, or to
    the log folder of the run, where TensorBoard's profile plugin finds it; its name is
    `STAGE-FILENAME-ACTION.TIME.pt.trace.json`.

    The schedule counts the training, validation, test and predict steps of a run together, beginning with 0. Without
    one, the first step is left out, the second is for warming up, and the three after it are recorded, once.

    Args:
        dirpath, filename: As for every profiler; traces need a folder, and no file name.
        group_by_input_shapes: One line of the table for each operator and shape of its inputs?
        emit_nvtx: Mark ranges for NVIDIA's own profilers and record nothing here:
            `nsys profile --capture-range=cudaProfilerApi python train.py`. Needs CUDA.
        export_to_chrome: Write traces?
        row_limit: Lines of the table; -1 for all.
        sort_by_key: What the table is sorted by, one of `AVAILABLE_SORT_KEYS`. None: the total time on the GPU if
            there is one, else on the CPU.
        record_module_names: Mark the calls of modules in the trace? Leave it off for modules that are compiled.
        table_kwargs: Further arguments of `torch.autograd.profiler_util.EventList.table`.
        profiler_kwargs: Arguments of `torch.profiler.profile`: `activities`, `schedule` (None: every step is recorded),
            `on_trace_ready` (called in place of writing a trace), `profile_memory`, `with_stack`, ...

    Raises:
        ConfigurationError: For a sort key, a schedule, or an argument of `torch.profiler.profile` that does not exist.
        TableArgumentError: For an argument that the table does not have, or that has a parameter of its own here.
        HardwareError: For `emit_nvtx` without CUDA.
    """

    AVAILABLE_SORT_KEYS: ClassVar[set[str]] = {
        "cpu_time",
        "cuda_time",
        "cpu_time_total",
        "cuda_time_total",
        "cpu_memory_usage",
        "cuda_memory_usage",
        "self_cpu_memory_usage",
        "self_cuda_memory_usage",
        "count",
    }
    STEP_FUNCTIONS: ClassVar[set[str]] = {"training_step", "validation_step", "test_step", "predict_step"}

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        group_by_input_shapes: bool = False,
        emit_nvtx: bool = False,
        export_to_chrome: bool = True,
        row_limit: int = 20,
        sort_by_key: str | None = None,
        record_module_names: bool = True,
        table_kwargs: dict[str, Any] | None = None,
        **profiler_kwargs: Any,
    ) -> None:
        super().__init__(dirpath, filename)
        on_gpu = torch.cuda.is_available()
        if emit_nvtx and not on_gpu:
            raise HardwareError(
                "PyTorchProfiler(emit_nvtx=True) marks ranges for NVIDIA's profilers. This machine has no CUDA device,"
                " so there is nothing that could read them. Leave emit_nvtx out here."
            )
        self._sort_by_key = sort_by_key or ("cuda_time_total" if on_gpu else "cpu_time_total")
        _check_sort_key(self._sort_by_key, self.AVAILABLE_SORT_KEYS)
        _check_table_kwargs(table_kwargs or {})
        self._options = _checked_options(profiler_kwargs, on_gpu=on_gpu)
        if group_by_input_shapes:
            self._options["record_shapes"] = True
        self._group_by_input_shapes = group_by_input_shapes
        self._emit_nvtx = emit_nvtx
        self._export_to_chrome = export_to_chrome
        self._row_limit = row_limit
        self._record_module_names = record_module_names
        self._table_kwargs = table_kwargs or {}

        self.profiler: torch.profiler.profile | None = None
        self.function_events: EventList | None = None
        self._session: ExitStack | None = None
        self._ended = False
        self._ranges: dict[str, list[torch.profiler.record_function]] = {}
        self._steps = 0
        self._step_name = ""

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """A run begins; recording begins with its next action."""
        super().setup(stage, local_rank, log_dir)
        self._ended = False

    def start(self, action_name: str) -> None:
        """An action begins: a range in the trace. A step moves the schedule on."""
        if self._ended:
            return
        if self._session is None:
            self._begin()
        if action_name.rpartition(".")[2] in self.STEP_FUNCTIONS:
            # Moved on where a step begins, so that its backward and optimizer step are recorded with it.
            if self._steps and self.profiler is not None:
                self.profiler.step()
            self._steps += 1
            self._step_name = action_name
        mark = torch.profiler.record_function(action_name)
        mark.__enter__()
        self._ranges.setdefault(action_name, []).append(mark)

    def stop(self, action_name: str) -> None:
        """An action has ended. One that began before the recording did is left alone."""
        marks = self._ranges.get(action_name)
        if marks:
            marks.pop().__exit__(None, None, None)

    def summary(self) -> str:
        """The operators of the last window that was recorded, as a table; recording ends."""
        began, steps = self._session is not None, self._steps
        self._close()
        if self._emit_nvtx or not (began or self.function_events):
            return ""
        if not self.function_events:
            rank_zero_warn(
                f"PyTorchProfiler has recorded nothing in {steps} steps. The schedule had not come to its active"
                " steps when the run ended. Run more steps, or pass schedule=None to record all."
            )
            return ""
        averages = self.function_events.key_averages(group_by_input_shapes=self._group_by_input_shapes)
        table = averages.table(sort_by=self._sort_by_key, row_limit=self._row_limit, **self._table_kwargs)
        return f"Profiler report\n{table}\n"

    def teardown(self, stage: str | None) -> None:
        """The run has ended, also by an error: what was recorded until then is written."""
        self._close()
        self._ended = True
        self.function_events = None

    def _begin(self) -> None:
        with ExitStack() as stack:
            if self._emit_nvtx:
                shapes = self._options.get("record_shapes", False)
                stack.enter_context(torch.cuda.profiler.profile())
                stack.enter_context(torch.autograd.profiler.emit_nvtx(record_shapes=shapes))
            else:
                self.function_events = None
                options = {**self._options, "on_trace_ready": self._trace_ready}
                self.profiler = stack.enter_context(torch.profiler.profile(**options))
            if self._record_module_names:
                stack.enter_context(_NamedCalls())
            self._session = stack.pop_all()
        self._steps = 0

    def _close(self) -> None:
        if self._session is None:
            return
        # Whatever fails here, a trace that cannot be written for one, the rest is closed too.
        with ExitStack() as ends:
            ends.push(self._session)
            for marks in self._ranges.values():
                for mark in marks:
                    ends.push(mark)
            self._ranges, self._session, self.profiler, self._steps = {}, None, None, 0

    def _trace_ready(self, profiler: torch.profiler.profile) -> None:
        self.function_events = profiler.events()
        own = self._options.get("on_trace_ready")
        if own is not None:
            own(profiler)
        elif self._export_to_chrome:
            self._export(profiler)

    def _export(self, profiler: torch.profiler.profile) -> None:
        folder = self.dirpath or self._log_dir
        if folder is None:
            rank_zero_warn(
                "PyTorchProfiler(export_to_chrome=True) wrote no trace. It was given no folder, and the run has none."
                " Pass dirpath, or export_to_chrome=False."
            )
            return
        rank = None if self._local_rank is None else str(self._local_rank)
        parts = [self._stage, self.filename, rank, self._step_name]
        profiler.export_chrome_trace(action_file(folder, parts, f".{time.time_ns()}.pt.trace.json"))

    def __getstate__(self) -> dict[str, Any]:
        # A recording belongs to its process.
        idle: dict[str, Any] = {"profiler": None, "function_events": None, "_session": None, "_ranges": {}, "_steps": 0}
        return {**self.__dict__, **idle}


class _NamedCalls:
    """Marks every call of a module while it is entered: `[Module]layers.0: Linear`.

    The name is the path from the outermost module whose call is under way; that one has only its type.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[nn.Module, torch.profiler.record_function]] = []
        self._names: dict[int, str] = {}  # by id: all are alive while their root is called
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        hooks = torch.nn.modules.module
        self._hooks = [
            hooks.register_module_forward_pre_hook(self._before),
            hooks.register_module_forward_hook(self._after, always_call=True),
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        while self._calls:
            self._calls.pop()[1].__exit__(None, None, None)

    def _before(self, module: nn.Module, _: Any) -> None:
        if not self._calls:
            self._names = {id(child): name for name, child in module.named_modules()}
        path = self._names.get(id(module), "")
        mark = torch.profiler.record_function(f"[Module]{path}{': ' if path else ''}{type(module).__name__}")
        mark.__enter__()
        self._calls.append((module, mark))

    def _after(self, module: nn.Module, *_: Any) -> None:
        # A call that failed is not told of by every version of torch: those inside it end with it.
        while self._calls and any(called is module for called, _ in self._calls):
            called, mark = self._calls.pop()
            mark.__exit__(None, None, None)
            if called is module:
                break


def _check_sort_key(key: str, known: set[str]) -> None:
    if key not in known:
        raise ConfigurationError(
            f"PyTorchProfiler(sort_by_key={key!r}) is unknown. The table cannot be sorted by it."
            f" Pass one of {', '.join(map(repr, sorted(known)))}."
        )


def _check_table_kwargs(table_kwargs: dict[str, Any]) -> None:
    from torch.autograd.profiler_util import EventList

    known = set(inspect.signature(EventList.table).parameters) - {"self", *_OWN_TABLE_ARGUMENTS}
    for key in table_kwargs:
        if key in _OWN_TABLE_ARGUMENTS:
            raise TableArgumentError(
                f"PyTorchProfiler(table_kwargs={table_kwargs!r}) holds {key!r}. The profiler has a parameter of its own"
                f" for it. Pass {_OWN_TABLE_ARGUMENTS[key]}=... instead."
            )
        if key not in known:
            raise TableArgumentError(
                f"PyTorchProfiler(table_kwargs={table_kwargs!r}) holds {key!r}. EventList.table has no such argument."
                f" It has {', '.join(sorted(known))}."
            )


def _checked_options(given: dict[str, Any], *, on_gpu: bool) -> dict[str, Any]:
    """Arguments for `torch.profiler.profile`."""
    from torch.profiler import ProfilerAction, ProfilerActivity, profile
    from torch.profiler import schedule as windows

    known = set(inspect.signature(profile.__init__).parameters) - {"self"}
    for key in given:
        if key not in known:
            raise ConfigurationError(
                f"PyTorchProfiler({key}=...) is unknown. It is no parameter of the profiler, nor of"
                f" torch.profiler.profile. Those of the latter are {', '.join(sorted(known))}."
            )
    for key in _FUNCTIONS:
        if given.get(key) is not None and not callable(given[key]):
            raise ArgumentTypeError(
                f"PyTorchProfiler({key}={given[key]!r}) is a {type(given[key]).__name__}. The profiler has to call it."
                f" Pass a function, such as {_FUNCTIONS[key]}."
            )
    schedule = given.get("schedule")
    if schedule is not None and not isinstance(schedule(0), ProfilerAction):
        raise ConfigurationError(
            f"PyTorchProfiler(schedule=...) gave {schedule(0)!r} for step 0. A schedule says for each step what is to"
            " be done, as a ProfilerAction. Pass torch.profiler.schedule(wait=1, warmup=1, active=3), for example."
        )
    defaults: dict[str, Any] = {
        "activities": [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
        "schedule": windows(wait=1, warmup=1, active=3, repeat=1),
    }
    return {**defaults, **given}
