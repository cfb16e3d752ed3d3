"""A progress bar by rich: drawn by the clock, ten times a second at most."""

import signal
from math import isfinite
from time import monotonic
from typing import Any

from fulmen.fabric.arguments import check_number
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.optional_packages import require
from fulmen.trainer._typing import Trainer
from fulmen.trainer.callbacks.pace import NEVER_S, Pace
from fulmen.trainer.callbacks.progress_bar import ProgressBar
from fulmen.trainer.callbacks.rate import Rate
from fulmen.trainer.callbacks.rich_columns import MAX_BAR_WIDTH, as_line, rich_parts
from fulmen.trainer.callbacks.rich_theme import RichProgressBarTheme, check_theme
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.needs import STEP_OUTPUT
from fulmen.trainer.run.signals import CTRL_C

_DRAW_EVERY_S = 0.1
_DRAW_AT_LEAST_EVERY_S = 0.5
_LINE_EVERY_S = 5.0  # where lines cannot be drawn over
_PIP = "'fulmen-trainer[rich]'"


def _task_property(place: str, stage: str) -> property:
    def get(self: "RichProgressBar") -> Any:
        task_id = getattr(self, place)
        if task_id is None or self.progress is None:
            raise ArgumentTypeError(
                f"RichProgressBar has no bar of {stage} yet. It is made when {stage} starts."
                " Read it in a hook that runs later, after super()'s."
            )
        return self._task(task_id)

    return property(get, doc=f"The bar of {stage}, a `rich.progress.Task`; a TypeError before it is made.")


class RichProgressBar(ProgressBar):
    """Shows what TQDMProgressBar shows, in colours: a bar for the epoch, and one for validation below it.

    Metrics stand beside the bar, or on a line of their own where the screen is too narrow. What is printed meanwhile
    appears above. Where output is a file or a pipe, a line is written every few seconds and at the end of each epoch.

    Args:
        refresh_rate: Draw after multiples of so many batches, and twice a second in any case; 0 shows nothing.
        leave: Leave the bar of each epoch on the screen.
        theme: Styles.
        console_kwargs: Arguments of `rich.console.Console`.

    Raises:
        ConfigurationError: For a negative rate, or a style that is none.
        MissingPackageError: If rich is not installed.
    """

    val_sanity_check_bar = _task_property("val_sanity_progress_bar_id", "the sanity check")
    train_progress_bar = _task_property("train_progress_bar_id", "training")
    val_progress_bar = _task_property("val_progress_bar_id", "validation")
    test_progress_bar = _task_property("test_progress_bar_id", "testing")

    def __init__(
        self,
        refresh_rate: int = 100,
        leave: bool = False,
        theme: RichProgressBarTheme = RichProgressBarTheme(),  # noqa: B008  # read, and never changed
        console_kwargs: dict[str, Any] | None = None,
    ) -> None:
        require("rich", purpose=type(self).__name__, pip=_PIP)
        super().__init__()
        check_number(self, "refresh_rate", refresh_rate, "It counts batches.")
        check_theme(theme, console_kwargs or {})
        if refresh_rate < 0:
            raise ConfigurationError(
                f"RichProgressBar(refresh_rate={refresh_rate}) is negative. The number counts batches."
                " Pass 0 or a positive number; 0 shows no bar."
            )
        self.theme = theme
        self._refresh_rate = refresh_rate
        self._leave = leave
        self._console_kwargs = console_kwargs or {}
        self._train_pace = Pace()
        self._eval_pace = Pace()
        self._train_rate = Rate()
        self._eval_rate = Rate()
        self._began_validation_s = 0.0
        self._shown_s = 0.0
        self._first_epoch = 0
        self._has_said_ctrl_c = False
        self._is_first_batch = False
        self._forget()

    def _forget(self) -> None:
        self.progress: Any = None
        self.val_sanity_progress_bar_id: Any = None
        self.train_progress_bar_id: Any = None
        self.val_progress_bar_id: Any = None
        self.test_progress_bar_id: Any = None
        self.predict_progress_bar_id: Any = None
        self._metrics: Any = None
        self._is_plain = False

    def __getstate__(self) -> dict[str, Any]:
        """Consoles hold open files and locks: they stay here."""
        gone = ("progress", "_metrics", *(name for name in self.__dict__ if name.endswith("_bar_id")))
        return {**self.__dict__, **dict.fromkeys(gone)}

    @property
    def refresh_rate(self) -> float:
        """Bars are drawn after multiples of so many batches."""
        return self._refresh_rate

    @property
    def is_enabled(self) -> bool:
        """Is anything shown?"""
        return super().is_enabled and self._refresh_rate > 0

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print; while bars are drawn it appears above them."""
        print(*args, **kwargs)

    def refresh(self, hard: bool = False) -> None:
        """Draw now; `hard` also where a thread of rich draws."""
        if self.progress is not None and not self._is_plain:
            self.progress.refresh() if hard else self.progress.soft_refresh()

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """The columns, from left to right; yours to override."""
        from rich.progress import TextColumn

        columns, theme = rich_parts(), self.theme
        width = self.progress.console.width if self.progress is not None else 4 * MAX_BAR_WIDTH
        return [
            TextColumn("[progress.description]{task.description}", style=theme.description),
            columns.CustomBarColumn(
                bar_width=max(10, min(MAX_BAR_WIDTH, width // 4)),
                complete_style=theme.progress_bar,
                finished_style=theme.progress_bar_finished,
                pulse_style=theme.progress_bar_pulse,
            ),
            columns.BatchesProcessedColumn(theme.batch_progress),
            columns.CustomTimeColumn(theme.time),
            columns.ProcessingSpeedColumn(theme.processing_speed),
            columns.MetricsTextColumn(trainer, theme.metrics, theme.metrics_text_delimiter, theme.metrics_format),
        ]

    # ---- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The bar comes."""
        self._first_epoch = trainer.current_epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The bar begins again."""
        if self._leave and trainer.current_epoch > self._first_epoch:
            self._stop()
        if not self._start(trainer):
            return
        max_epochs = trainer.max_epochs
        last = f"/{max_epochs - 1}" if max_epochs is not None and max_epochs > 0 else ""
        what, total = f"Epoch {trainer.current_epoch}{last}", self.total_train_batches
        if self.train_progress_bar_id is None:
            self.train_progress_bar_id = self._add(what, total)
            self._begin(self._train_pace)
            if self._metrics is not None:
                self._metrics.show_beside(self.train_progress_bar_id)
        else:
            self._restart(self.train_progress_bar_id, what, total)
        self._is_first_batch = True
        self._train_pace.look_at_next()
        self._train_rate.begin(0, monotonic())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """One more; drawn when it is time."""
        pace = self._train_pace
        pace.done = batch_idx + 1
        now_s = monotonic()
        if now_s < pace.next_s:
            return
        if self._is_first_batch:
            # A run that goes on in the middle of an epoch did not do the batches before it in this time.
            self._is_first_batch = False
            self.train_progress_bar.completed = batch_idx
            self._train_rate.skip_to(batch_idx)
        if self._is_due(pace, now_s):
            self._draw(self.train_progress_bar_id, pace, self.get_metrics(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The bar shows the metrics of the epoch."""
        self._end_known(self.train_progress_bar_id, self._train_pace)
        self._draw_between_steps(trainer, pl_module, always=self._leave or self._is_plain, line=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The bar stays, as it is."""
        self._draw_between_steps(trainer, pl_module, always=True)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the cursor below the bars, so that the message stands alone."""
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing is drawn any more."""
        self._stop()

    def _draw_between_steps(
        self, trainer: Trainer, pl_module: LightningModule, *, always: bool = False, line: bool = False
    ) -> None:
        pace = self._train_pace
        if self.train_progress_bar_id is not None and (pace.may_force(monotonic()) or always):
            self._draw(self.train_progress_bar_id, pace, self.get_metrics(trainer, pl_module), line=line)

    # ---- sanity check, validation, test, predict

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its bar comes first."""
        if self._start(trainer):
            self.val_sanity_progress_bar_id = self._add(self.sanity_check_description, None)
            self._begin(self._eval_pace)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its bar goes."""
        self.reset_dataloader_idx_tracker()
        if self.val_sanity_progress_bar_id is not None:
            self._hide(self.val_sanity_progress_bar_id)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its bar comes, below the one of training, once there is time to read it."""
        if trainer.sanity_checking or not self._start(trainer):
            return
        self._began_validation_s = monotonic()
        is_inside = self.train_progress_bar_id is not None
        if is_inside:
            self._draw_between_steps(trainer, pl_module)
        if self.val_progress_bar_id is None:
            self.val_progress_bar_id = self._add(self.validation_description, None, visible=not is_inside)
        self._begin(self._eval_pace, at_once=not is_inside)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin again with each loader."""
        if batch_idx == 0 and self.has_dataloader_changed(dataloader_idx):
            is_check = trainer.sanity_checking
            name = "val_sanity_progress_bar_id" if is_check else "val_progress_bar_id"
            what = self.sanity_check_description if is_check else self.validation_description
            total = self.total_val_batches_current_dataloader
            stays = self.train_progress_bar_id is None and not is_check
            self._begin_loader(name, what, dataloader_idx, trainer.num_val_batches, total, stays=stays)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One more; drawn when it is time."""
        task_id = self.val_sanity_progress_bar_id if trainer.sanity_checking else self.val_progress_bar_id
        self._count_evaluation(task_id, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its bar goes, and its metrics come into the one of training."""
        self.reset_dataloader_idx_tracker()
        if trainer.sanity_checking or self.val_progress_bar_id is None:
            return
        if self.train_progress_bar_id is None:
            self._finish(self.val_progress_bar_id)
        else:
            self._hide(self.val_progress_bar_id)
            self._train_rate.pass_over(monotonic() - self._began_validation_s)
            self._draw_between_steps(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its bar comes."""
        if self._start(trainer):
            self.test_progress_bar_id = self._add(self.test_description, None)
            self._begin(self._eval_pace)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A bar for each loader."""
        if batch_idx == 0 and self.has_dataloader_changed(dataloader_idx):
            total, totals = self.total_test_batches_current_dataloader, trainer.num_test_batches
            self._begin_loader("test_progress_bar_id", self.test_description, dataloader_idx, totals, total, stays=True)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One more; drawn when it is time."""
        self._count_evaluation(self.test_progress_bar_id, batch_idx)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its bar stays, as it is."""
        self.reset_dataloader_idx_tracker()
        self._finish(self.test_progress_bar_id)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its bar comes."""
        if self._start(trainer):
            self.predict_progress_bar_id = self._add(self.predict_description, None)
            self._begin(self._eval_pace)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A bar for each loader."""
        if batch_idx == 0 and self.has_dataloader_changed(dataloader_idx):
            total, totals = self.total_predict_batches_current_dataloader, trainer.num_predict_batches
            what = self.predict_description
            self._begin_loader("predict_progress_bar_id", what, dataloader_idx, totals, total, stays=True)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One more; drawn when it is time."""
        self._count_evaluation(self.predict_progress_bar_id, batch_idx)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its bar stays, as it is."""
        self.reset_dataloader_idx_tracker()
        self._finish(self.predict_progress_bar_id)

    # ---- what the stages share

    def _start(self, trainer: Trainer) -> bool:
        """Make the display, unless it is there. Is anything shown?"""
        if self.is_disabled:
            return False
        if self.progress is None:
            from rich.console import Console

            parts = rich_parts()
            console = Console(**self._console_kwargs)
            self._is_plain = console.is_dumb_terminal or not (console.is_terminal or console.is_jupyter)
            self.progress = parts.CustomProgress("", console=console, auto_refresh=False)
            self.progress.columns = tuple(self.configure_columns(trainer))
            found = (column for column in self.progress.columns if isinstance(column, parts.MetricsTextColumn))
            self._metrics = next(found, None)
            if not self._is_plain:
                self.progress.start()
        return True

    def _stop(self) -> None:
        if self.progress is not None and not self._is_plain:
            self._say_ctrl_c()
            self.progress.stop()
        self._forget()
        self._train_pace.next_s = self._eval_pace.next_s = NEVER_S

    def _add(self, what: str, total: int | float | None, *, visible: bool = True) -> Any:
        return self.progress.add_task(what, total=total, visible=visible)

    def _restart(self, task_id: Any, what: str, total: int | float, *, visible: bool | None = None) -> None:
        task = self._task(task_id)
        task.total = total if isfinite(total) else None
        # Not drawn: `visible` and the count come with the next drawing.
        self.progress.reset(task_id, description=what, visible=visible, per_second=0.0)

    def _begin(self, pace: Pace, *, at_once: bool = True) -> None:
        pace.begin(
            _LINE_EVERY_S if self._is_plain else _DRAW_EVERY_S, monotonic(), at_once=at_once and not self._is_plain
        )

    def _begin_loader(
        self, name: str, what: str, idx: int, totals: list[int | float], total: int | float, *, stays: bool
    ) -> None:
        if getattr(self, name) is None:
            return
        what = f"{what} DataLoader {idx}" if len(totals) > 1 else what
        if idx > 0 and stays:
            self._draw(getattr(self, name), self._eval_pace, line=True)
            setattr(self, name, self._add(what, total))
        else:
            self._restart(getattr(self, name), what, total)
        self._eval_pace.done = 0
        self._eval_rate.begin(0, monotonic())

    def _count_evaluation(self, task_id: Any, batch_idx: int) -> None:
        pace = self._eval_pace
        pace.done = batch_idx + 1
        now_s = monotonic()
        if now_s >= pace.next_s and self._is_due(pace, now_s):
            self._draw(task_id, pace)

    def _is_due(self, pace: Pace, now_s: float) -> bool:
        if pace.done % self._refresh_rate and now_s < self._shown_s + _DRAW_AT_LEAST_EVERY_S:
            return False
        return pace.is_due(now_s)

    def _draw(self, task_id: Any, pace: Pace, metrics: dict[str, Any] | None = None, *, line: bool = True) -> None:
        self._shown_s = now_s = monotonic()
        rate = self._train_rate if pace is self._train_pace else self._eval_rate
        if metrics is not None and self._metrics is not None:
            self._metrics.update(metrics)
        self.progress.update(task_id, completed=pace.done, visible=True, per_second=rate.measure(pace.done, now_s))
        if not self._is_plain:
            self._say_ctrl_c()
            self.progress.soft_refresh()
        elif line:
            task = self._task(task_id)
            shown = str(self._metrics.text) if metrics is not None and self._metrics is not None else ""
            self.progress.console.print(as_line(task, shown), markup=False, highlight=False, soft_wrap=True)

    def _say_ctrl_c(self) -> None:
        """What a signal handler writes is in no line that rich knows of: the next drawing takes it away again."""
        is_caught = self._trainer is not None and self._trainer.context.signals.caught == signal.SIGINT
        if is_caught and not self._has_said_ctrl_c:
            self.progress.console.print(CTRL_C, markup=False, highlight=False)
        self._has_said_ctrl_c = is_caught

    def _hide(self, task_id: Any) -> None:
        self.progress.update(task_id, visible=False)

    def _finish(self, task_id: Any) -> None:
        if task_id is not None:
            self._end_known(task_id, self._eval_pace)
            self._draw(task_id, self._eval_pace)
            self._stop()

    def _end_known(self, task_id: Any, pace: Pace) -> None:
        """Data without a length have one when they are over."""
        if task_id is not None:
            task = self._task(task_id)
            task.total = pace.done if task.total is None and pace.done > 0 else task.total

    def _task(self, task_id: Any) -> Any:
        return next(task for task in self.progress.tasks if task.id == task_id)
