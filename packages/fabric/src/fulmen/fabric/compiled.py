"""Modules that `torch.compile` has wrapped, whole or in part: the module inside, and names without the wrapper.

A wrapper puts `_orig_mod` into the names of all that is inside. Checkpoints have names without it, so that a module
loads what it has saved whether it is compiled or not; names with it are understood too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter

from fulmen.fabric.printable import printable_names

_WRAPPED = "_orig_mod"  # what torch calls the module inside


def is_compiled(obj: object) -> bool:
    """Is it what `torch.compile(module)` returns?"""
    # torch._dynamo is slow to import; where it was never imported, nothing is compiled.
    frames = sys.modules.get("torch._dynamo.eval_frame")
    return frames is not None and isinstance(obj, frames.OptimizedModule)


def unwrap_compiled(obj: Any) -> Any:
    """The module inside a `torch.compile`d one; anything else as it is."""
    return obj._orig_mod if is_compiled(obj) else obj


def plain_name(module: Module, name: str) -> str:
    """The name of a parameter, a buffer or a part of `module` as if nothing in it were compiled."""
    return ".".join(part for part, is_wrapped in _path(module, name) if not is_wrapped)


def name_inside(module: Module, name: str) -> str:
    """The name that something has in `module`, as much of which is compiled now as is; undoes `plain_name`.

    Args:
        module: Where it is.
        name: With or without wrappers of its own, as a checkpoint has it.
    """
    return ".".join(part for part, _ in _path(module, name))


def without_wrappers(name: str) -> str:
    """A name without what `torch.compile` puts into it, where there is no module to compare it with."""
    return ".".join(part for part in name.split(".") if part != _WRAPPED) if _WRAPPED in name else name


def plain_parameters(module: Module, remove_duplicate: bool = True) -> dict[str, Parameter]:
    """The parameters of `module`, by their plain names."""
    found = module.named_parameters(remove_duplicate=remove_duplicate)
    return {plain_name(module, name) if _WRAPPED in name else name: parameter for name, parameter in found}


def plain_buffers(module: Module) -> dict[str, Tensor]:
    """The buffers of `module`, by their plain names."""
    return {plain_name(module, name) if _WRAPPED in name else name: buffer for name, buffer in module.named_buffers()}


def make_plain(module: Module, state: MutableMapping[str, Any], prefix: str = "") -> None:
    """Give the entries of a state dict their plain names, in place and in their order.

    Args:
        module: Whose state it is.
        state: What its `state_dict` returned.
        prefix: Before the names; entries without it are of other modules.
    """
    if any(_WRAPPED in name for name in state):
        _rename(state, prefix, lambda name: plain_name(module, name))
        described: dict[str, Any] | None = getattr(state, "_metadata", None)  # versions, by the names of the parts
        if described is not None:
            _rename(described, prefix, lambda name: plain_name(module, name))


def fit_names(module: Module, state: MutableMapping[str, Any], prefix: str = "") -> None:
    """Give the entries of a state dict, plain or not, the names that they have in `module`, in place."""
    if any(map(is_compiled, module.modules())) or any(_WRAPPED in name for name in state):
        _rename(state, prefix, lambda name: name_inside(module, name))


def plain_state(module: Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """`module.state_dict(...)`, with plain names."""
    state: dict[str, Any] = module.state_dict(*args, **kwargs)
    make_plain(module, state, kwargs.get("prefix", ""))
    return state


def load_plain_state(module: Module, state: Mapping[str, Any], strict: bool = True, **kwargs: Any) -> Any:
    """`module.load_state_dict(...)`, for plain names and others."""
    named = dict(state)
    fit_names(module, named)
    with printable_names(named):
        # Unless a name differs, what was given: torch keeps versions beside the entries.
        return module.load_state_dict(state if named.keys() == state.keys() else named, strict=strict, **kwargs)


def _path(module: Module, name: str) -> list[tuple[str, bool]]:
    """The parts of a name in `module`, and whether each stands for a wrapper."""
    path: list[tuple[str, bool]] = []
    here: Module | None = module
    for part in name.split("."):
        if part == _WRAPPED and (here is None or part not in here._modules):
            continue  # compiled where it was saved
        while is_compiled(here) and part != _WRAPPED:
            path.append((_WRAPPED, True))
            here = unwrap_compiled(here)
        path.append((part, part == _WRAPPED and is_compiled(here)))
        here = None if here is None else here._modules.get(part)
    return path


def _rename(state: MutableMapping[str, Any], prefix: str, new_name: Callable[[str], str]) -> None:
    entries = list(state.items())
    state.clear()
    for name, value in entries:
        state[prefix + new_name(name.removeprefix(prefix)) if name.startswith(prefix) else name] = value
