"""What prunes: a name of torch, a pruning method, or a function of the user's own."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.nn.utils import prune

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError

_LOCAL: dict[str, Callable[..., Any]] = {
    "l1_unstructured": prune.l1_unstructured,
    "ln_structured": prune.ln_structured,
    "random_structured": prune.random_structured,
    "random_unstructured": prune.random_unstructured,
}
_GLOBAL: dict[str, type[prune.BasePruningMethod]] = {
    "l1_unstructured": prune.L1Unstructured,
    "random_unstructured": prune.RandomUnstructured,
}


def choose_method(
    pruning_fn: Callable[..., Any] | str, *, is_global: bool, dim: int | None, norm: int | None
) -> Callable[..., Any]:
    """What prunes one layer, `f(layer, name, amount=...)`; with `is_global`, the class that prunes all together.

    Raises:
        ConfigurationError: For what is unknown, or does not go with the other arguments.
    """
    if isinstance(pruning_fn, str):
        return _named(pruning_fn, is_global=is_global, dim=dim, norm=norm)
    if inspect.isclass(pruning_fn) and issubclass(pruning_fn, prune.BasePruningMethod):
        if not is_global:
            return pruning_fn.apply
        if getattr(pruning_fn, "PRUNING_TYPE", None) != "unstructured":
            raise _not_global(pruning_fn.__name__)
        return pruning_fn
    if not callable(pruning_fn):
        raise ArgumentTypeError(
            f"ModelPruning(pruning_fn={pruning_fn!r}) is a {type(pruning_fn).__name__}. What prunes is a name, a"
            f" subclass of torch.nn.utils.prune.BasePruningMethod, or a function. Pass one of {_names()}."
        )
    if is_global:
        raise ConfigurationError(
            f"ModelPruning(pruning_fn={getattr(pruning_fn, '__name__', pruning_fn)}) is a function, which prunes one"
            " layer at a time. use_global_unstructured=True (the default) prunes all layers together. Pass"
            " use_global_unstructured=False, or a subclass of torch.nn.utils.prune.BasePruningMethod."
        )
    return pruning_fn


def _named(name: str, *, is_global: bool, dim: int | None, norm: int | None) -> Callable[..., Any]:
    if name not in _LOCAL:
        raise ConfigurationError(
            f"ModelPruning(pruning_fn={name!r}) is unknown. torch.nn.utils.prune has no pruning function of that name."
            f" Pass one of {_names()}, a subclass of BasePruningMethod, or a function."
        )
    further: dict[str, Any] = {}
    if name.endswith("_structured"):
        if dim is None:
            raise ConfigurationError(
                f"ModelPruning({name!r}) lacks pruning_dim. Structured pruning takes out whole slices along one"
                " dimension of a weight. Pass pruning_dim=0 for output channels, or the dimension that you mean."
            )
        further["dim"] = dim
        if name == "ln_structured":
            if norm is None:
                raise ConfigurationError(
                    "ModelPruning('ln_structured') lacks pruning_norm. It compares slices by a norm."
                    " Pass pruning_norm=2, or another n."
                )
            further["n"] = norm
    if not is_global:
        return partial(_LOCAL[name], **further)
    if name not in _GLOBAL:
        raise _not_global(name)
    return _GLOBAL[name]


def apply_to_all(
    method: Callable[..., Any], places: Sequence[tuple[nn.Module, str]], amount: int | float, *, is_global: bool
) -> None:
    """Prune these parameters, all together or one by one."""
    if is_global:
        prune.global_unstructured(places, pruning_method=method, amount=amount)
    else:
        for layer, name in places:
            method(layer, name=name, amount=amount)


def _names() -> str:
    return ", ".join(map(repr, _LOCAL))


def _not_global(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"ModelPruning({name!r}, use_global_unstructured=True) cannot be. Structured methods look at one layer, and"
        " global pruning compares single weights of all. Pass use_global_unstructured=False, or an unstructured method."
    )
