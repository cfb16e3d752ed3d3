"""Fulmen CLI: train any LightningModule from flags and YAML."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.cli.cli import ArgsType as ArgsType
    from fulmen.cli.cli import LightningCLI as LightningCLI
    from fulmen.cli.instantiate import instantiate_class as instantiate_class
    from fulmen.cli.optimizers import LRSchedulerCallable as LRSchedulerCallable
    from fulmen.cli.optimizers import LRSchedulerType as LRSchedulerType
    from fulmen.cli.optimizers import LRSchedulerTypeTuple as LRSchedulerTypeTuple
    from fulmen.cli.optimizers import LRSchedulerTypeUnion as LRSchedulerTypeUnion
    from fulmen.cli.optimizers import OptimizerCallable as OptimizerCallable
    from fulmen.cli.optimizers import ReduceLROnPlateau as ReduceLROnPlateau
    from fulmen.cli.parser import LightningArgumentParser as LightningArgumentParser
    from fulmen.cli.parser import instantiate_module as instantiate_module
    from fulmen.cli.save_config import SaveConfigCallback as SaveConfigCallback
    from fulmen.cli.subcommands import Subcommand as Subcommand

__version__ = "0.1.0"

__all__ = [
    "ArgsType",
    "LRSchedulerCallable",
    "LRSchedulerType",
    "LRSchedulerTypeTuple",
    "LRSchedulerTypeUnion",
    "LightningArgumentParser",
    "LightningCLI",
    "OptimizerCallable",
    "ReduceLROnPlateau",
    "SaveConfigCallback",
    "Subcommand",
    "instantiate_class",
    "instantiate_module",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "ArgsType": "fulmen.cli.cli",
        "LRSchedulerCallable": "fulmen.cli.optimizers",
        "LRSchedulerType": "fulmen.cli.optimizers",
        "LRSchedulerTypeTuple": "fulmen.cli.optimizers",
        "LRSchedulerTypeUnion": "fulmen.cli.optimizers",
        "LightningArgumentParser": "fulmen.cli.parser",
        "LightningCLI": "fulmen.cli.cli",
        "OptimizerCallable": "fulmen.cli.optimizers",
        "ReduceLROnPlateau": "fulmen.cli.optimizers",
        "SaveConfigCallback": "fulmen.cli.save_config",
        "Subcommand": "fulmen.cli.subcommands",
        "instantiate_class": "fulmen.cli.instantiate",
        "instantiate_module": "fulmen.cli.parser",
    },
)
