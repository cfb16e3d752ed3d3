"""One optimizer step under any precision: closure, unscale, hooks, clip, step.

Without loss scaling the optimizer gets the closure and calls it as often as it likes (LBFGS does so several times).
With it the closure runs once, before: gradients must be unscaled, and may be found infinite, before they are used.
"""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from fulmen.trainer.hooks.dispatch import HookFunction, Hooks
from fulmen.trainer.strategies.base import Strategy

Closure = Callable[[], Any]


class OptimizerStep:
    """Makes optimizer steps for the run; `LightningOptimizer.step` ends up here.

    Args:
        clip: Called with the optimizer when gradients are complete; clips them. None where there is nothing to clip.
        automatic: Is the closure ours? Then an answer of None means that there was no loss.
    """

    def __init__(self, strategy: Strategy, hooks: Hooks, clip: HookFunction | None, *, automatic: bool) -> None:
        self._strategy = strategy
        self._hooks = hooks
        self._clip = clip
        self._automatic = automatic
        self._precision = strategy.precision_plugin
        self._scales = self._precision.scales_loss
        self.clips = clip is not None

    def __call__(self, optimizer: Optimizer, closure: Closure | None, kwargs: dict[str, Any]) -> Any:
        """Step `optimizer`; returns what its `step` returns, or the closure's answer under loss scaling."""
        if not self._scales:
            return self._strategy.optimizer_step(optimizer, self._completed(optimizer, closure), **kwargs)
        answer = closure() if closure is not None else None
        self._precision.unscale_gradients(optimizer)
        self.before_step(optimizer)
        if self._automatic and answer is None:
            return None  # there was no loss: the scaler has seen no gradients, and stepping it would be an error
        self._precision.optimizer_step(optimizer, **kwargs)  # type: ignore[arg-type]  # torch overloads `step`
        return answer

    def _completed(self, optimizer: Optimizer, closure: Closure | None) -> Closure:
        def complete() -> Any:
            answer = closure() if closure is not None else None
            self.before_step(optimizer)
            return answer

        return complete

    def before_step(self, optimizer: Optimizer) -> None:
        """The gradients of this step are complete: hooks, then clipping."""
        self._hooks.on_before_optimizer_step(optimizer)
        if self._clip is not None:
            self._clip(optimizer)
