"""LightningArgumentParser: classes to arguments."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar, get_type_hints

import torch
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]  # __all__ is made at run time
from jsonargparse.typing import class_from_function

from fulmen.cli.explain import explain
from fulmen.cli.instantiate import CLASS_PATH_KEY, HyperparametersGiver
from fulmen.cli.optimizers import (
    AUTOMATIC,
    LRSchedulerType,
    LRSchedulerTypeTuple,
    class_with_arguments,
    classes_of,
)
from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.trainer import Trainer

ModuleT = TypeVar("ModuleT")

_BUILDS = (Trainer, LightningModule, LightningDataModule, Callback)
# Their classes can be given by their bare names.
_FACES = (
    "fulmen.trainer.callbacks",
    "fulmen.trainer.loggers",
    "fulmen.trainer.profilers",
    "fulmen.trainer.strategies",
    "fulmen.fabric.accelerators",
    "fulmen.fabric.checkpoint_io",
    "fulmen.fabric.environments",
    "fulmen.fabric.precision",
)


class LightningArgumentParser(ArgumentParser):
    """jsonargparse's parser, which also takes the arguments of a trainer, a module, a datamodule, a callback.

    Args:
        args, kwargs: As for `jsonargparse.ArgumentParser`.
        description: Stands over the help.
        env_prefix: The names of environment variables begin with it.
        default_env: Read environment variables?
    """

    def __init__(
        self,
        *args: Any,
        description: str = "Train, validate, test and predict with a LightningModule",
        env_prefix: str = "FULMEN",
        default_env: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("dump_header", [f"fulmen.trainer=={_version()}"])
        super().__init__(*args, description=description, env_prefix=env_prefix, default_env=default_env, **kwargs)
        self.callback_keys: list[str] = []
        self.optimizers: dict[str, tuple[Any, str]] = {}
        self.lr_schedulers: dict[str, tuple[Any, str]] = {}
        self.method_arguments: list[str] = []

    def add_config_argument(self) -> None:
        """The option `--config`, to be given any number of times; later ones win."""
        self.add_argument(
            "-c", "--config", action=ActionConfigFile, help="A YAML file with arguments; later arguments win over it."
        )

    def add_lightning_class_args(
        self,
        lightning_class: Any,
        nested_key: str,
        subclass_mode: bool = False,
        required: bool = True,
    ) -> list[str]:
        """Add the arguments of a class, or of a function that returns an object of one, below `nested_key`.

        Args:
            lightning_class: Derived from Trainer, LightningModule, LightningDataModule or Callback; or the function.
            nested_key: Where its arguments lie: "model" for `--model.width`.
            subclass_mode: Let the user choose any subclass, by `class_path`.
            required: In subclass mode: must one be chosen?

        Returns:
            The names of the arguments.

        Raises:
            ConfigurationError: For any other class, or a function that does not say what it returns.
        """
        returned = lightning_class if inspect.isclass(lightning_class) else returned_class(lightning_class)
        if not (inspect.isclass(returned) and issubclass(returned, _BUILDS)):
            raise ConfigurationError(
                f"add_lightning_class_args({lightning_class!r}) cannot become arguments. They are read from a Trainer,"
                " a LightningModule, a LightningDataModule or a Callback. Pass such a class, or a function whose return"
                " type is one: def make(width: int) -> MyModel."
            )
        if issubclass(returned, Callback):
            self.callback_keys.append(nested_key)
        if issubclass(returned, Trainer):
            _import_choices()
        if subclass_mode:
            self.add_subclass_arguments(returned, nested_key, fail_untyped=False, required=required)
            return []
        source = lightning_class if inspect.isclass(lightning_class) else class_from_function(lightning_class, returned)
        added: list[str] = self.add_class_arguments(
            source,
            nested_key,
            fail_untyped=False,
            # The trainer comes last, when its callbacks are known.
            instantiate=not issubclass(returned, Trainer),
            sub_configs=True,
        )
        return added

    def add_optimizer_args(
        self,
        optimizer_class: Any = (torch.optim.Optimizer,),
        nested_key: str = "optimizer",
        link_to: str = AUTOMATIC,
    ) -> None:
        """Add the arguments of an optimizer.

        Args:
            optimizer_class: A class; or a tuple of them, of which (or of whose subclasses) the user chooses one.
            nested_key: Where its arguments lie.
            link_to: An argument of the model, as "model.optimizer_init", that takes the description of the optimizer
                for `instantiate_class`. By default the model's `configure_optimizers` is replaced.
        """
        classes_of(optimizer_class, torch.optim.Optimizer, "optimizer")
        self._add_chosen(optimizer_class, nested_key, skip="params")
        self.optimizers[nested_key] = (optimizer_class, link_to)

    def add_lr_scheduler_args(
        self,
        lr_scheduler_class: LRSchedulerType | tuple[LRSchedulerType, ...] = LRSchedulerTypeTuple,
        nested_key: str = "lr_scheduler",
        link_to: str = AUTOMATIC,
    ) -> None:
        """Add the arguments of a learning rate scheduler; as `add_optimizer_args`."""
        classes_of(lr_scheduler_class, LRSchedulerTypeTuple, "learning rate scheduler")
        self._add_chosen(lr_scheduler_class, nested_key, skip="optimizer")
        self.lr_schedulers[nested_key] = (lr_scheduler_class, link_to)

    def link_chosen(self) -> None:
        """Hand optimizers and schedulers that are linked on to the arguments they are linked to."""
        for key, (classes, link_to) in {**self.optimizers, **self.lr_schedulers}.items():
            if link_to == AUTOMATIC:
                continue
            if isinstance(classes, tuple):
                self.link_arguments(key, link_to)
            else:
                self.link_arguments(key, link_to, compute_fn=_Describe(classes))

    def _add_chosen(self, classes: Any, nested_key: str, skip: str) -> None:
        options: dict[str, Any] = {"instantiate": False, "fail_untyped": False, "skip": {skip}}
        if isinstance(classes, tuple):
            self.add_subclass_arguments(classes, nested_key, required=False, **options)
        else:
            self.add_class_arguments(classes, nested_key, sub_configs=True, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Explain to a person what is wrong with the arguments, and end with exit code 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        explain(self, message, ex)


class _Describe:
    """For a link: arguments to the description of an object."""

    def __init__(self, class_type: type) -> None:
        self.class_type = class_type

    def __call__(self, arguments: Any) -> dict[str, Any]:
        return class_with_arguments(self.class_type, arguments)


def instantiate_module(class_type: type[ModuleT], config: Mapping[str, Any]) -> ModuleT:
    """A module or datamodule from hyperparameters that a command line stored.

    What they describe by a class path is built too, so they must come from a file that you trust; and
    `load_from_checkpoint` never calls this by itself.

    Args:
        class_type: The class, or the base of the class that the hyperparameters name.
        config: The hyperparameters, as in a checkpoint.
    """
    given = {key: value for key, value in config.items() if key != "_instantiator"}
    class_path = given.pop(CLASS_PATH_KEY, None)
    parser = LightningArgumentParser(exit_on_error=False)
    if class_path is None:
        parser.add_lightning_class_args(class_type, "module", subclass_mode=False)
        described: dict[str, Any] = {"module": given}
    else:
        parser.add_lightning_class_args(class_type, "module", subclass_mode=True)
        described = {"module": {"class_path": class_path, "init_args": given}}
    giver = HyperparametersGiver(described["module"])
    made = parser.instantiate(parser.parse_object(described), instantiators=[(giver, class_type, True)])
    module: ModuleT = made["module"]
    return module


def returned_class(function: Callable[..., Any]) -> Any:
    """What `function` says it returns; None if it does not say."""
    try:
        return get_type_hints(function).get("return")
    except (NameError, TypeError):
        return None


def _import_choices() -> None:
    for face_name in _FACES:
        face = importlib.import_module(face_name)
        for name in face.__all__:
            getattr(face, name)


def _version() -> str:
    return str(importlib.import_module("fulmen.trainer").__version__)
