"""Module, optimizers and loaders as they are now, kept in memory, to be put back exactly.

Everything is put back in place: whoever holds a parameter, an optimizer or a list still holds the same object. What is
reached from the owners is kept as far as a run changes it: attributes, tensors, containers, random generators. Samples
of a dataset are not looked at.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from fulmen.fabric.data.generators import generator_state, owned_generators, restore_generator
from fulmen.fabric.data.parts import keeps_state
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.data.combined_loader import CombinedLoader

_ATOMS = frozenset({int, float, str, bool, bytes, complex, type(None), torch.dtype, torch.device, torch.Size})
# Objects of these kinds are kept with all that is in their attributes.
_PARTS = (
    nn.Module,
    Optimizer,
    LRScheduler,
    torch.amp.GradScaler,
    DataLoader,
    Sampler,
    CombinedLoader,
    LightningDataModule,
)
_Undo = Callable[[], Any]


class Snapshot:
    """Takes the state of `owners` when it is made.

    Args:
        owners: Modules, datamodules, optimizers, loaders, and containers of them; None is passed over. Of an object of
            an unknown kind the attributes are kept, and its `state_dict` if it has one.
    """

    def __init__(self, *owners: object) -> None:
        self._undo: list[_Undo] = []
        self._known: dict[int, object] = {}  # the objects themselves, so that no other can take over an id
        for owner in owners:
            if not self._keep(owner):
                self._keep_foreign(owner)

    def put_back(self) -> None:
        """Make everything as it was; as often as wanted."""
        with torch.inference_mode(False), torch.no_grad():
            for undo in self._undo:
                undo()

    def _keep(self, value: Any) -> bool:
        """Keep what is known how to keep. Is it done?"""
        if type(value) in _ATOMS or id(value) in self._known:
            return True
        if isinstance(value, Tensor):
            self._know(value)
            self._keep_tensor(value)
        elif isinstance(value, _PARTS):
            self._know(value)
            self._keep_attributes(value)
            self._keep_all(vars(value).values())
        elif isinstance(value, dict | list | set | deque):
            self._know(value)
            self._keep_container(value)
        elif isinstance(value, tuple):
            self._know(value)
            self._keep_all(value)
        elif isinstance(value, Dataset):
            self._keep_foreign(value)
        elif isinstance(value, torch.Generator | random.Random):
            self._keep_generator(value)
        else:
            return False
        return True

    def _know(self, value: object) -> None:
        self._known[id(value)] = value

    def _keep_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self._keep(value)

    def _keep_attributes(self, owner: Any) -> None:
        attributes, kind = dict(vars(owner)), type(owner)
        for generator in owned_generators([owner]):  # those of numpy too
            self._keep_generator(generator)

        def undo() -> None:
            # Past any `__setattr__`: those of modules and loaders have opinions.
            vars(owner).clear()
            vars(owner).update(attributes)
            if type(owner) is not kind:  # a lazy layer that has become one with weights
                owner.__class__ = kind

        self._undo.append(undo)

    def _keep_foreign(self, owner: Any) -> None:
        """The attributes, and no deeper: a dataset may hold millions of samples."""
        if owner is None or id(owner) in self._known:
            return
        self._know(owner)
        attributes = getattr(owner, "__dict__", None)
        if attributes is not None:
            self._keep_attributes(owner)
            for value in list(attributes.values()):
                if not isinstance(value, Tensor | dict | list | set | tuple | deque | nn.Module | Dataset):
                    self._keep(value)
        if keeps_state(owner):
            state = deepcopy(owner.state_dict())
            self._undo.append(lambda: owner.load_state_dict(deepcopy(state)))

    def _keep_generator(self, generator: Any) -> None:
        if id(generator) not in self._known:
            self._know(generator)
            self._undo.append(partial(restore_generator, generator, generator_state(generator)))

    def _keep_container(self, container: Any) -> None:
        if isinstance(container, dict):
            content: Any = dict(container)
            fill: Callable[[Any], Any] = container.update
            self._keep_all(content.values())
        else:
            content = list(container)
            fill = container.update if isinstance(container, set) else container.extend
            self._keep_all(content)

        def undo() -> None:
            container.clear()
            fill(content)

        self._undo.append(undo)

    def _keep_tensor(self, tensor: Tensor) -> None:
        if is_lazy(tensor):
            self._keep_unborn(tensor)
            return
        # What nobody can write to in place needs no copy: views that repeat themselves, inference tensors, graph nodes.
        repeats = any(step == 0 and size > 1 for step, size in zip(_strides(tensor), tensor.shape, strict=False))
        if tensor.is_meta or tensor.is_inference() or repeats or not tensor.is_leaf:
            return
        # In the memory of the machine: a device that is to be filled to the brim has none to spare.
        content = tensor.detach().to("cpu", copy=True)
        device, needs_grad, grad = tensor.device, tensor.requires_grad, tensor.grad
        self._keep(grad)

        def undo() -> None:
            if tensor.device == device and tensor.dtype == content.dtype and tensor.shape == content.shape:
                tensor.copy_(content)
            else:  # moved or converted for the run
                tensor.data = content.to(device, copy=True)
            tensor.grad = grad
            tensor.requires_grad_(needs_grad)

        self._undo.append(undo)

    def _keep_unborn(self, tensor: Tensor) -> None:
        kind, device, dtype = type(tensor), tensor.device, tensor.dtype

        def undo() -> None:
            if type(tensor) is not kind:
                tensor.grad = None
                tensor.data = torch.empty(0, device=device, dtype=dtype)
                tensor.__class__ = kind

        self._undo.append(undo)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tensor.stride() if tensor.layout is torch.strided else ()
