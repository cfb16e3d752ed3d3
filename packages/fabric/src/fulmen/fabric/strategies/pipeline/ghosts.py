"""Tensors and modules of other stages of a pipeline: shapes without numbers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fulmen.fabric.compiled import unwrap_compiled
from fulmen.fabric.trees import leaves, map_tree


class Ghosts:
    """Makes them, and runs modules on them.

    Args:
        device: On which they claim to be.
    """

    def __init__(self, device: torch.device) -> None:
        from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

        self._device = device
        self._kind, self._mode = FakeTensor, FakeTensorMode(allow_non_fake_inputs=True)
        self._modules: dict[str, tuple[nn.Module, nn.Module]] = {}  # of each name, the real one and its ghost
        self._outputs: dict[Any, Any] = {}

    def is_ghost(self, value: object) -> bool:
        """Is it one?"""
        return isinstance(value, self._kind)

    def tensor(self, tensor: Tensor) -> Any:
        """A ghost of a tensor or a parameter."""
        with self._mode:
            made = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        return Parameter(made, tensor.requires_grad) if isinstance(tensor, Parameter) else made

    def add(self, name: str, module: nn.Module) -> None:
        """Make a ghost of a module; its parameters take no memory."""
        inner = unwrap_compiled(module)
        # What a deep copy finds in its memo it takes for copied.
        memo: dict[int, Any] = {id(one): self.tensor(one) for one in [*inner.parameters(), *inner.buffers()]}
        self._modules[name] = module, copy.deepcopy(inner, memo)

    def call(self, name: str, args: Any, kwargs: Any) -> Any:
        """What a module gives, in shapes; worked out once for each form of what it gets."""
        module, ghost = self._modules[name]
        now = torch.is_grad_enabled(), *_autocast(self._device)
        key = name, module.training, now, *kwargs, _form((args, kwargs))
        if key not in self._outputs:
            self._outputs[key] = map_tree(ghost.train(module.training)(*args, **kwargs), _apart)
        return map_tree(self._outputs[key], _apart)

    def look_again(self) -> None:
        """Parameters may have been frozen since."""
        self._outputs.clear()
        for module, ghost in self._modules.values():
            for ours, theirs in zip(ghost.parameters(), module.parameters(), strict=True):
                ours.requires_grad_(theirs.requires_grad)


def _apart(leaf: Any) -> Any:
    """A ghost for one use, without its history."""
    return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _autocast(device: torch.device) -> tuple[Any, ...]:
    kind = device.type
    return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def _form(tree: Any) -> tuple[Any, ...]:
    """What decides the shapes of what a module gives."""
    return tuple(
        (tuple(leaf.shape), leaf.dtype, leaf.requires_grad) if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in leaves(tree)
    )
