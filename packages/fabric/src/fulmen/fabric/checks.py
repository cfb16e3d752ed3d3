"""What Fabric's methods refuse at once: arguments that would fail later, deep inside, or never be noticed."""

from __future__ import annotations

import inspect
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.fabric.arguments import check_flag
from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_warn


def check_callbacks(callbacks: Iterable[Any], caller: str) -> None:
    """Raises ArgumentTypeError for what has no methods of a callback: a class, a number, a text."""
    for callback in callbacks:
        if isinstance(callback, str | bytes | int | float):
            raise ArgumentTypeError(
                f"{caller}(callbacks=...) got {callback!r}, a {type(callback).__name__}. `fabric.call` calls methods of"
                " callbacks by their names. Pass objects with such methods, as in `callbacks=[MyCallback()]`."
            )
        if inspect.isclass(callback):
            name = callback.__name__
            raise ArgumentTypeError(
                f"{caller}(callbacks=...) got the class {name}. Its methods would be called without an object."
                f" Pass an object, as in `callbacks={name}()`."
            )


def check_loggers(loggers: Iterable[Any], caller: str) -> None:
    """Raises ArgumentTypeError for what cannot take metrics."""
    for logger in loggers:
        if inspect.isclass(logger) or not callable(getattr(logger, "log_metrics", None)):
            raise ArgumentTypeError(
                f"{caller}(loggers=...) got {logger!r}. Metrics go to `log_metrics` of each logger, and this has none."
                " Pass logger objects, as in `loggers=CSVLogger('logs')`."
            )


def check_launchable(function: object) -> None:
    """Raises ArgumentTypeError for what `fabric.launch` cannot call with a Fabric."""
    if not callable(function):
        raise ArgumentTypeError(
            f"fabric.launch({function!r}) got a {type(function).__name__}. It needs a function to call."
            " Pass the function itself, as in `fabric.launch(train)`, not what it returns."
        )
    if not _takes_an_argument(function):
        raise ArgumentTypeError(
            f"fabric.launch({getattr(function, '__name__', function)}) got a function without parameters."
            " It is called with the Fabric object first. Write `def train(fabric): ...`."
        )


def _takes_an_argument(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions written in C do not say
        return True
    return any(one.kind is not one.KEYWORD_ONLY and one.kind is not one.VAR_KEYWORD for one in parameters)


def check_path(path: object, method: str) -> None:
    """Raises ArgumentTypeError for what is no path."""
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(
            f"fabric.{method}({path!r}, ...) got a {type(path).__name__}. The path comes first."
            f" Pass a str or a Path, as in `fabric.{method}('model.ckpt', ...)`."
        )


def check_state(state: object, method: str) -> None:
    """Raises ArgumentTypeError for a state without names."""
    if not isinstance(state, dict):
        hint = " A bare state dict is loaded by `fabric.load_raw(path, model)`." if method == "load" else ""
        raise ArgumentTypeError(
            f"fabric.{method}(state={type(state).__name__}(...)) got no dictionary. A file holds values by their names."
            f" Pass a dict, as in {{'model': model}}.{hint}"
        )


def check_raw(obj: object) -> None:
    """Raises ArgumentTypeError for what a bare state dict cannot be loaded into."""
    if not isinstance(obj, nn.Module | Optimizer):
        raise ArgumentTypeError(
            f"fabric.load_raw(obj={type(obj).__name__}(...)) got neither a module nor an optimizer."
            " The file holds the state of one of them. Pass it alone; for several, `fabric.load` takes a dictionary."
        )


def check_clipping(module: object, optimizer: object, clip_val: Any, max_norm: Any, norm_type: Any) -> None:
    """Raises ConfigurationError or ArgumentTypeError unless it is clear what to clip, and how."""
    given = f"fabric.clip_gradients(clip_val={clip_val!r}, max_norm={max_norm!r})"
    if (clip_val is None) == (max_norm is None):
        raise ConfigurationError(
            f"{given} does not say how to clip. `clip_val` limits each value and `max_norm` their norm."
            " Pass one of them."
        )
    limit = max_norm if clip_val is None else clip_val
    if not isinstance(limit, int | float) or isinstance(limit, bool) or math.isnan(limit) or limit < 0:
        raise ConfigurationError(
            f"{given} is no limit. Gradients are brought to this size or below. Pass a number that is not negative."
        )
    if not isinstance(norm_type, int | float) or isinstance(norm_type, bool) or not norm_type > 0:
        raise ConfigurationError(
            f"fabric.clip_gradients(norm_type={norm_type!r}) is no norm. Its type is a positive number."
            " Pass 2 for the Euclidean norm, or float('inf') for the largest absolute value."
        )
    if not isinstance(module, nn.Module) or not hasattr(optimizer, "param_groups"):
        raise ArgumentTypeError(
            f"fabric.clip_gradients({class_name(module)}, {type(optimizer).__name__}, ...) got something else than"
            " a module and an optimizer. Clipped are the gradients of the parameters that the optimizer steps."
            " Pass the module first and the optimizer second."
        )


def check_source(src: object, world_size: int) -> None:
    """Raises ConfigurationError for a rank that does not exist."""
    if not isinstance(src, int) or not 0 <= src < world_size:
        raise ConfigurationError(
            f"fabric.broadcast(src={src!r}) names no process. There are {world_size}, with ranks from 0."
            f" Pass a rank from 0 to {world_size - 1}."
        )


def check_load_flags(method: str, strict: object, weights_only: object) -> None:
    """Raises ArgumentTypeError for flags that are no bool."""
    check_flag(f"fabric.{method}", "strict", strict)
    if weights_only is not None:
        check_flag(f"fabric.{method}", "weights_only", weights_only)


def check_metric_name(name: object) -> None:
    """Raises ArgumentTypeError for the name of a metric that is none."""
    if not isinstance(name, str):
        raise ArgumentTypeError(
            f"fabric.log({name!r}, ...) got a {type(name).__name__}. Loggers file a metric under its name."
            " Pass the name first, as in `fabric.log('loss', 0.5)`."
        )


def check_metrics(metrics: object, step: Any) -> None:
    """Raises ArgumentTypeError for metrics without names, and for a step that is no integer."""
    if step is not None and not isinstance(step, int):
        try:
            operator.index(step)  # of numpy, or a tensor
        except (TypeError, RuntimeError, ValueError) as error:
            raise ArgumentTypeError(
                f"fabric.log_dict(step={step!r}) got a {type(step).__name__}. Loggers order metrics by their step."
                " Pass an int, or leave it out."
            ) from error
    if not isinstance(metrics, Mapping) or not all(isinstance(name, str) for name in metrics):
        raise ArgumentTypeError(
            f"fabric.log_dict({metrics!r}) got no metrics by their names. Loggers file each under its name, a str."
            " Pass a dict, as in {'loss': 0.5}, or call `fabric.log('loss', 0.5)`."
        )


def check_differentiable(tensor: Tensor) -> None:
    """Raises ConfigurationError for a tensor that no parameter had a part in."""
    if not tensor.requires_grad:
        raise ConfigurationError(
            f"fabric.backward(loss) got a tensor without gradients (shape {list(tensor.shape)}). Nothing that requires"
            " gradients had a part in it. Check that it was not made from `.item()`, `.detach()` or under"
            " `torch.no_grad()`, and that the parameters require gradients."
        )


def warn_about_strangers(module: nn.Module, optimizers: Iterable[Any]) -> None:
    """Warn about optimizers that step nothing of the module: most often they were built for a copy of it."""
    own = {id(parameter) for parameter in module.parameters()}
    for optimizer in optimizers:
        groups = getattr(optimizer, "param_groups", None) or ()
        stepped = [parameter for group in groups for parameter in group["params"]]
        if own and stepped and not any(id(parameter) in own for parameter in stepped):
            rank_zero_warn(
                f"fabric.setup({class_name(module)}(...), {type(optimizer).__name__}(...)) got an optimizer that"
                " steps no parameter of this module. It was built for another module, or for a copy of this one."
                " Build it from `module.parameters()`."
            )


def check_hook_name(name: object, callbacks: Iterable[Any]) -> None:
    """Refuse the name of a hook that no callback has, while one of them has nearly the same.

    Raises:
        ArgumentTypeError: It is no name.
        ConfigurationError: It differs from a method of a callback by one letter.
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(
            f"fabric.call({name!r}) got a {type(name).__name__}. It calls a method of every callback by its name."
            " Pass the name, as in `fabric.call('on_epoch_end')`."
        )
    for callback in callbacks:
        near = next((one for one in dir(callback) if not one.startswith("__") and _is_one_letter_off(one, name)), None)
        if near is not None and callable(getattr(callback, near, None)):
            raise ConfigurationError(
                f"fabric.call({name!r}) calls no method of any callback. {type(callback).__name__} has {near!r}."
                f" Write fabric.call({near!r}), or rename the method."
            )


def _is_one_letter_off(one: str, other: str) -> bool:
    """Is it the other name with one letter more, less, changed, or swapped with its neighbour? No digit is one."""
    if abs(len(one) - len(other)) > 1 or re.sub(r"\d", "", one) == re.sub(r"\d", "", other):
        return False
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    rest, other_rest = one[start:], other[start:]
    return (
        rest[1:] == other_rest[1:]
        or rest[1:] == other_rest
        or rest == other_rest[1:]
        or (rest[:2] == other_rest[1::-1] and rest[2:] == other_rest[2:])
    )
