"""Modules that `torch.compile` has wrapped: the LightningModule inside, with its steps compiled.

The wrapper is no LightningModule, and it would put a prefix before every key of a checkpoint. So a run takes the module
inside, and its steps go through what the wrapper would have done.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fulmen.fabric.compiled import is_compiled, unwrap_compiled
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.needs import COMPILED, COMPILED_METHODS

if TYPE_CHECKING:
    from torch._dynamo import OptimizedModule


def is_compiled_wrapper(model: object) -> bool:
    """Is `model` what `torch.compile(module)` returns?"""
    return is_compiled(model)


def from_compiled(model: OptimizedModule) -> LightningModule:
    """The LightningModule inside `model`, its forward and steps compiled as `torch.compile` was told.

    The module is changed in place, and `to_uncompiled` undoes it. Keys of its state are those without `torch.compile`.

    Raises:
        ArgumentTypeError: If `model` does not come from `torch.compile`, or holds no LightningModule.
    """
    if not is_compiled_wrapper(model):
        raise ArgumentTypeError(
            f"from_compiled({type(model).__name__}) got a module that is not compiled."
            " Only what torch.compile returns can be taken apart. Pass torch.compile(module)."
        )
    module = model._orig_mod
    if not isinstance(module, LightningModule):
        raise ArgumentTypeError(
            f"from_compiled(torch.compile({type(module).__name__})) holds no LightningModule."
            " A run needs one: it says what a step is. Wrap your network in a LightningModule, and compile that."
        )
    if COMPILED in module.__dict__:  # compiled before; the newest way counts
        to_uncompiled(module)
    compile_: Callable[..., Any] = model.dynamo_ctx
    originals = {name: module.__dict__[name] for name in COMPILED_METHODS if name in module.__dict__}
    module.__dict__[COMPILED] = {"compiler": "dynamo", "dynamo_ctx": compile_, "originals": originals}
    for name in COMPILED_METHODS:
        method = getattr(module, name)
        module.__dict__[name] = functools.wraps(method)(compile_(method))
    return module


def to_uncompiled(model: LightningModule | OptimizedModule) -> LightningModule:
    """The module as it was before `torch.compile` or `from_compiled`.

    Raises:
        ArgumentTypeError: If `model` is neither what `torch.compile` returns nor a LightningModule.
        ConfigurationError: If it is a LightningModule that was not compiled.
    """
    module: Any = unwrap_compiled(model)
    if not isinstance(module, LightningModule):
        raise ArgumentTypeError(
            f"to_uncompiled({type(model).__name__}) got no LightningModule. Only such modules, and what torch.compile"
            " makes of them, can be given back. Pass one of these."
        )
    kept = module.__dict__.pop(COMPILED, None)
    if kept is None:
        if module is not model:  # a wrapper that no run has taken apart
            return module
        raise ConfigurationError(
            f"to_uncompiled({type(model).__name__}) got a module that is not compiled."
            " There is nothing to undo. Pass what from_compiled or torch.compile returned."
        )
    for name in COMPILED_METHODS:
        module.__dict__.pop(name, None)
    module.__dict__.update(kept["originals"])
    return module
