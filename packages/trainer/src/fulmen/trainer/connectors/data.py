"""Loader arguments to sources; prepare_data where it has to run."""

from collections.abc import Mapping
from typing import Any

from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.data.sources import LoaderSource, RunData
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.hooks.dispatch import Hooks
from fulmen.trainer.stages import EntryPoint, Stage
from fulmen.trainer.strategies.base import Strategy

_STAGES = {
    EntryPoint.FIT: (Stage.TRAIN, Stage.VALIDATE),
    EntryPoint.VALIDATE: (Stage.VALIDATE,),
    EntryPoint.TEST: (Stage.TEST,),
    EntryPoint.PREDICT: (Stage.PREDICT,),
}


def attach_data(
    data: RunData,
    module: LightningModule,
    entry: EntryPoint,
    loaders: Mapping[str, Any],
    datamodule: LightningDataModule | None,
) -> None:
    """Say where the loaders of this run come from: the arguments, the datamodule, or the module.

    Args:
        data: Filled in.
        module: Asked where neither loaders nor a datamodule were passed.
        entry: Which stages need loaders.
        loaders: The loader arguments by their names, in the order of the stages.
        datamodule: The datamodule argument.

    Raises:
        ConfigurationError: If loaders and a datamodule were both passed.
        ArgumentTypeError: If the datamodule is none.
    """
    loaders = dict(loaders)
    first = next(iter(loaders))
    if isinstance(loaders[first], LightningDataModule):
        # A datamodule in the place of loaders is meant as the datamodule.
        datamodule, loaders[first] = loaders[first], None
    if datamodule is not None and not isinstance(datamodule, LightningDataModule):
        raise ArgumentTypeError(
            f"Trainer.{entry}(datamodule={datamodule!r}) is no LightningDataModule."
            " Its hooks give the loaders of every stage. Pass an object of a class derived from LightningDataModule,"
            f" or pass loaders as {first}=..."
        )
    given = [name for name, value in loaders.items() if value is not None]
    if datamodule is not None and given:
        raise ConfigurationError(
            f"Trainer.{entry}({given[0]}=..., datamodule=...) got its data twice."
            " Which of the two to use cannot be known. Pass the loaders or the datamodule, not both."
        )
    data.datamodule = datamodule
    owner = datamodule if datamodule is not None else module
    for stage, (name, value) in zip(_STAGES[entry], loaders.items(), strict=True):
        hook = f"{stage.dataloader_prefix}_dataloader"
        if value is None and given and entry is EntryPoint.FIT and stage is Stage.VALIDATE:
            # Training loaders were passed, validation loaders not: the module may still define them.
            owner = module
        data.attach(stage, LoaderSource(owner, value, hook, argument=f"Trainer.{entry}({name}=...)"))


def prepare_data(hooks: Hooks, data: RunData, module: LightningModule, strategy: Strategy) -> None:
    """Run `prepare_data` once per machine, or once in all where the owner asks for that; the others wait."""
    for owner in (data.datamodule, module):
        if owner is None:
            continue
        per_node = getattr(owner, "prepare_data_per_node", True)
        if strategy.local_rank == 0 and (per_node or strategy.global_rank == 0):
            hooks.fire_owner(owner, "prepare_data")
    strategy.barrier("prepare_data")
