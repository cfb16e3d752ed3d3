"""LightningCLI: a command line for any module, datamodule and trainer."""

import os
import random
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

from jsonargparse import Namespace
from torch.optim import Optimizer

from fulmen.cli.checkpoint_arguments import OPTION as CKPT_PATH
from fulmen.cli.checkpoint_arguments import mentions_checkpoint, offer
from fulmen.cli.environment import variable_of
from fulmen.cli.faults import fault_in_class
from fulmen.cli.instantiate import HyperparametersGiver
from fulmen.cli.newest_run import NAMES, find, refuse_nothing
from fulmen.cli.optimizers import (
    LRSchedulerTypeUnion,
    as_description,
    automatic,
    put_together,
    refuse_scheduler_alone,
    use_in,
)
from fulmen.cli.parser import LightningArgumentParser, returned_class
from fulmen.cli.save_config import SaveConfigCallback
from fulmen.cli.subcommands import InstalledSubcommands, first_line
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.seeding import max_seed_value, seed_everything
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.trainer import Trainer

ArgsType = Union[list[str], dict[str, Any], Namespace, None]  # noqa: UP007  # a public name

_SEEDS = ("FULMEN_GLOBAL_SEED", "PL_GLOBAL_SEED")


class LightningCLI:
    """Reads arguments, builds trainer, module and datamodule, and runs what the subcommand says.

    Args:
        model_class: A LightningModule, or a function that returns one; None: the user names any by `--model`.
        datamodule_class: The same for `--data`.
        save_config_callback: Saves the configuration when a run begins; None: it is not saved.
        save_config_kwargs: Arguments of that callback.
        trainer_class: A Trainer, or a function that returns one.
        trainer_defaults: Other defaults for the arguments of the trainer. Its `callbacks` are always added.
        seed_everything_default: A seed; True for a random one; False for none.
        parser_kwargs: Arguments of the parser; under the name of a subcommand, of that subcommand's parser.
        parser_class: The parser.
        subclass_mode_model: May the user choose a subclass of `model_class`, by `class_path`?
        subclass_mode_data: The same for `datamodule_class`.
        args: The arguments, as a list or a dict; None: those of the program.
        run: Are there subcommands, and is the one that was named run? False only builds the objects.
        auto_configure_optimizers: Have `--optimizer` and `--lr_scheduler`?
        load_from_checkpoint_support: Keep with hyperparameters in checkpoints what the command line built from them?
    """

    def __init__(
        self,
        model_class: type[LightningModule] | Callable[..., LightningModule] | None = None,
        datamodule_class: type[LightningDataModule] | Callable[..., LightningDataModule] | None = None,
        save_config_callback: type[SaveConfigCallback] | None = SaveConfigCallback,
        save_config_kwargs: dict[str, Any] | None = None,
        trainer_class: type[Trainer] | Callable[..., Trainer] = Trainer,
        trainer_defaults: dict[str, Any] | None = None,
        seed_everything_default: bool | int = True,
        parser_kwargs: dict[str, Any] | dict[str, dict[str, Any]] | None = None,
        parser_class: type[LightningArgumentParser] = LightningArgumentParser,
        subclass_mode_model: bool = False,
        subclass_mode_data: bool = False,
        args: ArgsType = None,
        run: bool = True,
        auto_configure_optimizers: bool = True,
        load_from_checkpoint_support: bool = True,
    ) -> None:
        self.model_class = model_class or LightningModule
        self.datamodule_class = datamodule_class or LightningDataModule
        self.subclass_mode_model = model_class is None or subclass_mode_model
        self.subclass_mode_data = datamodule_class is None or subclass_mode_data
        self._data_is_optional = datamodule_class is None
        self.save_config_callback = save_config_callback
        self.save_config_kwargs = save_config_kwargs or {}
        self.trainer_class = trainer_class
        self.trainer_defaults = trainer_defaults or {}
        self.seed_everything_default = seed_everything_default
        self.parser_kwargs = parser_kwargs or {}
        self.parser_class = parser_class
        self.auto_configure_optimizers = auto_configure_optimizers
        self._keeps_hparams = load_from_checkpoint_support
        self._args = args
        self.config = Namespace()  # type: ignore[no-untyped-call]
        self.config_init = Namespace()  # type: ignore[no-untyped-call]
        self.config_dump: dict[str, Any] = {}
        self.subcommand: str | None = None
        self._added: Mapping[str, Any] = {}

        names = self.subcommands() if run else {}
        of_subcommands = {name: self.parser_kwargs[name] for name in names if name in self.parser_kwargs}
        of_root = {key: value for key, value in self.parser_kwargs.items() if key not in of_subcommands}
        self.setup_parser(run, of_root, of_subcommands)
        self.parse_arguments(self.parser, args)
        if run:
            self.subcommand = self.config["subcommand"]
        self._seed()
        self.before_instantiate_classes()
        self.instantiate_classes()
        self.after_instantiate_classes()
        if self.subcommand is not None:
            self._run(self.subcommand)

    # ---- parsers

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, dict[str, Any]]
    ) -> None:
        """Make `self.parser`.

        Args:
            add_subcommands: A parser for each subcommand, or one parser with all arguments?
            main_kwargs: Arguments of the one parser, or of that above the subcommands.
            subparser_kwargs: Arguments of the parser of each subcommand.
        """
        self.parser = self.init_parser(**main_kwargs)
        prefix = self.parser.env_prefix if main_kwargs.get("default_env") is not False else None
        self.parser.variable_prefix = prefix if isinstance(prefix, str) else None
        self._subparsers: dict[str, LightningArgumentParser] = {}
        if not add_subcommands:
            self._add_arguments(self.parser)
            return
        built_in = self.subcommands()
        if self._first_argument() not in built_in:  # looking for others takes a while
            self._added = self.added_subcommands()
        action = self.parser.add_subcommands()
        for name in (*built_in, *self._added):
            may_run = self._may_run(name, main_kwargs)
            described = getattr(self._trainer_type(), name) if name in built_in else None
            text = first_line(described) if described is not None else self._describe_added(name)
            subparser = self.init_parser(**{"description": text, **subparser_kwargs.get(name, {})})
            subparser.variable_prefix = prefix = self.parser.variable_prefix
            if prefix is not None:
                of_one = variable_of("trainer.max_epochs", prefix=prefix, subcommand=name)
                of_all = variable_of("trainer.max_epochs", prefix=prefix)
                subparser.epilogue = (
                    f"In the environment, {of_one}=3 is --trainer.max_epochs=3 for {name}, and {of_all}=3 is that"
                    " for every subcommand. Configs and arguments win over it."
                )
            if may_run:
                # Reading the signatures of a trainer takes a while: only for what may be run.
                self._add_arguments(subparser)
                self._add_own_arguments(subparser, name)
            self._subparsers[name] = subparser
            action.add_subcommand(name, subparser, help=text)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that knows `--config` and nothing else yet."""
        parser = self.parser_class(**kwargs)
        parser.add_config_argument()
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what belongs to no class."""
        parser.add_argument(
            "--seed_everything",
            type=Union[bool, int],  # noqa: UP007  # bool before int
            default=self.seed_everything_default,
            help="The seed of all random numbers; true for a random one, false for none.",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add trainer, model and data."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        defaults = {f"trainer.{name}": value for name, value in self.trainer_defaults.items() if name != "callbacks"}
        parser.set_defaults(defaults)
        parser.add_lightning_class_args(self.model_class, "model", subclass_mode=self.subclass_mode_model)
        parser.add_lightning_class_args(
            self.datamodule_class,
            "data",
            subclass_mode=self.subclass_mode_data,
            required=not self._data_is_optional,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """For subclasses: add arguments, link arguments, set defaults."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands: methods of the trainer, each with those of its parameters that are no options."""
        evaluation = {"model", "dataloaders", "datamodule"}
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": evaluation,
            "test": evaluation,
            "predict": evaluation,
        }

    def added_subcommands(self) -> Mapping[str, Any]:
        """Further subcommands by name, see `fulmen.cli.subcommands`: those of installed packages; {} for none."""
        return InstalledSubcommands(taken=self.subcommands())

    @staticmethod
    def link_optimizers_and_lr_schedulers(parser: LightningArgumentParser) -> None:
        """Hand optimizers and schedulers on to the arguments of the model that they are linked to."""
        parser.link_chosen()

    def _add_arguments(self, parser: LightningArgumentParser) -> None:
        self.add_default_arguments_to_parser(parser)
        self.add_core_arguments_to_parser(parser)
        self.add_arguments_to_parser(parser)
        if self.auto_configure_optimizers:
            if not parser.optimizers:
                parser.add_optimizer_args()
            if not parser.lr_schedulers:
                parser.add_lr_scheduler_args()
        self.link_optimizers_and_lr_schedulers(parser)

    def _add_own_arguments(self, parser: LightningArgumentParser, name: str) -> None:
        """What one subcommand takes beside trainer, model and data."""
        before = {action.dest for action in parser._actions}
        built_in = self.subcommands()
        method = name if name in built_in else getattr(self._added[name], "like", None)
        if method is not None:
            parser.add_method_arguments(self._trainer_type(), method, skip=set(built_in[method]), as_group=False)
        if name not in built_in:
            self._added[name].add_arguments(parser)
        parser.method_arguments = [action.dest for action in parser._actions if action.dest not in before]

    def _describe_added(self, name: str) -> str:
        if isinstance(self._added, InstalledSubcommands):
            return self._added.describe(name)
        return first_line(self._added[name])

    def _first_argument(self) -> Any:
        arguments = sys.argv[1:] if self._args is None else self._args
        if isinstance(arguments, list):
            return arguments[0] if arguments else None
        return arguments.get("subcommand")

    def _may_run(self, name: str, main_kwargs: Mapping[str, Any]) -> bool:
        """May this subcommand be the one? If in doubt, yes."""
        if main_kwargs.get("default_env") or main_kwargs.get("default_config_files"):
            return True
        arguments = sys.argv[1:] if self._args is None else self._args
        if not isinstance(arguments, list) or not arguments:
            return not isinstance(arguments, list)
        if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
            return True  # perhaps a file for several subcommands
        return arguments[0] == name

    def _trainer_type(self) -> Any:
        return self.trainer_class if isinstance(self.trainer_class, type) else returned_class(self.trainer_class)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Make `self.config` of the arguments."""
        if args is not None and len(sys.argv) > 1:
            rank_zero_warn(
                f"LightningCLI(args=...) was given arguments, and so was the program: {sys.argv[1:]}. Those of the"
                " program are not read. Leave args out to read them."
            )
        if isinstance(args, (dict, Namespace)):
            self._offer_hyperparameters(Namespace(args) if isinstance(args, dict) else args)  # type: ignore[no-untyped-call]
            self.config = parser.parse_object(args)
            return
        arguments = sys.argv[1:] if args is None else args
        if mentions_checkpoint(arguments, os.environ):
            self._offer_hyperparameters(parser.given(arguments))
        self.config = parser.parse_args(arguments)

    def _offer_hyperparameters(self, given: Namespace) -> None:
        """What a checkpoint says about the model becomes the defaults of its arguments."""
        subcommand = given.get("subcommand")
        section = given if subcommand is None else given.get(subcommand) or Namespace()  # type: ignore[no-untyped-call]
        path = section.get(CKPT_PATH)
        if path in NAMES:
            path = find(path, section.get("trainer"), self.trainer_defaults, self.trainer_class)
        if path is not None:
            parser = self.parser if subcommand is None else self._subparsers[subcommand]
            offer(parser, str(path), section.get("model"), is_fixed=not self.subclass_mode_model)

    # ---- objects

    def before_instantiate_classes(self) -> None:
        """For subclasses: called when the arguments are parsed."""

    def instantiate_classes(self) -> None:
        """Make `datamodule`, `model` and `trainer`."""
        parser = self._parser_of_run()
        self.config_dump = _as_data(parser, self._part(self.config))
        try:
            self.config_init = self.parser.instantiate(self.config, instantiators=self._instantiators())
        except Exception as error:
            # jsonargparse calls an error in a class one of its type, and says so in many lines.
            raise fault_in_class(error) or error from None
        made = self._part(self.config_init)
        self.datamodule = made.get("data")
        self.model = made["model"]
        self._give_optimizers(parser)
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer.

        Args:
            kwargs: These arguments win over those of the command line.
        """
        made = self._part(self.config_init)
        extra = [made[key] for key in self._parser_of_run().callback_keys]
        return self._make_trainer({**made["trainer"].as_dict(), **kwargs}, extra)

    def after_instantiate_classes(self) -> None:
        """For subclasses: called when all is built and nothing runs yet."""

    @staticmethod
    def configure_optimizers(
        lightning_module: LightningModule,
        optimizer: Optimizer,
        lr_scheduler: LRSchedulerTypeUnion | None = None,
    ) -> Any:
        """What `configure_optimizers` of the model returns, if the command line names an optimizer."""
        return put_together(optimizer, lr_scheduler)

    def _make_trainer(self, arguments: dict[str, Any], extra: Sequence[Callback]) -> Trainer:
        callbacks = [
            *_as_list(arguments.get("callbacks")),
            *extra,
            *_as_list(self.trainer_defaults.get("callbacks")),
        ]
        if self.save_config_callback is not None and self._saves_config() and not arguments.get("fast_dev_run"):
            callbacks.append(
                self.save_config_callback(self._parser_of_run(), self._part(self.config), **self.save_config_kwargs)
            )
        return self.trainer_class(**{**arguments, "callbacks": callbacks})

    def _saves_config(self) -> bool:
        added = self._added.get(self.subcommand) if self.subcommand is not None else None
        return added is None or bool(getattr(added, "saves_config", False))

    def _instantiators(self) -> list[tuple[Any, Any, bool]]:
        if not self._keeps_hparams:
            return []
        made = []
        for key, given, open_to_subclasses in (
            ("model", self.model_class, self.subclass_mode_model),
            ("data", self.datamodule_class, self.subclass_mode_data),
        ):
            # A function's class is made by the parser: any subclass of what the function returns.
            is_class = isinstance(given, type)
            kind = given if is_class else returned_class(given)
            made.append((HyperparametersGiver(self.config_dump.get(key)), kind, open_to_subclasses or not is_class))
        return made

    def _give_optimizers(self, parser: LightningArgumentParser) -> None:
        optimizer_key = automatic(parser.optimizers, "optimizer")
        scheduler_key = automatic(parser.lr_schedulers, "learning rate scheduler")
        if optimizer_key is None:
            return
        given = self._part(self.config_init)
        optimizer = as_description(parser.optimizers[optimizer_key][0], given.get(optimizer_key))
        scheduler = None
        if scheduler_key is not None:
            scheduler = as_description(parser.lr_schedulers[scheduler_key][0], given.get(scheduler_key))
        if optimizer is None:
            if scheduler_key is not None and isinstance(parser.lr_schedulers[scheduler_key][0], tuple):
                refuse_scheduler_alone(scheduler_key, scheduler)
            return
        use_in(self.model, optimizer, scheduler, type(self).configure_optimizers)

    def _parser_of_run(self) -> LightningArgumentParser:
        return self.parser if self.subcommand is None else self._subparsers[self.subcommand]

    def _part(self, config: Namespace) -> Namespace:
        return config if self.subcommand is None else config[self.subcommand]

    def _seed(self) -> None:
        config = self._part(self.config)
        seed = config.get("seed_everything")
        if seed is False or seed is None:
            return
        config["seed_everything"] = seed_everything(_random_seed() if seed is True else seed, workers=True)

    # ---- run

    def _run(self, subcommand: str) -> None:
        name = subcommand.replace("-", "_")
        getattr(self, f"before_{name}", _nothing)()
        arguments = self._run_arguments(subcommand)
        own = getattr(self, name, None)
        if subcommand not in self._added:
            run = own or getattr(self.trainer, subcommand)
            data = {} if self.datamodule is None else {"datamodule": self.datamodule}
            run(**arguments, model=self.model, **data)
        elif own is not None:
            own(**arguments)
        else:
            self._added[subcommand].run(self, **arguments)
        getattr(self, f"after_{name}", _nothing)()

    def _run_arguments(self, subcommand: str) -> dict[str, Any]:
        made = self._part(self.config_init)
        arguments = {name: made[name] for name in self._subparsers[subcommand].method_arguments}
        asked = arguments.get(CKPT_PATH)
        if asked in NAMES:
            refuse_nothing(self.trainer, asked, subcommand=subcommand)
        return arguments


def _random_seed() -> int:
    for variable in _SEEDS:
        if os.environ.get(variable, "").isdecimal():
            return int(os.environ[variable])  # processes that this one starts
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        # Started side by side: all must come to the same number, and this is what they share.
        shared = [os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")]
        return random.Random("/".join(shared)).randint(0, max_seed_value)
    return random.SystemRandom().randint(0, max_seed_value)


def _as_data(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """What was parsed as plain data, as it would be written."""
    import yaml

    with warnings.catch_warnings():
        # A description that is linked to a dict has no types; that its tuples become lists does no harm.
        warnings.simplefilter("ignore")
        text = parser.dump(config, skip_link_targets=False, skip_unset=False, skip_validation=True)
    data: dict[str, Any] = yaml.safe_load(text)
    return data


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _nothing() -> None:
    return None
