"""LightningArgumentParser: classes to arguments."""

import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NoReturn, TypeVar, get_type_hints

import torch
from jsonargparse import (  # type: ignore[attr-defined]  # __all__ is made at run time
    ActionConfigFile,
    ArgumentParser,
    Namespace,
    set_dumper,
    set_parsing_settings,
)
from jsonargparse.typing import class_from_function

from fulmen.cli.allowed import check_classes, given_values
from fulmen.cli.complaints import Complaint, Kind, RefusedValueError
from fulmen.cli.config_files import has_reference, is_too_long_a_number, key_set_twice
from fulmen.cli.environment import Setting, settings_in
from fulmen.cli.explain import explain
from fulmen.cli.help import help_text
from fulmen.cli.instantiate import CLASS_PATH_KEY, HyperparametersGiver
from fulmen.cli.optimizers import (
    AUTOMATIC,
    LRSchedulerType,
    LRSchedulerTypeTuple,
    as_description,
    classes_of,
)
from fulmen.cli.written import as_yaml
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.lazy_face import import_behind
from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.trainer import Trainer

ModuleT = TypeVar("ModuleT")

_TOO_LONG = "a number with more digits than Python reads; in quotes it is a text"
_PRINT_CONFIG = "--print_config"
_INTERPOLATING = "omegaconf+"
_FORMAT = "fulmen"  # our way of writing, in jsonargparse's table
# ${trainer.max_epochs}: all of it, and its first part.
_REFERENCE = re.compile(r"(?<!\\)\$\{(([A-Za-z_]\w*)[\w.\[\]]*)\}")

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

    It builds only what types ask for: jsonargparse is told, for the whole process, to build nothing for an argument
    without a type, and to import nothing from its list of modules that run programs or touch files. Both can be changed
    after the first parser was made, with `jsonargparse.set_parsing_settings`.

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
        _tell_jsonargparse()
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("dump_header", [f"fulmen.trainer=={_version()}"])
        # Interpolation is switched on for a program whose arguments have one: loading omegaconf takes a while.
        self._may_interpolate = "parser_mode" not in kwargs
        super().__init__(*args, description=description, env_prefix=env_prefix, default_env=default_env, **kwargs)
        self.callback_keys: list[str] = []
        self.optimizers: dict[str, tuple[Any, str]] = {}
        self.lr_schedulers: dict[str, tuple[Any, str]] = {}
        self.method_arguments: list[str] = []
        # For explanations: what is set from where, and what else there is.
        self.settings: list[Setting] = []
        self.further_commands: tuple[str, ...] = ()
        self.model_of_checkpoint: str | None = None
        self.epilogue: str = ""
        # Set for the parser of a program; jsonargparse makes parsers of this class for the arguments of classes too.
        self.variable_prefix: str | None = None
        self._is_of_program = False

    def add_config_argument(self) -> None:
        """The option `--config`, to be given any number of times; later ones win."""
        self._is_of_program = True
        self.add_argument(
            "-c", "--config", action=ActionConfigFile, help="A YAML file with arguments; later arguments win over it."
        )

    def parse_args(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        namespace: Namespace | None = None,
        env: bool | None = None,
        defaults: bool = True,
        **kwargs: Any,
    ) -> Namespace:
        """Parse arguments; as jsonargparse's, after a look at the classes that they name.

        Args:
            args: The arguments; None: those of the program.
            namespace: Values to begin with.
            env: Read environment variables as jsonargparse does? None: as the parser was told.
            defaults: Fill up with defaults?
            kwargs: For jsonargparse.
        """
        given: Any = sys.argv[1:] if args is None else args
        if self._is_of_program and all(isinstance(argument, str) for argument in given):
            if self._may_interpolate and has_reference([*given, *self._variable_values()]):
                self._interpolate()
            given = self._with_variables(list(given), namespace)
            self._prepare(given)
        with self._explained():
            return super().parse_args(given, namespace, env, defaults, **kwargs)

    def parse_object(self, obj: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parse a dict; as jsonargparse's, after a look at the classes that it names."""
        if self._is_of_program and isinstance(obj, (dict, Namespace)):
            if self._may_interpolate and "${" in str(obj):
                self._interpolate()
            self._check_classes(obj.items())
        with self._explained():
            parsed: Namespace = super().parse_object(obj, *args, **kwargs)
            return parsed

    def dump(self, namespace: Namespace, format: str = "parser_mode", **kwargs: Any) -> str:
        """The configuration as text; as jsonargparse's, but every text in it is read back as that text."""
        is_yaml = format == "yaml" or (format == "parser_mode" and self.parser_mode in ("yaml", _INTERPOLATING))
        if not is_yaml or kwargs.get("with_comments"):
            return str(super().dump(namespace, format, **kwargs))
        header = "".join(f"# {line}\n" for line in self.dump_header or ())
        return f"{header}{super().dump(namespace, _FORMAT, **kwargs)}"

    def given(self, args: Sequence[str], namespace: Namespace | None = None) -> Namespace:
        """What the arguments say, and no defaults; `--print_config` prints nothing."""
        wanted = [argument for argument in args if not argument.startswith(_PRINT_CONFIG)]
        found = self.parse_args(wanted, namespace, defaults=False, _skip_validation=True)
        bare: Namespace = found.clone(with_meta=False)
        return bare

    def format_help(self, formatter: Any = None) -> str:
        """The help, for a terminal; with a formatter, as jsonargparse makes it."""
        return help_text(self) if formatter is None else str(super().format_help(formatter))

    def print_help(self, file: Any = None) -> None:
        """Print the help, from rank zero."""
        if rank_zero_only.rank == 0:
            super().print_help(file)

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
            self.link_arguments(key, link_to, compute_fn=_Describe(classes))

    def _with_variables(self, arguments: list[str], begun: Namespace | None) -> list[str]:
        """The arguments, after those from the environment."""
        if self._subcommands_action is not None:
            return arguments
        if self.variable_prefix is None:
            return [self._anchored(argument) for argument in arguments]
        options = [action.dest for action in self._actions if action.option_strings]
        found = settings_in(
            os.environ, options, prefix=self.variable_prefix, subcommand=getattr(self, "subcommand", None)
        )
        # A config above the subcommand has been read already, and wins; a default config file does not.
        if found and begun is not None:
            above = getattr(self, "parent_parser", self).get_defaults(skip_validation=True)
            default = above.get(getattr(self, "subcommand", "")) or Namespace()  # type: ignore[no-untyped-call]
            found = [one for one in found if begun.get(one.option) in (None, default.get(one.option))]
        classes = self._classes_for(found, options, arguments, begun)
        self.settings = found
        from_environment = [*classes, *(setting.argument for setting in found)]
        return [self._anchored(argument) for argument in (*from_environment, *arguments)]

    def _classes_for(
        self, settings: Sequence[Setting], options: Sequence[str], arguments: list[str], begun: Namespace | None
    ) -> list[str]:
        """FULMEN_MODEL__WIDTH is an argument of the class that the command line names: that class has to come first."""
        inner = {setting.option.partition(".")[0] for setting in settings if setting.option not in options}
        inner -= {setting.option for setting in settings}
        if not inner.intersection(options):
            return []
        prefix, self.variable_prefix = self.variable_prefix, None
        try:
            files = [setting.argument for setting in settings if setting.option == "config"]
            given = self.given([*files, *arguments], begun)
        finally:
            self.variable_prefix = prefix
        chosen = {key: given.get(f"{key}.class_path") for key in inner}
        return [f"--{key}={class_path}" for key, class_path in chosen.items() if class_path]

    def _anchored(self, argument: str) -> str:
        """References of an argument from the level of the subcommand, as in its config files."""
        if self.parser_mode != _INTERPOLATING or "${" not in argument:
            return argument
        section = getattr(self, "subcommand", None)
        above = f"{section}." if section else ""
        keys = {action.dest.partition(".")[0] for action in self._actions}
        # The space: what is written without one, jsonargparse takes as relative to the argument itself.
        return _REFERENCE.sub(lambda found: f"${{ {above}{found[1]}}}" if found[2] in keys else found[0], argument)

    def _prepare(self, arguments: list[str]) -> None:
        if rank_zero_only.rank != 0 and any(argument.startswith((_PRINT_CONFIG, "--help")) for argument in arguments):
            sys.exit(0)  # rank zero prints
        if any("://" in argument for argument in arguments) and is_installed("fsspec"):
            set_parsing_settings(config_read_mode_fsspec_enabled=True)
        try:
            twice = key_set_twice(arguments)
        except RecursionError as error:
            self.error(f"The config file {error} is nested too deeply to be read, in itself or by its anchors", error)
        except OverflowError as error:
            self.error(f"The config file {error} has {_TOO_LONG}", error)
        for option, value in pairwise(["", *(part for one in arguments for part in one.split("=", 1))]):
            if is_too_long_a_number(value):
                self.error(f"{option or 'An argument'} is {_TOO_LONG}")
        if twice is not None:
            path, key, *lines = twice
            again = Complaint(Kind.SET_TWICE, f"{key} is set twice", (key,), path, wanted=tuple(map(str, lines)))
            self.error(again.text, RefusedValueError(again))
        if self._subcommands_action is None:
            self._check_classes(given_values(arguments))
            return
        for subcommand, values in given_values(arguments):
            subparser = self._subcommands_action.choices.get(subcommand)
            if subparser is not None and isinstance(values, Mapping):
                subparser._check_classes(values.items())

    def _variable_values(self) -> list[str]:
        prefix = self.variable_prefix
        return [value for name, value in os.environ.items() if prefix and name.startswith(f"{prefix}_")]

    def _interpolate(self) -> None:
        if is_installed("omegaconf"):
            self.parser_mode = _INTERPOLATING  # of the subcommands too

    def _check_classes(self, values: Any) -> None:
        if self._subcommands_action is not None:
            sections = self._subcommands_action.choices
            for key, value in values:
                if key in sections and hasattr(value, "items"):
                    sections[key]._check_classes(value.items())
            return
        try:
            check_classes(self, values)
        except RefusedValueError as error:
            self.error(str(error), error)
        except RecursionError:
            self.error("A value of the configuration contains itself, by an anchor of YAML (&name and *name)")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of what jsonargparse calls become errors of the parser."""
        try:
            yield
        except ValueError as error:
            if not type(error).__module__.startswith("omegaconf"):
                raise
            self.error(f"Interpolation: {error}", error)

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
    """For a link: what was chosen as the description of an object, in plain dicts whatever the model's type hint."""

    def __init__(self, chosen: Any) -> None:
        self.chosen = chosen

    def __call__(self, given: Any) -> dict[str, Any] | None:
        description = as_description(self.chosen, given)
        return description.as_dict() if isinstance(description, Namespace) else description


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


@functools.cache
def _tell_jsonargparse() -> None:
    # Once, so that a program can change it afterwards. The empty list: what is denied by default is denied indeed.
    set_dumper(_FORMAT, as_yaml)
    set_parsing_settings(
        instantiate_subclass_spec_in_any=False, import_path_denylist=[], omegaconf_absolute_to_relative_paths=True
    )


def _import_choices() -> None:
    for face in _FACES:
        import_behind(face)


def _version() -> str:
    return str(importlib.import_module("fulmen.trainer").__version__)
