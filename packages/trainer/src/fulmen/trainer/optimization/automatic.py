"""Forward, zero_grad, backward, step: the run does it, the module gives the loss."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fulmen.fabric.class_names import class_name
from fulmen.fabric.rank_zero import warn_once
from fulmen.trainer.core.optimizer import LightningOptimizer
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.hooks.dispatch import HookFunction, listened, nobody
from fulmen.trainer.optimization.arguments import check_training_step, step_arguments
from fulmen.trainer.optimization.loss import check_derivable, check_finite, check_no_late_layers, check_type
from fulmen.trainer.optimization.step import OptimizerStep
from fulmen.trainer.progress.counts import FitCounts
from fulmen.trainer.run.context import RunContext
from fulmen.trainer.signature import is_overridden

Outputs = dict[str, Any]


class AutomaticOptimization:
    """Makes one training step per batch. All that can be decided before the first batch is decided here, once.

    Args:
        run: Its strategy has been set up.
        counts: Optimizer steps and zero_grads are counted there.
        num_batches: Batches of one epoch, infinity if unknown; the last accumulation window may be shorter.
    """

    def __init__(self, run: RunContext, counts: FitCounts, num_batches: int | float) -> None:
        strategy, hooks = run.strategy, run.hooks
        module = strategy.lightning_module
        assert module is not None
        self._settings = run.settings
        self._strategy = strategy
        self._hooks = hooks
        self._counts = counts
        self._skipped = False  # has a batch given no loss?
        self._num_batches = num_batches
        self.gradients_wait = False  # for further batches, before there is a step?
        self._module = module
        self._name = class_name(module)
        check_training_step(module.training_step, module=self._name)
        step = hooks.step("training_step", strategy.step_function("training_step"))
        self._training_step = step_arguments(module.training_step, step)

        optimizer = strategy.optimizers[0] if strategy.optimizers else None
        self._optimizer: Optimizer | None = optimizer
        self._step = OptimizerStep(strategy, hooks, self._clipping(module), automatic=True)
        if optimizer is not None:
            self._lightning_optimizer: LightningOptimizer = strategy.lightning_optimizers[0]
            self._lightning_optimizer.bind(self._step, module=module, skip_gradient_sync=strategy.skip_gradient_sync)
        self._optimizer_step_hook = hooks.module_method("optimizer_step")

        # What is timed goes the whole way.
        self._plain_zero_grad = not is_overridden("optimizer_zero_grad", module) and not hooks.are_timed
        self._zero_grad_hook = hooks.module_method("optimizer_zero_grad")
        # The first backward is looked at closely, and with `detect_anomaly` every one.
        self._plain_backward = False
        self._backward = hooks.step("backward", strategy.backward)
        self._is_plain = strategy.backward_is_plain and not is_overridden("backward", module) and not hooks.are_timed
        self._is_first = True
        self._derives_in_step = strategy.derives_in_step
        self._on_before_zero_grad = listened(hooks.on_before_zero_grad)
        self._on_before_backward = listened(hooks.on_before_backward)
        self._on_after_backward = listened(hooks.on_after_backward)
        # The short way: nobody looks between closure and step, and the optimizer would call the closure just once.
        self._short = (
            optimizer is not None
            and not hooks.are_timed
            and not is_overridden("optimizer_step", module)
            and not strategy.precision_plugin.scales_loss
            and strategy.optimizer_step_is_plain
            and _calls_closure_once(optimizer)
        )
        self._has_before_step = hooks.on_before_optimizer_step is not nobody or self._step.clips

    def run(self, batch: Any, index: int, is_last: bool) -> Any:
        """One batch. Returns what `training_step` returned."""
        window = self._settings.accumulate_grad_batches
        if window != 1:
            return self._accumulated(batch, index, window, is_last)
        self._advance(batch, index, True, 1)
        return self._output

    def outputs(self, output: Any) -> Outputs:
        """What `on_train_batch_end` hears, detached, as a dict; the loss is divided by `accumulate_grad_batches`."""
        if isinstance(output, Tensor):
            heard: Outputs = {"loss": output.detach()}
        elif isinstance(output, Mapping):
            heard = {key: value.detach() if isinstance(value, Tensor) else value for key, value in output.items()}
        else:
            return {}
        window = self._settings.accumulate_grad_batches
        if window != 1 and isinstance(heard.get("loss"), Tensor):
            # Of a short last window too, so that who watches the loss sees no jump there.
            heard["loss"] = heard["loss"] / window
        return heard

    def _accumulated(self, batch: Any, index: int, window: int, is_last: bool) -> Any:
        place = index % window
        divisor = int(min(window, self._num_batches - (index - place)))
        self.gradients_wait = not (place == window - 1 or is_last)
        if not self.gradients_wait:
            self._advance(batch, index, place == 0, divisor)
        else:
            with self._strategy.skip_gradient_sync(enabled=True):
                self._closure(batch, index, place == 0, divisor)
        return self._output

    def _advance(self, batch: Any, index: int, first: bool, divisor: int) -> None:
        """Closure and optimizer step."""
        optimizer = self._optimizer
        if optimizer is None:
            self._closure(batch, index, first, divisor)
        elif self._short:
            self._closure(batch, index, first, divisor)
            if self._has_before_step:
                self._step.before_step(optimizer)
            optimizer.step()
        else:
            closure = partial(self._closure_in_step, batch, index, first, divisor)
            self._optimizer_step_hook(
                self._counts.epoch.total, index, self._lightning_optimizer, _with_gradients(closure)
            )
        self._counts.optimizer_steps.total += 1

    def _closure_in_step(self, batch: Any, index: int, first: bool, divisor: int) -> Tensor | None:
        """The closure inside the hook `optimizer_step`: what is logged there is still of the training step."""
        with self._hooks.inside("training_step"):
            return self._closure(batch, index, first, divisor)

    def _closure(self, batch: Any, index: int, first: bool, divisor: int) -> Tensor | None:
        """Forward, zero_grad (on the first batch of a window), backward."""
        if self._derives_in_step:
            return self._derived(batch, index, first, divisor)
        self._output = output = self._training_step(batch, index)
        loss = output if isinstance(output, Tensor) else self._loss_of(output)
        if first and self._optimizer is not None:
            self._zero_grad(index)
        if loss is None:
            return None
        if divisor != 1:
            loss = loss / divisor  # not in place: the graph has saved it
        if self._on_before_backward is not None:
            self._on_before_backward(loss)
        try:
            if self._plain_backward:
                loss.backward()
            else:
                self._watched_backward(loss, index)
        except RuntimeError:
            check_derivable(loss, self._name, self._module.parameters())
            raise
        if self._on_after_backward is not None:
            self._on_after_backward()
        return loss

    def _derived(self, batch: Any, index: int, first: bool, divisor: int) -> Tensor | None:
        """Forward and backward are one: gradients are zeroed before, and hooks of backward hear of it afterwards."""
        if first and self._optimizer is not None:
            self._zero_grad(index)
        self._strategy.loss_divisor = divisor
        self._output = output = self._training_step(batch, index)
        loss = output if isinstance(output, Tensor) else self._loss_of(output)
        if loss is None:
            return None
        if self._settings.detect_anomaly:
            counts = self._counts
            check_finite(loss, self._name, epoch=counts.epoch.total, batch=index, step=counts.global_step)
        for hook, heard in ((self._on_before_backward, (loss / divisor,)), (self._on_after_backward, ())):
            if hook is not None:
                hook(*heard)
        return loss

    def _watched_backward(self, loss: Tensor, index: int) -> None:
        if self._settings.detect_anomaly:
            counts = self._counts
            check_finite(loss, self._name, epoch=counts.epoch.total, batch=index, step=counts.global_step)
        if self._is_plain:
            loss.backward()
        else:
            self._backward(loss, self._optimizer)
        if self._is_first:
            self._is_first = False
            self._plain_backward = self._is_plain and not self._settings.detect_anomaly
            optimized = (parameter for group in self._groups() for parameter in group["params"])
            check_no_late_layers(self._module, self._strategy.known_parameters, optimized)

    def _groups(self) -> list[dict[str, Any]]:
        return [] if self._optimizer is None else self._optimizer.param_groups

    def _zero_grad(self, index: int) -> None:
        optimizer = self._optimizer
        assert optimizer is not None
        if self._on_before_zero_grad is not None:
            self._on_before_zero_grad(optimizer)
        if self._plain_zero_grad:
            optimizer.zero_grad()
        else:
            self._zero_grad_hook(self._counts.epoch.total, index, optimizer)
        self._counts.zero_grads.total += 1

    def _loss_of(self, output: Any) -> Tensor | None:
        if output is None:
            if not self._skipped:
                self._skipped = True
                warn_once(
                    f"{self._name}.training_step() returned None for a batch. There is nothing to derive, so backward"
                    " is left out, and the optimizer steps without gradients. Return the loss if that is not meant."
                )
            return None
        if not isinstance(output, Mapping):
            raise ConfigurationError(
                f"{self._name}.training_step() returned a {type(output).__name__}."
                " In automatic optimization a step gives the loss that backward starts from."
                " Return a tensor, a dict with the key 'loss', or None to skip the batch."
            )
        if "loss" not in output:
            raise ConfigurationError(
                f"{self._name}.training_step() returned a dict with the keys {sorted(map(str, output))}."
                " In automatic optimization a step gives the loss that backward starts from."
                " Add it under the key 'loss'."
            )
        loss: Tensor | None = output["loss"]
        if loss is not None:
            check_type(loss, self._name)
        return loss

    def _clipping(self, module: Any) -> HookFunction | None:
        settings = self._settings
        if not is_overridden("configure_gradient_clipping", module) and not settings.gradient_clip_val:
            return None
        configure = self._hooks.module_method("configure_gradient_clipping")

        def clip(optimizer: Optimizer) -> None:
            configure(
                optimizer,
                gradient_clip_val=settings.gradient_clip_val,
                gradient_clip_algorithm=settings.gradient_clip_algorithm,
            )

        return clip


def _calls_closure_once(optimizer: Optimizer) -> bool:
    """Torch's own optimizers evaluate a closure once, at the start of `step`; LBFGS evaluates it many times."""
    kind = type(optimizer)
    return kind.__module__.startswith("torch.optim") and kind is not torch.optim.LBFGS


def _with_gradients(closure: Callable[[], Any]) -> Callable[[], Any]:
    """Optimizers call the closure under no_grad."""

    def call() -> Any:
        with nullcontext() if torch.is_grad_enabled() else torch.enable_grad():
            return closure()

    return call
