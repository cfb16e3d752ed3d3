"""Floating point operations of one forward pass: what torch counts, and what it has no formula for."""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

# What stands in the counts for a layer whose kernel torch does not know, as those of quantized layers.
BY_SHAPE = "by shape"


@contextlib.contextmanager
def count_flops(model: nn.Module) -> Iterator[Callable[[], dict[str, dict[Any, int]]]]:
    """Count inside the block; gives a function that says what was counted.

    Linear layers and convolutions in which torch counts nothing are counted by the shape of what they put out.

    Returns:
        Per module ("Global" for the model), operations by kind.
    """
    from torch.utils.flop_counter import FlopCounterMode

    by_shape: dict[str, int] = {}
    hooks = []
    for name, module in model.named_modules():
        each = _flops_per_output(module)
        if name and each is not None:
            hooks.append(module.register_forward_hook(partial(_note, by_shape, name, each)))
    counter = FlopCounterMode(display=False)
    root = type(model).__name__

    def counted() -> dict[str, dict[Any, int]]:
        counts = {name: dict(kinds) for name, kinds in counter.flop_counts.items()}
        for name, flops in by_shape.items():
            if any(counts.get(f"{root}.{name}", {}).values()):
                continue
            parts = name.split(".")
            above = [".".join([root, *parts[:depth]]) for depth in range(len(parts) + 1)]
            for place in ("Global", *above):
                kinds = counts.setdefault(place, {})
                kinds[BY_SHAPE] = kinds.get(BY_SHAPE, 0) + flops
        return counts

    try:
        with counter:
            yield counted
    finally:
        for hook in hooks:
            hook.remove()


def _note(by_shape: dict[str, int], name: str, each: int, _: nn.Module, __: Any, output: Any) -> None:
    if isinstance(output, Tensor):
        by_shape[name] = by_shape.get(name, 0) + output.numel() * each


def _flops_per_output(module: nn.Module) -> int | None:
    """For one number that the layer puts out; None if it is neither linear nor a convolution, or has layers in it."""
    inputs: Any = getattr(module, "in_features", None)
    if isinstance(inputs, int) and isinstance(getattr(module, "out_features", None), int):
        return 2 * inputs
    channels: Any = getattr(module, "in_channels", None)
    kernel: Any = getattr(module, "kernel_size", None)
    groups: Any = getattr(module, "groups", None)
    if isinstance(channels, int) and isinstance(kernel, tuple) and isinstance(groups, int):
        if getattr(module, "transposed", False):  # each input is used by several outputs, depending on the stride
            return None
        return 2 * channels // groups * math.prod(kernel)
    return None
