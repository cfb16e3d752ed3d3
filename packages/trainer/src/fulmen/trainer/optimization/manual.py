"""The module steps its optimizers itself; we count."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fulmen.fabric.class_names import class_name
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.optimization.arguments import check_training_step, step_arguments
from fulmen.trainer.optimization.loss import check_derivable, check_finite, check_no_late_layers
from fulmen.trainer.optimization.step import Closure, OptimizerStep
from fulmen.trainer.progress.counts import FitCounts
from fulmen.trainer.run.context import RunContext

# So many batches no accumulation window is long: of data without an end, no step comes any more.
_MOST_BATCHES_TO_A_STEP = 10_000


class NoStepError(ConfigurationError):
    """Only `max_steps` can end the fit, and nothing is counted as a step."""


class ManualOptimization:
    """Calls `training_step`, in which the module calls `manual_backward` and `optimizer.step()` as it likes."""

    def __init__(self, run: RunContext, counts: FitCounts) -> None:
        module = run.strategy.lightning_module
        assert module is not None
        self._module = module
        self._name = class_name(module)
        check_training_step(module.training_step, module=self._name)
        self._settings = run.settings
        self._index = 0
        self._is_first = True
        self._idle = 0  # batches since the last step
        self._counts = counts
        self._waiting: set[int] = set()  # by id: optimizers that have not stepped since the last backward
        self._step = OptimizerStep(run.strategy, run.hooks, None, automatic=False)
        step = run.hooks.step("training_step", run.strategy.step_function("training_step"))
        self._training_step = step_arguments(module.training_step, step)
        self._strategy, self._hooks = run.strategy, run.hooks
        self._all = {id(optimizer) for optimizer in run.strategy.optimizers}
        self._timed_backward = self._hooks.step("backward", self._strategy.backward)
        module.bind_backward(self._backward)
        for optimizer in run.strategy.lightning_optimizers:
            optimizer.bind(self._counted_step, module=module, skip_gradient_sync=run.strategy.skip_gradient_sync)

    @property
    def gradients_wait(self) -> bool:
        """Has an optimizer not stepped since the last backward?"""
        return bool(self._waiting)

    def run(self, batch: Any, index: int, is_last: bool) -> Any:
        """One batch. Returns what `training_step` returned."""
        self._index = index
        steps = self._counts.manual_steps.total
        output = self._training_step(batch, index)
        self._idle = self._idle + 1 if self._counts.manual_steps.total == steps else 0
        if self._idle >= _MOST_BATCHES_TO_A_STEP:
            self.check_steps(_MOST_BATCHES_TO_A_STEP)
        if not (output is None or isinstance(output, (Tensor, Mapping))):
            raise ConfigurationError(
                f"{self._name}.training_step() returned a {type(output).__name__}."
                " In manual optimization its answer only goes to the callbacks' on_train_batch_end."
                " Return a tensor, a dict or nothing."
            )
        return output

    def check_steps(self, batches: int) -> None:
        """Refuse to go on for ever if `batches`, the last ones, should have made a step and have not.

        Raises:
            NoStepError: Nothing but `max_steps` ends this fit, and its last batches have made no step.
        """
        settings = self._settings
        bounded = settings.max_epochs != -1 or settings.max_time is not None or settings.max_steps == -1
        if not bounded and self._idle >= batches:
            raise NoStepError(
                f"Trainer(max_steps={settings.max_steps}) would never be reached: {self._name} optimizes manually, and"
                f" no optimizer stepped in the last {self._idle} batches. Only steps of the optimizers that"
                " self.optimizers() gives are counted, not those of the torch optimizers themselves."
                " Call opt.step() of these in training_step, or pass max_epochs."
            )

    @staticmethod
    def outputs(output: Any) -> dict[str, Any]:
        """What `on_train_batch_end` hears."""
        if isinstance(output, Mapping):
            return dict(output)
        return {} if output is None else {"loss": output.detach()}

    def _backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._settings.detect_anomaly:
            counts = self._counts
            check_finite(loss.sum(), self._name, epoch=counts.epoch.total, batch=self._index, step=counts.global_step)
        self._hooks.on_before_backward(loss)
        try:
            self._timed_backward(loss, None, *args, **kwargs)
        except RuntimeError:
            if not args and not kwargs:  # else the user says how to derive it
                check_derivable(loss, self._name, self._module.parameters())
            raise
        self._waiting = set(self._all)
        if self._is_first:
            self._is_first = False
            groups = (group for optimizer in self._strategy.optimizers for group in optimizer.param_groups)
            optimized = (parameter for group in groups for parameter in group["params"])
            check_no_late_layers(self._module, self._strategy.known_parameters, optimized)
        self._hooks.on_after_backward()

    def _counted_step(self, optimizer: Optimizer, closure: Closure | None, kwargs: dict[str, Any]) -> Any:
        answer = self._step(optimizer, closure, kwargs)
        self._waiting.discard(id(optimizer))
        self._counts.manual_steps.add()
        return answer
