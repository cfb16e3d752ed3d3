"""What RichProgressBar draws with: columns and bars of rich, in our words.

The classes are made when they are first asked for: their bases come from rich, which need not be installed.
"""

import math
from collections.abc import Iterable
from datetime import timedelta
from functools import cache
from types import SimpleNamespace
from typing import Any

from fulmen.fabric.optional_packages import is_installed, require
from fulmen.trainer.callbacks.tqdm_bar import short_number

MAX_BAR_WIDTH = 40
_NAMES = (
    "CustomBarColumn",
    "BatchesProcessedColumn",
    "CustomTimeColumn",
    "ProcessingSpeedColumn",
    "MetricsTextColumn",
    "CustomInfiniteTask",
    "CustomProgress",
)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(rich_parts(), name) if is_installed("rich") else _stand_in(name)


def _stand_in(name: str) -> type:
    """Can be looked at without rich, and not be used."""

    def refuse(self: object, *_: Any, **__: Any) -> None:
        require("rich", purpose=name, pip="'fulmen-trainer[rich]'")

    return type(name, (), {"__init__": refuse, "__doc__": "Needs rich.", "__module__": __name__})


@cache
def rich_parts() -> SimpleNamespace:
    """The classes, by their names."""
    from rich.console import RenderableType
    from rich.measure import Measurement
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
    from rich.progress_bar import ProgressBar as Bar
    from rich.style import Style
    from rich.table import Column, Table
    from rich.text import Text

    class CustomBarColumn(BarColumn):
        """A bar that runs to and fro where the total is not known, and leaves room for the rest on narrow screens."""

        def render(self, task: Task) -> Bar:
            """The bar."""
            return Bar(
                total=None if task.total is None else max(0.0, task.total),
                completed=max(0.0, task.completed),
                width=self.bar_width,
                pulse=task.total is None,
                animation_time=task.get_time(),
                style=self.style,
                complete_style=self.complete_style,
                finished_style=self.finished_style,
                pulse_style=self.pulse_style,
            )

    class BatchesProcessedColumn(ProgressColumn):
        """`12/20`; `12/?` where the total is not known."""

        def __init__(self, style: str | Style) -> None:
            self.style = style
            super().__init__(Column(no_wrap=True))  # on a narrow screen the bar gets shorter, not this

        def render(self, task: Task) -> RenderableType:
            """How many batches are done, and of how many."""
            return Text(_count_of(task), style=self.style, no_wrap=True)

    class CustomTimeColumn(ProgressColumn):
        """`0:00:12<0:00:08`: how long it has taken, and how long it will."""

        max_refresh = 0.5

        def __init__(self, style: str | Style) -> None:
            self.style = style
            super().__init__(Column(no_wrap=True))

        def __call__(self, task: Task) -> Text:
            """Both times; rich would keep those of the last epoch until the first batch of this one is done."""
            return self.render(task)

        def render(self, task: Task) -> Text:
            """Both times."""
            return Text(_times_of(task), style=self.style, no_wrap=True)

    class ProcessingSpeedColumn(ProgressColumn):
        """`12.3it/s`: batches per second, lately."""

        def __init__(self, style: str | Style) -> None:
            self.style = style
            super().__init__(Column(no_wrap=True))

        def render(self, task: Task) -> RenderableType:
            """The rate."""
            return Text(_rate_of(task), style=self.style, no_wrap=True)

    class MetricsTextColumn(ProgressColumn):
        """The metrics: beside the first bar, or below the bars where the screen is too narrow.

        Args:
            trainer: Whose metrics.
            style: Of the text.
            text_delimiter: Between two metrics.
            metrics_format: Of numbers with a fraction, as for `format`.
        """

        def __init__(self, trainer: Any, style: str | Style, text_delimiter: str, metrics_format: str) -> None:
            self.is_below = False
            self._trainer = trainer
            self._style = style
            self._delimiter = text_delimiter
            self._format = metrics_format
            self._metrics: dict[str, str] = {}
            self._owner: TaskID | None = None
            super().__init__()

        def update(self, metrics: dict[Any, Any]) -> None:
            """Show these from now on."""
            self._metrics = {str(name): self._as_text(value) for name, value in metrics.items()}

        def show_beside(self, task_id: TaskID) -> None:
            """They belong to this bar."""
            self._owner = task_id

        @property
        def text(self) -> Text:
            """All of them."""
            words = self._delimiter.join(f"{name}: {value}" for name, value in self._metrics.items())
            return Text(words, style=self._style)

        def render(self, task: Task) -> Text:
            """Beside the bar that they belong to."""
            return self.text if task.id == self._owner and not self.is_below else Text("")

        def _as_text(self, value: Any) -> str:
            if isinstance(value, dict):
                return ", ".join(f"{name} {self._as_text(one)}" for name, one in value.items())
            return format(value, self._format) if isinstance(value, float) else str(value)

    class CustomInfiniteTask(Task):
        """A task without an end."""

        @property
        def time_remaining(self) -> float | None:
            """Nobody knows."""
            return None

    class CustomProgress(Progress):
        """Bars that are drawn when they are told to; a total that is infinite is not known."""

        def add_task(
            self,
            description: str,
            start: bool = True,
            total: float | None = 100.0,
            completed: int = 0,
            visible: bool = True,
            **fields: Any,
        ) -> TaskID:
            """A bar more."""
            if total is not None and math.isfinite(total):
                return super().add_task(description, start, total, completed, visible, **fields)
            task = CustomInfiniteTask(
                self._task_index,
                description,
                None,
                completed,
                visible=visible,
                fields=fields,
                _get_time=self.get_time,
                _lock=self._lock,
            )
            return self.add_custom_task(task, start)

        def add_custom_task(self, task: CustomInfiniteTask, start: bool = True) -> TaskID:
            """A bar more, made by the caller."""
            with self._lock:
                self._tasks[task.id] = task
                if start:
                    self.start_task(task.id)
                self._task_index = TaskID(int(task.id) + 1)
            self.refresh()
            return task.id

        def soft_refresh(self) -> None:
            """Draw, unless a thread of rich does."""
            if not self.live.auto_refresh:
                self.refresh()

        def get_renderables(self) -> Iterable[RenderableType]:
            """The bars; and below them the metrics, once they were too wide to stand beside."""
            table = self.make_tasks_table(self.tasks)
            columns = [column for column in self.columns if isinstance(column, MetricsTextColumn)]
            for column in columns:
                # For good: lines that come and go make a screen restless.
                if not column.is_below and self._is_too_wide(table):
                    column.is_below = True
                    table = self.make_tasks_table(self.tasks)
            yield table
            for column in columns:
                if column.is_below and column.text:
                    yield column.text

        def _is_too_wide(self, table: Table) -> bool:
            if not table.row_count:
                return False
            options = self.console.options
            return Measurement.get(self.console, options.update(max_width=10_000), table).maximum > options.max_width

    own = locals()
    return SimpleNamespace(**{name: own[name] for name in _NAMES})


def _speed(task: Any) -> float | None:
    """What the bar has measured; of the bars of others, what rich has."""
    speed: float | None = task.fields.get("per_second") or task.finished_speed or task.speed
    return speed


def _remaining_s(task: Any) -> float | None:
    speed = _speed(task)
    if task.finished or task.total is None or not speed:
        return 0.0 if task.finished else None
    left: float = task.total - task.completed
    return max(0.0, left) / speed


def _clock(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=int(seconds)))


def as_line(task: Any, metrics: str) -> str:
    """A bar as one line of plain text, where nothing can be drawn over."""
    words = ", ".join(part for part in (_rate_of(task), metrics) if part)
    return f"{task.description}: {_count_of(task)} [{_times_of(task)}, {words}]"


def _count_of(task: Any) -> str:
    total = "?" if task.total is None else f"{task.total:.0f}"
    return f"{task.completed:.0f}/{total}"


def _times_of(task: Any) -> str:
    elapsed_s = task.finished_time if task.finished else task.elapsed
    return f"{_clock(elapsed_s)}<{_clock(_remaining_s(task))}"


def _rate_of(task: Any) -> str:
    return f"{short_number(_speed(task) or 0.0)}it/s"
