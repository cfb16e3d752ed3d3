"""What `self.log` feeds: what callbacks, the progress bar and loggers see, and when.

Values stay on their device until somebody reads them. `log` is the hot path: a look-up, a comparison, one or two
in-place additions. Loggers get their rows at `publish_step` and `publish_epoch`, all values in one transfer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fulmen.fabric.rank_zero import warn_once
from fulmen.trainer.errors import MisconfigurationException
from fulmen.trainer.metrics.accumulator import Scalar, as_tensor, batch_size_of_log
from fulmen.trainer.metrics.agreement import Reducer
from fulmen.trainer.metrics.batch_size import extract_batch_size
from fulmen.trainer.metrics.log_call import (
    NEVER,
    LogRule,
    decide_arguments,
    one_name_for_two_loaders,
    two_meanings,
)
from fulmen.trainer.metrics.outlets import Outlets
from fulmen.trainer.metrics.results import Entry, Phase, Results
from fulmen.trainer.metrics.scalars import check_is_part, is_metric, metric_result, to_floats, to_scalar, two_kinds
from fulmen.trainer.metrics.together import Together
from fulmen.trainer.stages import Stage


class MetricsBoard:
    """Takes what is logged and shows it; one per Trainer.

    `hook` and `rule` say which user code runs and what it may log: who calls user code sets them around it.
    A stage goes `inside(...)`, `begin_epoch`, then `begin_batch` and `publish_step` per batch, `end_batches`,
    `publish_epoch`.
    """

    hook: str
    rule: LogRule
    _callback: dict[str, Tensor]
    _logged: dict[str, Tensor]
    _bar: dict[str, Any]  # tensors that nobody read yet, and floats
    _batch: Any
    _batch_size: float | None  # None: not measured yet
    _batch_idx: int
    _dataloader_idx: int | None  # None: no batch is at work
    _place: dict[tuple[str, str], Entry]  # where the entries of the current batch are

    def __init__(self, loggers: Iterable[Any] = (), folder: str = "") -> None:
        self.loggers: list[Any] = list(loggers)
        self.outlets = Outlets(folder)
        self.muted: str | None = None  # the option that switches recording off, as the user wrote it
        self._together: Together | None = None
        self._device = torch.device("cpu")
        self._module: torch.nn.Module | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new run begins."""
        self.hook = ""
        self.rule = NEVER
        self._callback = {}
        self._logged = {}
        self._bar = {}
        self._stages: list[Results] = []
        self._left: Results | None = None
        self._returned: list[dict[str, float]] = []
        self._resumed: Mapping[str, Any] | None = None
        self._switch_to(Results())

    def attach(
        self,
        reducer: Reducer | None,
        device: torch.device,
        *,
        is_global_zero: bool = True,
        module: torch.nn.Module | None = None,
    ) -> None:
        """Serve this run.

        Args:
            reducer: Joins values over processes; None: there is one process.
            device: Where Python numbers go when they are read as tensors.
            is_global_zero: Loggers decide for themselves on which processes they write; this one is not asked.
            module: Where metric objects must be, so that they are on its device and found again after a resume.
        """
        several = reducer is not None and reducer.world_size > 1
        self._together = Together(reducer, device, module) if reducer is not None and several else None
        self._device = device
        self._module = module

    # --- where the run is

    @contextmanager
    def inside(self, stage: Stage, num_dataloaders: int = 1) -> Iterator[None]:
        """A stage with results of its own; those of the stage around it survive."""
        self._show()
        outer, outer_batch = self._results, (self._batch, self._batch_size, self._place, self._dataloader_idx)
        shown = (dict(self._callback), dict(self._logged), dict(self._bar))
        results = Results(stage, num_dataloaders)
        self._stages.append(results)
        self._switch_to(results)
        if results.training and self._resumed is not None:
            results.load_state_dict(self._resumed, self._device, self._module)
            self._resumed = None
        try:
            yield
            self._show()
        except (KeyboardInterrupt, SystemExit):  # a stopped run is looked at too, and saved
            self._show()
            raise
        finally:
            self._stages.remove(results)
            self._left = results if results.training else self._left  # a stopped run is saved when it has left
            self._switch_to(outer)
            self._batch, self._batch_size, self._place, self._dataloader_idx = outer_batch
            if stage is Stage.SANITY_CHECK:  # a rehearsal leaves no trace
                self._callback, self._logged, self._bar = shown

    def begin_epoch(self) -> None:
        """An epoch of the current stage begins; what its *_start hooks logged already belongs to it."""
        if self._results.phase in (Phase.BATCHES, Phase.EPOCH_END):
            self._results.clear()
        self._results.phase = Phase.BEFORE
        self._leave_batch()

    def begin_batch(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """What is logged from now on belongs to this batch."""
        self._batch = batch
        self._batch_idx = batch_idx
        self._batch_size = None
        if self._dataloader_idx != dataloader_idx:
            self._enter_loader(dataloader_idx)

    def _enter_loader(self, dataloader_idx: int) -> None:
        self._place = self._results.enter_loader(dataloader_idx)
        self._dataloader_idx = dataloader_idx

    def _leave_batch(self) -> None:
        self._batch = None
        self._batch_idx = 0
        self._batch_size = 1  # outside of batches every value counts the same
        self._dataloader_idx = None
        self._place = self._results.place(None)

    def _switch_to(self, results: Results) -> None:
        self._results = results
        self._leave_batch()

    # --- taking values

    def log(
        self,
        name: str,
        value: Any,
        *,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[[Any], Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any | None = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Take one value; the arguments are those of `LightningModule.log`.

        Raises:
            MisconfigurationException: This value, or these arguments, cannot be logged in the current hook.
        """
        # In order of how likely they differ; the group of `sync_dist` last, its comparison may be slow.
        arguments = (
            prog_bar,
            logger,
            on_step,
            on_epoch,
            reduce_fx,
            enable_graph,
            sync_dist,
            add_dataloader_idx,
            metric_attribute,
            rank_zero_only,
            sync_dist_group,
        )
        try:
            entry = self._place[self.hook, name]
            known = entry.arguments == arguments
        except (KeyError, TypeError):
            known = False
        if not known:
            found = self._find(name, value, arguments)
            if found is None:
                return
            entry = found
        if value.__class__ is Tensor and value.dtype is entry.dtype and value.device == entry.device and not value.ndim:
            # Copied, not kept: the user may change the tensor in place.
            value = entry.slot.copy_(value.detach())  # type: ignore[union-attr]  # an entry with a dtype has a slot
            if entry.on_step:
                entry.pending = value
            accumulator = entry.accumulator
            if accumulator is not None:
                if not entry.weighted:
                    accumulator.add(value, 1)
                elif batch_size is None:
                    accumulator.add(value, self._batch_size or self._measure_batch())
                else:
                    accumulator.add(value, batch_size_of_log(name, batch_size))
        elif is_metric(value):
            self._take_metric(entry, value)
        else:
            self._take_carefully(entry, value, batch_size)

    def _find(self, name: str, value: Any, arguments: tuple[Any, ...]) -> Entry | None:
        """The entry for these arguments, made if this is the first call; None where nothing is recorded."""
        if self.muted is not None:
            warn_once(
                f"self.log({name!r}, ...) was called and records nothing. Logging is switched off by {self.muted}."
                f" Remove the call or the option."
            )
            return None
        loader = self._dataloader_idx if self._results.num_dataloaders > 1 else None
        call = decide_arguments(self.rule, self.hook, name, arguments, loader)
        entry = self._place.get((self.hook, name))
        if entry is not None:
            if entry.call != call:
                raise MisconfigurationException(two_meanings(entry.call, call))
            entry.arguments = arguments  # the same in other words, or the first call after a resume
            entry.group = arguments[-1]
            return entry
        for twin in self._results.twins(call):
            if not call.add_dataloader_idx or not twin.add_dataloader_idx:
                raise MisconfigurationException(one_name_for_two_loaders(call, twin))
        if arguments[1] and not self.loggers:
            warn_once(
                f"self.log({name!r}, ..., logger=True) was called, and the Trainer has no logger to send it to."
                f" Callbacks and the progress bar still see it. Pass Trainer(logger=...), or leave logger=True out."
            )
        if is_metric(value):
            check_is_part(name, value, self._module)
        if self._results.phase is Phase.CLOSED:
            self._results.phase = Phase.BEFORE  # logged between two epochs: belongs to the next
        entry = Entry(call, arguments)
        entry.group = arguments[-1]
        entry.of_batch = self._dataloader_idx is not None
        entry.late = call.sync_dist and self._together is not None and self._results.phase is Phase.EPOCH_END
        self._results.add(entry)
        return entry

    def _measure_batch(self) -> float:
        size = 1 if self._batch is None else extract_batch_size(self._batch)
        self._batch_size = size
        return size

    def _take_carefully(self, entry: Entry, value: Any, batch_size: Any) -> None:
        name = entry.call.name
        if entry.metric is not None:
            raise MisconfigurationException(two_kinds(name, entry.call.hook, value))
        weight: float = 1
        if batch_size is not None:
            weight = batch_size_of_log(name, batch_size)
        elif entry.weighted:
            weight = self._batch_size or self._measure_batch()
        entry.take(to_scalar(name, value), weight)
        if entry.late and self._together is not None:
            self._together.join_late([entry])

    def _take_metric(self, entry: Entry, metric: Any) -> None:
        call = entry.call
        if entry.metric is None:
            if entry.pending is not None or entry.unsent is not None or entry.has_epoch_value:
                raise MisconfigurationException(two_kinds(call.name, call.hook, metric))
            entry.metric = metric
        elif entry.metric is not metric:
            raise MisconfigurationException(two_kinds(call.name, call.hook, metric))
        if entry.on_step:
            # What `forward` gave for this batch; None after a bare `update`.
            entry.pending = metric_result(call.name, metric._forward_cache)
        if self._results.phase is Phase.EPOCH_END:
            entry.compute_metric()

    # --- showing them

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """What callbacks monitor: the newest value under each name."""
        self._show()
        return self._callback

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """What loggers get, under the names they get it."""
        self._show()
        return self._logged

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What was logged with `prog_bar=True`; read from the device now, and only what is new."""
        self._show()
        self._bar = to_floats(self._bar)
        return dict(self._bar)

    def _show(self) -> None:
        """Bring what was logged since the last look into the three views."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):  # what users get must be usable outside, too
                self._show_all()
        else:
            self._show_all()

    def _show_all(self) -> None:
        results = self._results
        for entry in results.stepping:
            value = entry.take_pending()
            if value is not None:
                self._show_step(entry, value)
        if results.phase is Phase.EPOCH_END:
            for entry in results.entries:
                if entry.call.on_epoch and entry.has_epoch_value:
                    self._show_value(entry, entry.epoch_name, entry.epoch_value(), to_callbacks=True)

    def _show_step(self, entry: Entry, value: Scalar) -> None:
        # Evaluation is judged by its epochs: the value of one of its batches is no metric to monitor.
        self._show_value(entry, entry.step_name, value, to_callbacks=self._results.training)

    def _show_unsent(self, entry: Entry) -> None:
        if entry.unsent is not None:
            self._show_step(entry, entry.unsent)

    def _show_value(self, entry: Entry, name: str, value: Scalar, *, to_callbacks: bool) -> None:
        call = entry.call
        tensor = as_tensor(value, self._device)
        if to_callbacks:
            self._callback[entry.plain_name] = tensor
            self._callback[name] = tensor
        if call.logger and self.loggers:
            self._logged[name] = tensor
        if call.prog_bar:
            self._bar[name] = value

    # --- sending them

    def publish_step(self, step: int, epoch: int | None = None) -> None:
        """Send what was logged for steps since the last time to the loggers.

        Args:
            step: Where it goes on their axis.
            epoch: Sent along under "epoch"; a metric called "step" then says the step instead.
        """
        results, together = self._results, self._together
        if not results.stepping and (together is None or not results.training):
            return
        self._show()
        fresh = [entry for entry in results.stepping if entry.unsent is not None]
        if together is not None and results.training:
            for entry in together.join_step(fresh):
                self._show_unsent(entry)
        elif together is not None:
            together.hold(fresh, self._batch_idx, step)
        row = {entry.step_name: entry.unsent for entry in fresh if entry.call.logger and entry.unsent is not None}
        for entry in fresh:
            entry.unsent = None
        self._send(row, step, epoch)

    def end_batches(self) -> None:
        """The batches of the epoch are over: values for the epoch can be read from now on."""
        self._show()
        self._leave_batch()
        results = self._results
        results.phase = Phase.EPOCH_END
        if self._together is None:
            for entry in results.entries:
                entry.compute_metric()
            return
        self._together.join_epoch(results)
        for step, row in self._together.rows_of_steps(results):
            self._send(row, step, None)
        for entry in results.stepping:
            self._show_unsent(entry)

    def publish_epoch(self, step: int, epoch: int) -> None:
        """Send the values of the epoch to the loggers, and begin anew."""
        results = self._results
        if results.phase in (Phase.BEFORE, Phase.BATCHES):
            self.end_batches()
        if self._together is not None:
            self._together.join_late([])  # who logged in the hooks of the end what others did not is found out now
        self._show()
        floats = to_floats(results.epoch_values())
        if not results.training:
            loaders = range(results.num_dataloaders)
            self._returned = [{name: floats[name] for name in results.epoch_values(idx)} for idx in loaders]
        self._send(floats, step, epoch)
        results.clear()
        results.phase = Phase.CLOSED

    def results(self) -> list[dict[str, float]]:
        """The values of the last evaluation, one dict per dataloader."""
        return [dict(values) for values in self._returned]

    def log_to_loggers(self, metrics: Mapping[str, Any], step: int) -> None:
        """Send a row of a callback's own to all loggers."""
        self._send(metrics, step, None)

    def _send(self, row: Mapping[str, Any], step: int, epoch: int | None) -> None:
        if not row or not self.loggers or self._results.stage is Stage.SANITY_CHECK:
            return
        floats = to_floats(row)
        if epoch is not None:
            if "step" in floats:
                step = int(floats.pop("step"))
            else:
                floats.setdefault("epoch", epoch)
        self.outlets.send(self.loggers, floats, step)

    # --- going on after a stop

    def shown(self) -> dict[str, dict[str, Any]]:
        """What the three dictionaries show, as plain values on the CPU, to be sent to another process."""
        return {
            "callback": {name: value.detach().cpu() for name, value in self.callback_metrics.items()},
            "logged": {name: value.detach().cpu() for name, value in self.logged_metrics.items()},
            "bar": self.progress_bar_metrics,
        }

    def show(self, shown: Mapping[str, Mapping[str, Any]]) -> None:
        """Show what another process has seen."""
        self._callback, self._logged, self._bar = (dict(shown[name]) for name in ("callback", "logged", "bar"))

    def state_dict(self) -> dict[str, Any]:
        """What is shown and what the rest of a training epoch needs, loadable with `weights_only=True`."""
        training = next((results for results in self._stages if results.training), self._left)
        shown = self.shown()  # first: what nobody looked at yet is seen by this
        entries = training.state_dict(self._module) if training is not None else {"entries": []}
        return {**entries, "shown": shown}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the middle of a training epoch; may be called before training is entered."""
        if "shown" in state:
            self.show(state["shown"])
        if self._results.training:
            self._results.load_state_dict(state, self._device, self._module)
        else:
            self._resumed = state
