"""Log throughput."""

import time
from collections.abc import Callable
from typing import Any

from fulmen.fabric.arguments import check_function
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.measure.device_flops import get_available_flops
from fulmen.fabric.measure.throughput import Throughput
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.stages import Stage

_STAGES = (Stage.TRAIN, Stage.VALIDATE, Stage.TEST, Stage.PREDICT)


class ThroughputMonitor(Callback):
    """Log how many batches, samples, items and FLOPs per second a run makes: `train/device/samples_per_sec`, ...

    For FLOPs the module has an attribute `flops_per_batch`: an int, or a method without arguments.
    Time spent in validation does not count as time of training. Processes that split tensors, a sequence or stages
    among them work on the same batches, and stand for one device: FLOPs are those of the whole batch.

    Args:
        batch_size_fn: Samples in a batch.
        length_fn: Items in a batch, such as tokens.
        kwargs: As for `Throughput`: `window_size`, `separator`; `available_flops` in place of what is known of the
            device.

    Raises:
        ArgumentTypeError: For a function that cannot be called.
        ConfigurationError: When a run starts without a logger.
    """

    def __init__(
        self, batch_size_fn: Callable[[Any], int], length_fn: Callable[[Any], int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__()
        meaning = "It counts the samples of a batch."
        check_function(self, "batch_size_fn", batch_size_fn, meaning, may_be_none=False)
        check_function(self, "length_fn", length_fn, "It counts the items of a batch.")
        self.kwargs = kwargs
        self.batch_size_fn = batch_size_fn
        self.length_fn = length_fn
        self.available_flops: float | None = kwargs.get("available_flops")
        Throughput(**kwargs)  # says at once what is wrong with them
        self._measured: dict[Stage, _Measured] = {}
        self._restored: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask what the device can do at best."""
        if not trainer.loggers:
            raise ConfigurationError(
                "ThroughputMonitor has nowhere to log to. The Trainer has no logger."
                " Remove the callback, or pass Trainer(logger=True)."
            )
        strategy = trainer.strategy
        if self.available_flops is None:
            self.available_flops = get_available_flops(strategy.root_device, strategy.precision_plugin.compute_dtype)
        num_shares = strategy.data_share[1]
        available = self.available_flops
        if available is not None:
            available *= strategy.world_size // num_shares
        arguments = {**self.kwargs, "available_flops": available, "world_size": num_shares}
        self._measured = {stage: _Measured(Throughput(**arguments)) for stage in _STAGES}
        self._restored = {}

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """The time of training begins, or goes on."""
        self._begin(Stage.TRAIN)
        self._measured[Stage.TRAIN].go_on_from(self._restored)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count, and log where steps are logged."""
        self._count(trainer, pl_module, batch, Stage.TRAIN)
        if trainer.logs_this_step:
            self._log(trainer, Stage.TRAIN, trainer.fit_loop.counts.stepped_batches)

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        """The time of validation begins."""
        if not trainer.sanity_checking:
            self._measured[Stage.TRAIN].pause()
            self._begin(Stage.VALIDATE)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Count, and log."""
        if not trainer.sanity_checking:
            self._count(trainer, pl_module, batch, Stage.VALIDATE)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Log, and go on with training."""
        if not trainer.sanity_checking:
            self._log(trainer, Stage.VALIDATE, trainer.fit_loop.counts.stepped_batches)
            self._measured[Stage.TRAIN].go_on()

    def on_test_start(self, trainer: Trainer, *_: Any) -> None:
        """The time of testing begins."""
        self._begin(Stage.TEST)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Count."""
        self._count(trainer, pl_module, batch, Stage.TEST)

    def on_test_end(self, trainer: Trainer, *_: Any) -> None:
        """Log."""
        self._log(trainer, Stage.TEST, self._measured[Stage.TEST].batches)

    def on_predict_start(self, trainer: Trainer, *_: Any) -> None:
        """The time of predicting begins."""
        self._begin(Stage.PREDICT)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Count."""
        self._count(trainer, pl_module, batch, Stage.PREDICT)

    def on_predict_end(self, trainer: Trainer, *_: Any) -> None:
        """Log."""
        self._log(trainer, Stage.PREDICT, self._measured[Stage.PREDICT].batches)

    def state_dict(self) -> dict[str, Any]:
        """How much this fit has trained on, in how many seconds."""
        measured = self._measured.get(Stage.TRAIN)
        return {} if measured is None else measured.totals()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there; rates begin anew."""
        self._restored = dict(state_dict)

    def _begin(self, stage: Stage) -> None:
        self._measured[stage].begin()

    def _count(self, trainer: Trainer, module: LightningModule, batch: Any, stage: Stage) -> None:
        if not trainer.is_global_zero:
            return
        flops = getattr(module, "flops_per_batch", None)
        self._measured[stage].count(
            samples=self.batch_size_fn(batch),
            items=None if self.length_fn is None else self.length_fn(batch),
            flops=flops() if callable(flops) else flops,
        )

    def _log(self, trainer: Trainer, stage: Stage, step: int) -> None:
        if trainer.is_global_zero:
            metrics = self._measured[stage].throughput.compute()
            row = {f"{stage}{self._separator}{name}": value for name, value in metrics.items()}
            trainer.context.metrics.log_to_loggers(row, step)

    @property
    def _separator(self) -> str:
        return str(self.kwargs.get("separator", "/"))


class _Measured:
    """One stage: its totals, and the time in which they were made."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self.batches = 0
        self.samples = 0
        self.items = 0
        self._began_s = 0.0
        self._paused_s: float | None = None

    def begin(self) -> None:
        self.throughput.reset()
        self.batches = self.samples = self.items = 0
        self._began_s = time.perf_counter()
        self._paused_s = None

    def totals(self) -> dict[str, Any]:
        seconds = (self._paused_s or time.perf_counter()) - self._began_s
        return {"batches": self.batches, "samples": self.samples, "items": self.items, "seconds": seconds}

    def go_on_from(self, totals: dict[str, Any]) -> None:
        if totals:
            self.batches, self.samples, self.items = totals["batches"], totals["samples"], totals["items"]
            self._began_s -= totals["seconds"]

    def pause(self) -> None:
        self._paused_s = time.perf_counter()

    def go_on(self) -> None:
        if self._paused_s is not None:
            self._began_s += time.perf_counter() - self._paused_s
            self._paused_s = None

    def count(self, *, samples: int, items: int | None, flops: int | None) -> None:
        self.batches += 1
        self.samples += samples
        self.items += items or 0
        self.throughput.update(
            time=time.perf_counter() - self._began_s,
            batches=self.batches,
            samples=self.samples,
            lengths=None if items is None else self.items,
            flops=flops,
        )
