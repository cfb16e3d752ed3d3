"""What one call of `self.log` asked for, checked against what the hook allows.

Decides names and kinds only; knows no values. Names per combination: `tests/metrics/facts.yaml`.
"""

import builtins
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fulmen.trainer.errors import ArgumentTypeError, MisconfigurationException

LOADER_SUFFIX = "/dataloader_idx_"


@dataclass(frozen=True, slots=True)
class LogRule:
    """What `self.log` may do in a hook, and what it does when `on_step` and `on_epoch` are left open.

    Args:
        name: How messages call the rule.
        on_step, on_epoch: The defaults in such a hook.
        allow_step, allow_epoch: May the caller ask for it?
    """

    name: str
    on_step: bool
    on_epoch: bool
    allow_step: bool
    allow_epoch: bool

    @property
    def allowed(self) -> bool:
        """May anything be logged?"""
        return self.allow_step or self.allow_epoch


NEVER = LogRule("never", on_step=False, on_epoch=False, allow_step=False, allow_epoch=False)
STEP = LogRule("each step unless told otherwise", on_step=True, on_epoch=False, allow_step=True, allow_epoch=True)
EPOCH = LogRule("once per epoch unless told otherwise", on_step=False, on_epoch=True, allow_step=True, allow_epoch=True)
EPOCH_ONLY = LogRule("once per epoch", on_step=False, on_epoch=True, allow_step=False, allow_epoch=True)

# Functions are accepted under these names because users pass `torch.mean` and `max`.
_REDUCTIONS: dict[Any, str] = {
    "mean": "mean",
    "avg": "mean",
    "sum": "sum",
    "min": "min",
    "max": "max",
    torch.mean: "mean",
    torch.sum: "sum",
    torch.min: "min",
    torch.max: "max",
    builtins.sum: "sum",
    builtins.min: "min",
    builtins.max: "max",
}


@dataclass(frozen=True, slots=True)
class LogCall:
    """One place that logs one name, with every open argument decided.

    Args:
        hook: The hook that runs, such as "training_step".
        name: As the user gave it.
        reduction: "mean", "sum", "min" or "max".
        dataloader_idx: Which loader it belongs to, where there are several and a batch of one is at work.
    """

    hook: str
    name: str
    prog_bar: bool
    logger: bool
    on_step: bool
    on_epoch: bool
    reduction: str
    enable_graph: bool
    sync_dist: bool
    add_dataloader_idx: bool
    dataloader_idx: int | None
    rank_zero_only: bool

    @property
    def forked(self) -> bool:
        """Does the name stand for two values, `_step` and `_epoch`?"""
        return self.on_step and self.on_epoch

    @property
    def plain_name(self) -> str:
        """The name with the loader it belongs to."""
        return self.name + self._loader

    @property
    def step_name(self) -> str:
        """What the value of a step is called."""
        return f"{self.name}_step{self._loader}" if self.forked else self.plain_name

    @property
    def epoch_name(self) -> str:
        """What the value of an epoch is called."""
        return f"{self.name}_epoch{self._loader}" if self.forked else self.plain_name

    @property
    def _loader(self) -> str:
        if self.dataloader_idx is None or not self.add_dataloader_idx:
            return ""
        return f"{LOADER_SUFFIX}{self.dataloader_idx}"


def decide(
    rule: LogRule,
    hook: str,
    name: str,
    *,
    prog_bar: bool,
    logger: bool | None,
    on_step: bool | None,
    on_epoch: bool | None,
    reduce_fx: str | Callable[[Any], Any],
    enable_graph: bool,
    sync_dist: bool,
    add_dataloader_idx: bool,
    dataloader_idx: int | None,
    rank_zero_only: bool,
) -> LogCall:
    """What these arguments of `self.log` mean in this hook.

    Raises:
        ArgumentTypeError: The name is no string.
        MisconfigurationException: The hook, or the arguments among each other, do not allow it.
    """
    _check_name(name)
    where = f"self.log({name!r}, ...)"
    if not rule.allowed:
        raise MisconfigurationException(_not_here(where, hook))
    step = rule.on_step if on_step is None else bool(on_step)
    epoch = rule.on_epoch if on_epoch is None else bool(on_epoch)
    if step and not rule.allow_step:
        raise MisconfigurationException(
            f"self.log({name!r}, ..., on_step=True) was called in `{hook}`."
            f" That hook runs once per epoch, so there is no step whose value it could be."
            f" Leave on_step out, or log from a hook that runs for every batch."
        )
    if not step and not epoch:
        raise MisconfigurationException(
            f"self.log({name!r}, ..., on_step={on_step}, on_epoch={on_epoch}) was called in `{hook}`."
            f" Neither the values of steps nor that of the epoch would be kept (this hook logs {rule.name})."
            f" Set on_step=True or on_epoch=True."
            if rule.allow_step
            else f"self.log({name!r}, ..., on_epoch={on_epoch}) was called in `{hook}`."
            f" That hook runs once per epoch, and its value can only be kept for the epoch."
            f" Leave on_epoch out, or set it to True."
        )
    return LogCall(
        hook=hook,
        name=name,
        prog_bar=bool(prog_bar),
        logger=True if logger is None else bool(logger),
        on_step=step,
        on_epoch=epoch,
        reduction=_reduction(name, reduce_fx),
        enable_graph=bool(enable_graph),
        sync_dist=bool(sync_dist) and not rank_zero_only,
        add_dataloader_idx=bool(add_dataloader_idx),
        dataloader_idx=dataloader_idx,
        rank_zero_only=bool(rank_zero_only),
    )


def decide_arguments(
    rule: LogRule, hook: str, name: str, arguments: tuple[Any, ...], dataloader_idx: int | None
) -> LogCall:
    """As `decide`, for the arguments in the order in which the board compares them."""
    prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph, sync_dist, add_idx, _, rank_zero_only, _ = arguments
    return decide(
        rule,
        hook,
        name,
        prog_bar=prog_bar,
        logger=logger,
        on_step=on_step,
        on_epoch=on_epoch,
        reduce_fx=reduce_fx,
        enable_graph=enable_graph,
        sync_dist=sync_dist,
        add_dataloader_idx=add_idx,
        dataloader_idx=dataloader_idx,
        rank_zero_only=rank_zero_only,
    )


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise ArgumentTypeError(
            f"self.log({name!r}, ...) was called with a {type(name).__name__} as its name."
            f" Metrics are found again by their name, in callbacks and in loggers, so it must be a string."
            f" Pass self.log({str(name)!r}, ...)."
        )
    if LOADER_SUFFIX in name:
        raise MisconfigurationException(
            f"self.log({name!r}, ...) was called with a name that holds {LOADER_SUFFIX!r}."
            f" That ending is added by the trainer where there are several dataloaders, and would be there twice."
            f" Log {name.split(LOADER_SUFFIX)[0]!r}; pass add_dataloader_idx=False to choose the names yourself."
        )


def _not_here(where: str, hook: str) -> str:
    if "predict" in hook:
        why = "Predicting hands back what predict_step returns, and gathers no metrics."
    else:
        why = "No epoch is under way there, so there is no step and no epoch that the value could belong to."
    place = f"in `{hook}`" if hook else "outside of the hooks of a run"
    return (
        f"{where} was called {place}, where it is not allowed. {why}"
        " Log from a hook of training, validation or testing, such as training_step or on_validation_epoch_end;"
        " elsewhere send values to self.logger.log_metrics(...)."
    )


def _reduction(name: str, reduce_fx: object) -> str:
    try:
        return _REDUCTIONS[reduce_fx]
    except (KeyError, TypeError):
        pass
    raise MisconfigurationException(
        f"self.log({name!r}, ..., reduce_fx={reduce_fx!r}) asks for an unknown reduction."
        " The values of an epoch are not kept, so only 'mean', 'sum', 'min' and 'max' can be worked out as they come."
        " Pass one of these, or log a torchmetrics.Metric, which may reduce in any way."
    )


def two_meanings(old: LogCall, new: LogCall) -> str:
    """The message for one name that is logged in two ways in one hook."""
    fields = [field for field in LogCall.__dataclass_fields__ if getattr(old, field) != getattr(new, field)]
    differences = ", ".join(f"{field}={getattr(new, field)!r} after {getattr(old, field)!r}" for field in fields)
    return (
        f"self.log({new.name!r}, ...) was called again in `{new.hook}` with other arguments: {differences}."
        f" One name in one hook is one metric, and is kept in one way."
        f" Use another name, or the same arguments in both calls."
    )


def one_name_for_two_loaders(call: LogCall, twin: LogCall) -> str:
    """The message for one name that would stand for the values of two dataloaders."""
    return (
        f"self.log({call.name!r}, ..., add_dataloader_idx=False) was called in `{call.hook}` for the dataloaders"
        f" {twin.dataloader_idx} and {call.dataloader_idx}. Without the loader's number in it, the name would stand"
        f" for both. Make it unique, such as {f'{call.name}_{call.dataloader_idx}'!r}, or leave add_dataloader_idx out."
    )
