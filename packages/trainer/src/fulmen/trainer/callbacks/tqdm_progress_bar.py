"""A progress bar by tqdm: drawn by the clock, ten times a second at most."""

import sys
from collections.abc import Mapping
from math import isfinite
from time import monotonic, time
from typing import Any

from fulmen.fabric.arguments import check_number
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.optional_packages import require
from fulmen.trainer._typing import Trainer
from fulmen.trainer.callbacks.above_bars import PrintsAboveBars, underlying
from fulmen.trainer.callbacks.pace import NEVER_S, Pace
from fulmen.trainer.callbacks.progress_bar import ProgressBar
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.needs import STEP_OUTPUT

_DRAW_EVERY_S = 0.1
_LINE_EVERY_S = 5.0  # where lines cannot be drawn over
_BARS = ("_train_bar", "_val_bar", "_test_bar", "_predict_bar")


def _bar_property(place: str, stage: str) -> property:
    def get(self: "TQDMProgressBar") -> Any:
        bar = getattr(self, place)
        if bar is None:
            raise ArgumentTypeError(
                f"TQDMProgressBar has no bar of {stage} yet. It is made when {stage} starts."
                " Read it in a hook that runs later, after super()'s."
            )
        return bar

    def set(self: "TQDMProgressBar", bar: Any) -> None:
        setattr(self, place, bar)

    return property(get, set, doc=f"The bar of {stage}, a `tqdm.tqdm`; a TypeError before it is made.")


class TQDMProgressBar(ProgressBar):
    """Shows a bar for the epoch, one for validation below it, and one for the sanity check, tests and predictions.

    On a terminal, bars are drawn at most ten times a second. Where output is a file or a pipe, a line is written every
    few seconds and at the end of each epoch. Metrics are read when something is drawn, and only then. What is printed
    while bars stand on a terminal appears above them.

    Args:
        refresh_rate: Draw only after multiples of so many batches; 0 shows nothing.
        process_position: How many pairs of lines below the first the bars begin, for several programs in one terminal.
        leave: Leave the bar of each epoch on the screen.

    Raises:
        ConfigurationError: For a negative number.
        MissingPackageError: When a run begins and tqdm is not installed.
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"

    train_progress_bar = _bar_property("_train_bar", "training")
    val_progress_bar = _bar_property("_val_bar", "validation")
    test_progress_bar = _bar_property("_test_bar", "testing")
    predict_progress_bar = _bar_property("_predict_bar", "predicting")

    def __init__(self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False) -> None:
        super().__init__()
        for name, number in (("refresh_rate", refresh_rate), ("process_position", process_position)):
            check_number(self, name, number, "It counts batches or lines.")
            if number < 0:
                raise ConfigurationError(
                    f"TQDMProgressBar({name}={number}) is negative. The number counts batches or lines."
                    " Pass 0 or a positive number; refresh_rate=0 shows no bar."
                )
        self._refresh_rate = refresh_rate
        self._process_position = process_position
        self._leave = leave
        self._train_bar: Any = None
        self._val_bar: Any = None
        self._test_bar: Any = None
        self._predict_bar: Any = None
        self._train_pace = Pace()
        self._eval_pace = Pace()
        self._is_first_batch = False
        self._first_epoch = 0
        self._began_validation_s = 0.0
        self._above = PrintsAboveBars()

    def __getstate__(self) -> dict[str, Any]:
        """Bars hold open files and locks: they stay here."""
        return {**self.__dict__, **dict.fromkeys((*_BARS, "_above"))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """No bars are there yet."""
        self.__dict__.update(state)
        self._above = PrintsAboveBars()

    def _drawn_bars(self) -> list[Any]:
        found = [bar for bar in map(self.__dict__.get, _BARS) if bar is not None and not bar.disable]
        return [bar for bar in found if getattr(bar, "is_plain", None) is False]

    @property
    def refresh_rate(self) -> int:
        """Bars are drawn only after multiples of so many batches."""
        return self._refresh_rate

    @property
    def process_position(self) -> int:
        """How many pairs of lines below the first the bars begin."""
        return self._process_position

    @property
    def is_enabled(self) -> bool:
        """Is anything shown?"""
        return super().is_enabled and self._refresh_rate > 0

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bars; as `print` does where there are none."""
        active = [bar for bar in map(self.__dict__.get, _BARS) if bar is not None and not bar.disable]
        if not active or getattr(active[0], "is_plain", False):
            print(*args, sep=sep, **kwargs)
        else:
            kwargs.pop("flush", None)  # tqdm always flushes
            active[0].write(sep.join(map(str, args)), **kwargs)

    # ---- bars are made: yours to override

    def init_sanity_tqdm(self) -> Any:
        """A bar for the sanity check."""
        return self._new_bar(self.sanity_check_description, leave=False)

    def init_train_tqdm(self) -> Any:
        """A bar for training."""
        return self._new_bar(self.train_description, leave=True)

    def init_validation_tqdm(self) -> Any:
        """A bar for validation: inside fit, below the one of training, and gone when validation ends."""
        is_inside = self._train_bar is not None
        # A validation that is over before anybody could read the bar shows none.
        return self._new_bar(
            self.validation_description, leave=not is_inside, line=int(is_inside), delay=_DRAW_EVERY_S * is_inside
        )

    def init_test_tqdm(self) -> Any:
        """A bar for testing."""
        return self._new_bar(self.test_description, leave=True)

    def init_predict_tqdm(self) -> Any:
        """A bar for predicting."""
        return self._new_bar(self.predict_description, leave=True)

    def _new_bar(self, description: str, *, leave: bool, line: int = 0, delay: float = 0.0) -> Any:
        require("tqdm", purpose="TQDMProgressBar")
        from fulmen.trainer.callbacks.tqdm_bar import new_bar

        return new_bar(
            desc=description,
            position=2 * self.process_position + line,
            disable=self.is_disabled,
            leave=leave,
            dynamic_ncols=True,
            file=underlying(sys.stdout),
            smoothing=0.1,
            mininterval=0,  # when to draw is decided here
            miniters=0,
            delay=delay,
            bar_format=self.BAR_FORMAT,
        )

    # ---- training

    def on_train_start(self, *_: Any) -> None:
        """The bar comes."""
        self._first_epoch = self.trainer.current_epoch
        self._make_train_bar()

    def _make_train_bar(self) -> None:
        self._train_bar = self.init_train_tqdm()
        self._begin(self._train_pace, self._train_bar)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """The bar begins again."""
        if self._train_bar is None or (self._leave and trainer.current_epoch > self._first_epoch):
            self._make_train_bar()
        bar, total = self._train_bar, _known(self.total_train_batches)
        bar.restart(total) if hasattr(bar, "restart") else bar.reset(total)
        max_epochs = trainer.max_epochs
        last = f"/{max_epochs - 1}" if max_epochs is not None and max_epochs > 0 else ""
        bar.set_description(f"Epoch {trainer.current_epoch}{last}", refresh=False)
        self._is_first_batch = True
        self._train_pace.look_at_next()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """One more; drawn when it is time."""
        pace = self._train_pace
        pace.done = batch_idx + 1
        if monotonic() >= pace.next_s:
            self._look_at_training(trainer, pl_module, batch_idx)

    def _look_at_training(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> None:
        bar, pace = self._train_bar, self._train_pace
        if self._is_first_batch:
            # A run that goes on in the middle of an epoch did not do the batches before it in this time.
            self._is_first_batch = False
            bar.initial = bar.n = bar.last_print_n = batch_idx
        elif pace.done % self._refresh_rate:
            return
        if pace.is_due(monotonic()):
            _draw(bar, pace.done, self.get_metrics(trainer, pl_module), line=True)

    def _draw_between_steps(self, trainer: Trainer, pl_module: LightningModule, *, always: bool = False) -> None:
        """Show what the last steps and a validation brought, unless that was done a moment ago."""
        if not self._train_bar.disable and (self._train_pace.may_force(monotonic()) or always):
            _draw(self._train_bar, self._train_pace.done, self.get_metrics(trainer, pl_module), line=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The bar shows the metrics of the epoch."""
        bar = self._train_bar
        is_plain = getattr(bar, "is_plain", False)
        _known_by_now(bar, self._train_pace.done)
        self._draw_between_steps(trainer, pl_module, always=self._leave or is_plain)
        if bar.disable:
            return
        if is_plain:
            bar.write_line()
        if self._leave:
            bar.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The bar stays, as it is."""
        self._draw_between_steps(trainer, pl_module, always=True)
        self._close_all()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the cursor below the bars, so that the message stands alone."""
        self._close_all()

    # ---- sanity check, validation, test, predict

    def on_sanity_check_start(self, *_: Any) -> None:
        """Its bar comes first."""
        self._val_bar = self.init_sanity_tqdm()
        self._begin(self._eval_pace, self._val_bar)

    def on_sanity_check_end(self, *_: Any) -> None:
        """Its bar goes."""
        _dismiss(self._val_bar)
        self._val_bar = None
        self._above.end()
        self.reset_dataloader_idx_tracker()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its bar comes, below the one of training."""
        if trainer.sanity_checking:
            return
        if self._train_bar is not None:
            self._draw_between_steps(trainer, pl_module)
        self._began_validation_s = time()
        self._val_bar = self.init_validation_tqdm()
        self._begin(self._eval_pace, self._val_bar)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin again with each loader."""
        if batch_idx == 0 and self.has_dataloader_changed(dataloader_idx):
            is_sane = not trainer.sanity_checking
            what = self.validation_description if is_sane else self.sanity_check_description
            total = self.total_val_batches_current_dataloader
            self._begin_loader(self._val_bar, what, dataloader_idx, len(trainer.num_val_batches), total)

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
        self._eval_pace.done = batch_idx + 1
        if monotonic() >= self._eval_pace.next_s:
            self._look_at_evaluation(self._val_bar)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its bar goes, and its metrics come into the one of training."""
        self.reset_dataloader_idx_tracker()
        if trainer.sanity_checking:
            return
        if self._train_bar is None:
            self._finish(self._val_bar)
        else:
            _dismiss(self._val_bar)
            # Validation is no part of the rate of training; the batches since the last drawing are.
            if not self._train_bar.disable:
                self._train_bar.last_print_t += time() - self._began_validation_s
            self._draw_between_steps(trainer, pl_module)
        self._val_bar = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its bar comes."""
        self._test_bar = self.init_test_tqdm()
        self._begin(self._eval_pace, self._test_bar)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin again with each loader."""
        if batch_idx == 0 and self.has_dataloader_changed(dataloader_idx):
            total, num = self.total_test_batches_current_dataloader, len(trainer.num_test_batches)
            self._begin_loader(self._test_bar, self.test_description, dataloader_idx, num, total)

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
        self._eval_pace.done = batch_idx + 1
        if monotonic() >= self._eval_pace.next_s:
            self._look_at_evaluation(self._test_bar)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its bar stays, as it is."""
        self.reset_dataloader_idx_tracker()
        self._finish(self._test_bar)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its bar comes."""
        self._predict_bar = self.init_predict_tqdm()
        self._begin(self._eval_pace, self._predict_bar)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin again with each loader."""
        if batch_idx == 0 and self.has_dataloader_changed(dataloader_idx):
            total, num = self.total_predict_batches_current_dataloader, len(trainer.num_predict_batches)
            self._begin_loader(self._predict_bar, self.predict_description, dataloader_idx, num, total)

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
        self._eval_pace.done = batch_idx + 1
        if monotonic() >= self._eval_pace.next_s:
            self._look_at_evaluation(self._predict_bar)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its bar stays, as it is."""
        self.reset_dataloader_idx_tracker()
        self._finish(self._predict_bar)

    # ---- what the stages share

    def _begin(self, pace: Pace, bar: Any) -> None:
        is_plain = getattr(bar, "is_plain", False)
        interval_s = NEVER_S if bar.disable else _LINE_EVERY_S if is_plain else _DRAW_EVERY_S
        pace.begin(interval_s, monotonic(), at_once=not is_plain)
        if self._drawn_bars():
            self._above.begin(self._drawn_bars)

    def _begin_loader(self, bar: Any, what: str, idx: int, num_loaders: int, total: int | float) -> None:
        if bar.disable:
            return
        if idx > 0:
            if getattr(bar, "is_plain", False) and bar.leave:
                _draw(bar, self._eval_pace.done, None, line=True)
            bar.restart(_known(total)) if hasattr(bar, "restart") else bar.reset(_known(total))
        bar.total = _known(total)
        self._eval_pace.done = 0
        bar.set_description(f"{what} DataLoader {idx}" if num_loaders > 1 else what, refresh=False)

    def _look_at_evaluation(self, bar: Any) -> None:
        pace = self._eval_pace
        if pace.done % self._refresh_rate == 0 and pace.is_due(monotonic()):
            _draw(bar, pace.done, None, line=True)

    def _finish(self, bar: Any) -> None:
        if bar is not None and not bar.disable:
            _known_by_now(bar, self._eval_pace.done)
            _draw(bar, self._eval_pace.done, None, line=True)
            bar.close()
        self._above.end()

    def _close_all(self) -> None:
        for place in reversed(_BARS):
            bar = getattr(self, place)
            if bar is not None:
                bar.close()
        self._val_bar = None
        self._above.end()
        self._train_pace.next_s = self._eval_pace.next_s = NEVER_S


def _dismiss(bar: Any) -> None:
    """A bar goes whose work is done: a widget that is closed before its last batch would stay, in red."""
    bar.n = max(bar.n, bar.total or 0)
    bar.close()


def _known_by_now(bar: Any, done: int) -> None:
    """Data without a length have one when they are over."""
    if bar.total is None and done > 0:
        bar.total = done


def _known(total: int | float) -> int | float | None:
    return total if isfinite(total) else None


def _draw(bar: Any, done: int, metrics: Mapping[str, Any] | None, *, line: bool) -> None:
    """Bring `bar` up to date; where lines cannot be drawn over, write one only if asked."""
    if metrics is not None:
        bar.set_postfix(metrics, refresh=False)
    if not getattr(bar, "is_plain", False):
        bar.update(done - bar.n)
        return
    bar.n = done
    if line:
        bar.write_line()
