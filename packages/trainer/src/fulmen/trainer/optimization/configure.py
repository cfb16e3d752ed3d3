"""What `configure_optimizers` returned, in one form: a list of optimizers and a list of scheduler configs."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from fulmen.fabric.class_names import class_name
from fulmen.fabric.rank_zero import PossibleUserWarning, warn_once
from fulmen.fabric.types import Optimizable
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.needs import LRSchedulerConfig
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError, MisconfigurationException
from fulmen.trainer.run.context import RunContext
from fulmen.trainer.signature import is_overridden

_FORMS = (
    "an optimizer; a list of optimizers; a pair (list of optimizers, list of schedulers);"
    " a dict with 'optimizer' and perhaps 'lr_scheduler', or a list of such dicts; or None"
)
_OPTIMIZER_KEYS = {"optimizer", "lr_scheduler", "monitor"}
_TIMING_KEYS = {"interval", "frequency", "reduce_on_plateau", "monitor", "strict"}
_SCHEDULER_KEYS = {field.name for field in fields(LRSchedulerConfig)}


class SeveralOptimizersError(MisconfigurationException, RuntimeError):
    """Automatic optimization was asked to step several optimizers."""


def offer_optimizers(run: RunContext) -> None:
    """Tell the strategy how to ask the module of this run for optimizers and schedulers."""
    run.strategy.make_optimizers = partial(_make_optimizers, run)


def set_up_optimizers(run: RunContext) -> None:
    """Let the strategy take optimizers and schedulers from the module, in place of those it has.

    Raises:
        MisconfigurationException: As `configured` does.
    """
    offer_optimizers(run)
    run.strategy.setup_optimizers(run.hooks.trainer)  # type: ignore[arg-type]  # opaque here


def _make_optimizers(run: RunContext) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
    module = run.strategy.lightning_module
    assert module is not None
    with run.hooks.inside("configure_optimizers"):
        returned = module.configure_optimizers()
    optimizers, schedulers = configured(module, returned)
    run.strategy.known_parameters = list(module.parameters())
    _check_parameters(module, optimizers, run.strategy.known_parameters)
    return optimizers, schedulers


def _check_parameters(module: LightningModule, optimizers: list[Optimizer], own: Sequence[nn.Parameter]) -> None:
    """Does every optimizer have something of this module to change?"""
    known = {id(parameter) for parameter in own}
    for optimizer in optimizers:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        name, kind = class_name(module), type(optimizer).__name__
        if parameters and not any(id(parameter) in known for parameter in parameters):
            raise ConfigurationError(
                f"{name}.configure_optimizers() returned {kind} over parameters none of which is {name}'s."
                f" They belong to another model, or to layers that are no attributes of {name}: it would learn nothing."
                " Pass self.parameters(), and keep layers in attributes, ModuleList or ModuleDict."
            )
        if not any(parameter.requires_grad for parameter in parameters):
            warn_once(
                f"{name}.configure_optimizers() returned {kind} over parameters that are all frozen"
                " (requires_grad=False). Its steps change nothing until they are unfrozen."
                " Leave it out, or unfreeze the parameters, if that is not meant.",
                category=PossibleUserWarning,
            )


def configured(module: LightningModule, returned: Any) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
    """The optimizers and scheduler configs in `returned`, checked.

    Args:
        module: The module whose `configure_optimizers` returned it.
        returned: Any of the forms that `configure_optimizers` may return.

    Raises:
        ConfigurationError: If it is none of them, or a scheduler is incomplete.
        SeveralOptimizersError: If automatic optimization would have to step several optimizers.
    """
    optimizers, schedulers, monitor = _split(module, returned)
    configs = [_scheduler_config(module, scheduler, monitor) for scheduler in schedulers]
    _check(module, optimizers, configs)
    return optimizers, configs


def _split(module: LightningModule, returned: Any) -> tuple[list[Optimizer], list[Any], str | None]:
    """Optimizers, raw schedulers, and the monitor that stood beside them."""
    if returned is None:
        warnings.warn(
            f"{class_name(module)}.configure_optimizers() returned None, so this fit runs without an optimizer."
            " Steps are counted, but no parameter is changed. Return an optimizer if that is not what you want.",
            stacklevel=2,
        )
        return [], [], None
    if isinstance(returned, Optimizable):
        return [cast(Optimizer, returned)], [], None
    if isinstance(returned, Mapping):
        return _split_dict(module, returned)
    if isinstance(returned, Sequence) and not isinstance(returned, str) and len(returned):
        if all(isinstance(item, Optimizable) for item in returned):
            return list(returned), [], None
        if all(isinstance(item, Mapping) for item in returned):
            parts = [_split_dict(module, item) for item in returned]
            schedulers = [_with_monitor(scheduler, monitor) for _, found, monitor in parts for scheduler in found]
            return [part[0][0] for part in parts], schedulers, None
        if len(returned) == 2 and isinstance(returned[0], Sequence):
            optimizers, given = list(returned[0]), returned[1]
            schedulers = list(given) if isinstance(given, Sequence) else [given]
            if optimizers and all(isinstance(item, Optimizable) for item in optimizers):
                return optimizers, schedulers, None
    raise ConfigurationError(
        f"{class_name(module)}.configure_optimizers() returned {_shown(returned)}."
        " No optimizer can be read from that. Return " + _FORMS + "."
    )


def _split_dict(module: LightningModule, returned: Mapping[str, Any]) -> tuple[list[Optimizer], list[Any], str | None]:
    optimizer = returned.get("optimizer")
    if not isinstance(optimizer, Optimizable):
        raise ConfigurationError(
            f"{class_name(module)}.configure_optimizers() returned the dict {_shown(returned)},"
            " whose key 'optimizer' holds no torch optimizer. Without one nothing can be stepped."
            " Return {'optimizer': torch.optim.SGD(self.parameters(), lr=0.1)}, for example."
        )
    if unknown := sorted(map(str, set(returned) - _OPTIMIZER_KEYS)):
        warnings.warn(
            f"{class_name(module)}.configure_optimizers() returned a dict with unknown keys {unknown}."
            f" They have no effect. Known are {sorted(_OPTIMIZER_KEYS)}.",
            RuntimeWarning,
            stacklevel=2,
        )
    scheduler = returned.get("lr_scheduler")
    schedulers = [] if scheduler is None else [scheduler]
    return [cast(Optimizer, optimizer)], schedulers, returned.get("monitor")


def _with_monitor(scheduler: Any, monitor: str | None) -> Any:
    """A raw scheduler in dict form, if a monitor stood beside it."""
    if monitor is None:
        return scheduler
    if isinstance(scheduler, Mapping):
        return {"monitor": monitor, **scheduler}
    return {"scheduler": scheduler, "monitor": monitor}


def _scheduler_config(module: LightningModule, scheduler: Any, monitor: str | None) -> LRSchedulerConfig:
    scheduler = _with_monitor(scheduler, monitor)
    if isinstance(scheduler, LRSchedulerConfig):
        config = scheduler
    elif isinstance(scheduler, Mapping):
        config = _from_dict(module, scheduler)
    else:
        config = LRSchedulerConfig(scheduler)
    if not config.reduce_on_plateau:
        config.reduce_on_plateau = isinstance(config.scheduler, ReduceLROnPlateau)
    return config


def _from_dict(module: LightningModule, raw: Mapping[str, Any]) -> LRSchedulerConfig:
    name = class_name(module)
    if "scheduler" not in raw:
        raise ConfigurationError(
            f"{name}.configure_optimizers() returned the scheduler dict {_shown(raw)} without the key 'scheduler'."
            " The other keys only say when it steps. Add the scheduler itself under 'scheduler'."
        )
    unknown = sorted(set(raw) - _SCHEDULER_KEYS)
    if unknown:
        warnings.warn(
            f"The scheduler dict of {name}.configure_optimizers() has unknown keys {unknown}."
            f" They have no effect. Known are {sorted(_SCHEDULER_KEYS)}.",
            RuntimeWarning,
            stacklevel=2,
        )
    idle = sorted(set(raw) & _TIMING_KEYS)
    if idle and not module.automatic_optimization:
        warnings.warn(
            f"The scheduler dict of {name}.configure_optimizers() has the keys {idle}, and optimization is manual."
            " There your own training_step steps the schedulers, so these keys have no effect. Remove them.",
            RuntimeWarning,
            stacklevel=2,
        )
    config = LRSchedulerConfig(**{key: value for key, value in raw.items() if key in _SCHEDULER_KEYS})
    if config.interval not in ("step", "epoch"):
        raise ConfigurationError(
            f"The scheduler dict of {name}.configure_optimizers() says interval={config.interval!r}."
            " A scheduler steps after optimizer steps or after epochs. Write 'step' or 'epoch'."
        )
    if not isinstance(config.frequency, int) or isinstance(config.frequency, bool) or config.frequency < 1:
        raise ConfigurationError(
            f"The scheduler dict of {name}.configure_optimizers() says frequency={config.frequency!r}."
            " It counts intervals between two steps of the scheduler. Write an int of 1 or more."
        )
    if isinstance(config.scheduler, OneCycleLR) and config.interval == "epoch":
        warnings.warn(
            f"{name}.configure_optimizers() steps OneCycleLR once per epoch (interval='epoch')."
            " Its schedule is counted in optimizer steps, so it would hardly move. Write interval='step'.",
            RuntimeWarning,
            stacklevel=2,
        )
    return config


def _check(module: LightningModule, optimizers: list[Optimizer], configs: Iterable[LRSchedulerConfig]) -> None:
    name = class_name(module)
    if len(optimizers) > 1 and module.automatic_optimization:
        raise SeveralOptimizersError(
            f"{name}.configure_optimizers() returned {len(optimizers)} optimizers, and optimization is automatic."
            " In which order, and on which losses, several optimizers step only your code can know."
            " Set `self.automatic_optimization = False` in __init__ and step them in training_step."
        )
    for config in configs:
        scheduler: Any = config.scheduler
        if not (hasattr(scheduler, "state_dict") and hasattr(scheduler, "load_state_dict")):
            raise ArgumentTypeError(
                f"{name}.configure_optimizers() returned a {type(scheduler).__name__} as scheduler."
                " It has no state_dict and load_state_dict, so a run could not be resumed."
                " Return a torch scheduler, or add both methods to yours."
            )
        if config.reduce_on_plateau and config.monitor is None and module.automatic_optimization:
            raise ConfigurationError(
                f"{name}.configure_optimizers() returned {type(scheduler).__name__} without a monitor."
                " It steps by the value of a logged metric. Return {'scheduler': ..., 'monitor': 'val_loss'}, for"
                " example."
            )
        is_torch = isinstance(scheduler, (LRScheduler, ReduceLROnPlateau))
        if not is_torch and module.automatic_optimization and not is_overridden("lr_scheduler_step", module):
            raise ConfigurationError(
                f"{name}.configure_optimizers() returned a {type(scheduler).__name__}, which is no torch scheduler."
                " How it steps is not known. Override `lr_scheduler_step(self, scheduler, metric)` in your module."
            )
        owner = getattr(scheduler, "optimizer", None)
        if owner is not None and not any(owner is optimizer for optimizer in optimizers):
            raise ConfigurationError(
                f"{name}.configure_optimizers() returned a {type(scheduler).__name__} over an optimizer that it did not"
                " return. It would change the learning rate of an optimizer that never steps."
                " Return that optimizer too, or build the scheduler over one that is returned."
            )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
