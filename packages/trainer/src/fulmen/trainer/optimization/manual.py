"""The module steps its optimizers itself; we count."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.optimization.arguments import step_arguments
from fulmen.trainer.optimization.step import Closure, OptimizerStep
from fulmen.trainer.progress.counts import FitCounts
from fulmen.trainer.run.context import RunContext


class ManualOptimization:
    """Calls `training_step`, in which the module calls `manual_backward` and `optimizer.step()` as it likes."""

    def __init__(self, run: RunContext, counts: FitCounts) -> None:
        module = run.strategy.lightning_module
        assert module is not None
        self._name = type(module).__name__
        self._counts = counts
        self._step = OptimizerStep(run.strategy, run.hooks, None, automatic=False)
        step = run.hooks.step("training_step", run.strategy.step_function("training_step"))
        self._training_step = step_arguments(module.training_step, step)
        self._strategy, self._hooks = run.strategy, run.hooks
        module.bind_backward(self._backward)
        for optimizer in run.strategy.lightning_optimizers:
            optimizer.bind(self._counted_step, module=module, skip_gradient_sync=run.strategy.skip_gradient_sync)

    def run(self, batch: Any, index: int, *, is_last: bool) -> Any:
        """One batch. Returns what `training_step` returned."""
        output = self._training_step(batch, index)
        if not (output is None or isinstance(output, (Tensor, Mapping))):
            raise ConfigurationError(
                f"{self._name}.training_step() returned a {type(output).__name__}."
                " In manual optimization its answer only goes to the callbacks' on_train_batch_end."
                " Return a tensor, a dict or nothing."
            )
        return output

    @staticmethod
    def outputs(output: Any) -> dict[str, Any]:
        """What `on_train_batch_end` hears."""
        if isinstance(output, Mapping):
            return dict(output)
        return {} if output is None else {"loss": output.detach()}

    def _backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self._hooks.on_before_backward(loss)
        self._strategy.backward(loss, None, *args, **kwargs)
        self._hooks.on_after_backward()

    def _counted_step(self, optimizer: Optimizer, closure: Closure | None, kwargs: dict[str, Any]) -> Any:
        answer = self._step(optimizer, closure, kwargs)
        self._counts.manual_steps.add()
        return answer
