"""Optimizers and schedulers named on the command line: their types, and how a model comes to use them."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any, Union

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fulmen.cli.instantiate import instantiate_class
from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.trainer.core.module import LightningModule

AUTOMATIC = "AUTOMATIC"


class ReduceLROnPlateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """torch's scheduler, with the name of the metric that it watches.

    Args:
        optimizer: Whose learning rate it lowers.
        monitor: Name of a logged metric.
        args, kwargs: As torch's.
    """

    def __init__(self, optimizer: Optimizer, monitor: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(optimizer, *args, **kwargs)
        self.monitor = monitor


# Unions of `typing` rather than `|`: these are public names that programs take apart with `__args__`.
LRSchedulerTypeTuple = (LRScheduler, ReduceLROnPlateau)
LRSchedulerTypeUnion = Union[LRScheduler, ReduceLROnPlateau]  # noqa: UP007
LRSchedulerType = Union[type[LRScheduler], type[ReduceLROnPlateau]]  # noqa: UP007
OptimizerCallable = Callable[[Iterable], Optimizer]  # type: ignore[type-arg]  # of parameters or of groups of them
LRSchedulerCallable = Callable[[Optimizer], LRSchedulerTypeUnion]

Chosen = Mapping[str, tuple[Any, str]]  # key in the parser: class or classes, and what it is linked to


def class_with_arguments(class_type: type, arguments: Any) -> dict[str, Any]:
    """What `instantiate_class` takes, for a class that is fixed.

    >>> class_with_arguments(torch.optim.SGD, {"lr": 0.1})
    {'class_path': 'torch.optim.sgd.SGD', 'init_args': {'lr': 0.1}}
    """
    init_args = arguments.as_dict() if hasattr(arguments, "as_dict") else dict(arguments)
    return {"class_path": f"{class_type.__module__}.{class_type.__qualname__}", "init_args": init_args}


def as_description(chosen: Any, given: Any) -> Any:
    """The description of the object to build from what was parsed; None if nothing was chosen.

    Args:
        chosen: The class, or several from which the user selects one.
        given: What was parsed: arguments, or a class path with arguments.
    """
    if given is None or isinstance(chosen, tuple):
        return given
    return class_with_arguments(chosen, given)


def automatic(chosen: Chosen, what: str) -> str | None:
    """The one key that nothing is linked to; None if there is none.

    Raises:
        ConfigurationError: If there are several.
    """
    keys = [key for key, (_, link_to) in chosen.items() if link_to == AUTOMATIC]
    if len(keys) > 1:
        raise ConfigurationError(
            f"The parser has {len(keys)} groups of arguments for the {what}: {', '.join(keys)}. A model that is"
            " configured by the command line has one of each. Link the others to arguments of the model with link_to,"
            " and write configure_optimizers in the model."
        )
    return keys[0] if keys else None


def use_in(
    module: LightningModule,
    optimizer: Any,
    scheduler: Any,
    configure: Callable[..., Any],
) -> None:
    """Let the module train with what was named on the command line.

    Args:
        module: Its `configure_optimizers` is replaced.
        optimizer: A description, see `as_description`.
        scheduler: The same, or None.
        configure: Puts both together, as `LightningCLI.configure_optimizers`.
    """
    if type(module).configure_optimizers is not LightningModule.configure_optimizers:
        rank_zero_warn(
            f"{class_name(module)}.configure_optimizers of the model will be replaced. The command line names an"
            " optimizer, and that wins. Leave it out to train with the model's own."
        )

    def configure_optimizers(self: LightningModule) -> Any:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        made = instantiate_class(parameters, optimizer)
        return configure(self, made, instantiate_class(made, scheduler) if scheduler is not None else None)

    # Only this object: other models of the class keep theirs. It wraps nothing, or it would count as not overridden.
    module.configure_optimizers = MethodType(configure_optimizers, module)  # type: ignore[method-assign]


def refuse_scheduler_alone(key: str, scheduler: Any) -> None:
    """A learning rate scheduler that was named without an optimizer.

    Raises:
        ConfigurationError: Unless it is None.
    """
    if scheduler is not None:
        name = str(scheduler["class_path"]).rpartition(".")[2]
        raise ConfigurationError(
            f"--{key} names {name}, and there is no optimizer whose learning rate it could set. It goes with one that"
            " the command line names; a model's own configure_optimizers brings schedulers of its own."
            f" Name the optimizer too, as --optimizer Adam, or leave --{key} out."
        )


def put_together(optimizer: Optimizer, scheduler: Any = None) -> Any:
    """One optimizer and its scheduler, in the form in which `configure_optimizers` returns them."""
    if scheduler is None:
        return optimizer
    if isinstance(scheduler, ReduceLROnPlateau):
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor}}
    return [optimizer], [scheduler]


def classes_of(given: Any, base: Any, what: str) -> Any:
    """`given`, if it is a class or a tuple of classes derived from `base`.

    Raises:
        ConfigurationError: Otherwise.
    """
    for one in given if isinstance(given, tuple) else (given,):
        if not (inspect.isclass(one) and issubclass(one, base)):
            raise ConfigurationError(
                f"{one!r} cannot be the {what} of a command line. Arguments are read from a class, and it must be one"
                f" of torch's. Pass a class of {what}s, or a tuple of such classes."
            )
    return given
