"""Which arguments a step takes: worked out once, from its signature."""

from collections.abc import Callable
from typing import Any

from fulmen.trainer.signature import is_param_in_hook_signature

Step = Callable[..., Any]


def step_arguments(method: Step, call: Step) -> Step:
    """`call` as a function of (batch, batch_idx), though `method` may take the batch alone."""
    if is_param_in_hook_signature(method, "batch_idx", min_args=2):
        return call
    return lambda batch, _index: call(batch)
