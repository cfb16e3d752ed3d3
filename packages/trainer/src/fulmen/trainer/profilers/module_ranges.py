"""The calls of a model's layers as ranges in a trace."""

from typing import Any

import torch
from torch import nn


class RegisterRecordFunction:
    """Inside `with`, each call of a layer of `model` is a range: `[pl][module]torch.nn.modules.linear.Linear: head`.

    Args:
        model: The model; it has hooks only inside.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []
        self._ranges: dict[str, list[torch.profiler.record_function]] = {}

    def __enter__(self) -> None:
        """From now on."""
        for name, layer in self._model.named_modules():
            if name:
                kind = f"{type(layer).__module__}.{type(layer).__name__}"
                self._watch(layer, f"[pl][module]{kind}: {name}")

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        """Until now; ranges of calls that failed end."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for marks in self._ranges.values():
            for mark in reversed(marks):
                mark.__exit__(None, None, None)
        self._ranges.clear()

    def _watch(self, layer: nn.Module, label: str) -> None:
        def before(*_: Any) -> None:
            mark = torch.profiler.record_function(label)
            mark.__enter__()
            self._ranges.setdefault(label, []).append(mark)

        def after(*_: Any) -> None:
            marks = self._ranges.get(label)
            if marks:
                marks.pop().__exit__(None, None, None)

        self._handles.append(layer.register_forward_pre_hook(before))
        self._handles.append(layer.register_forward_hook(after, always_call=True))
