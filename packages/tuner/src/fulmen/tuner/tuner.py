"""Tuner: a learning rate and a batch size, before the run that needs them."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, Literal, TypeVar

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_info
from fulmen.fabric.strategies.sharded_tensors import is_split
from fulmen.trainer import lifecycle
from fulmen.trainer.connectors.checks import check_entry_point, check_module
from fulmen.trainer.connectors.data import attach_data
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.data.sources import RunData
from fulmen.trainer.processes import launch
from fulmen.trainer.rehearsal import leaving_no_trace, trial_of
from fulmen.trainer.stages import EntryPoint
from fulmen.trainer.trainer import Trainer
from fulmen.tuner.attributes import find_attribute
from fulmen.tuner.batch_size import (
    BatchSizeOptions,
    BatchSizeTrials,
    find_batch_size_attribute,
    loaders_were_passed,
    search_batch_size,
)
from fulmen.tuner.callbacks import BatchSizeFinder, LearningRateFinder
from fulmen.tuner.lr_sweep import NAMES, LRFinder, SweepOptions, sweep

Answer = TypeVar("Answer")
Method = Literal["fit", "validate", "test", "predict"]


class Tuner:
    """Looks for good settings by short trials, which leave no trace but what was found.

    Args:
        trainer: Its devices, precision and other flags hold for the trials; its callbacks and loggers take no part.

    Attributes:
        batch_size_trials: What the last `scale_batch_size` has tried; None before.
    """

    def __init__(self, trainer: Trainer) -> None:
        if not isinstance(trainer, Trainer):
            raise ArgumentTypeError(
                f"Tuner(trainer={trainer!r}) got a {type(trainer).__name__}. Trials run as this Trainer would run."
                " Pass the Trainer that is going to train."
            )
        self._trainer = trainer
        self.batch_size_trials: BatchSizeTrials | None = None

    def lr_find(
        self,
        model: LightningModule,
        train_dataloaders: Any | LightningDataModule | None = None,
        val_dataloaders: Any | None = None,
        dataloaders: Any | None = None,
        datamodule: LightningDataModule | None = None,
        method: Method = "fit",
        min_lr: float = 1e-08,
        max_lr: float = 1,
        num_training: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> LRFinder | None:
        """Train a few steps with a rising learning rate, and see where the loss falls fastest.

        Args:
            model: The module; it has one optimizer.
            train_dataloaders, val_dataloaders, datamodule: As for `Trainer.fit`.
            dataloaders, method: Only `method="fit"` trains; there for the sake of `scale_batch_size`.
            min_lr: The learning rate of the first step.
            max_lr: That of the last step.
            num_training: How many steps.
            mode: "exponential" (equal ratios) or "linear" (equal differences).
            early_stop_threshold: End when the loss is above so many times the best; None: never.
            update_attr: Set the attribute of the model to what is suggested?
            attr_name: Name of the attribute, perhaps nested ("optimizer.lr"); "" tries "lr" and "learning_rate".

        Returns:
            The curve, with `suggestion()` and `plot()`; None after Ctrl-C in a notebook.

        Raises:
            MisconfigurationException: For input that cannot be swept.
        """
        call = "Tuner.lr_find"
        options = SweepOptions(min_lr, max_lr, num_training, mode, early_stop_threshold)
        if method != "fit":
            raise ConfigurationError(
                f"{call}(method={method!r}) does not train. A learning rate shows in nothing but training."
                " Pass method='fit', or leave it out."
            )
        if dataloaders is not None:
            raise _wrong_loaders(call, "fit", "dataloaders")
        self._check_trainer(call, LearningRateFinder)
        check_module(model, EntryPoint.FIT)
        loaders = {"train_dataloaders": train_dataloaders, "val_dataloaders": val_dataloaders}
        data = _data_of(model, EntryPoint.FIT, loaders, datamodule)
        attribute = None
        if update_attr:
            names = [attr_name] if attr_name else NAMES
            attribute = find_attribute(names, model, data.datamodule, call=call, argument="attr_name")
        finder = self._rehearse(EntryPoint.FIT, model, loaders, datamodule, partial(sweep, options))
        found = finder.suggestion() if finder is not None and attribute is not None else None
        if attribute is not None and found is not None:
            attribute.write(found)
            rank_zero_info(f"{call} sets {attribute.name!r} to {found:g}.")
        return finder

    def scale_batch_size(
        self,
        model: LightningModule,
        train_dataloaders: Any | LightningDataModule | None = None,
        val_dataloaders: Any | None = None,
        dataloaders: Any | None = None,
        datamodule: LightningDataModule | None = None,
        method: Method = "fit",
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> int | None:
        """Find the largest batch size that fits into memory, and set the attribute to it.

        With several processes it is the size of each, and fits into the memory of all.

        Args:
            model: The module.
            train_dataloaders, val_dataloaders, dataloaders: A datamodule, or nothing: loaders must be made anew.
            datamodule: Gives the loaders; else the module does.
            method: Which entry point the size is for.
            mode: "power": double while it fits; "binsearch": bisect to the exact limit, with larger jumps at first.
            steps_per_trial: Batches that every size must survive.
            init_val: The first size.
            max_trials: So many sizes are tried at most.
            batch_arg_name: The attribute that the loaders read, of the model, the datamodule or their hyperparameters.
            margin: mode="binsearch" stays below the limit by this part.
            max_val: Larger sizes are not tried, nor are sizes above the number of samples.

        Returns:
            The size; None after Ctrl-C in a notebook.

        Raises:
            MisconfigurationException: For input that cannot be tuned, or if nothing fits.
        """
        call = "Tuner.scale_batch_size"
        options = BatchSizeOptions(mode, steps_per_trial, init_val, max_trials, batch_arg_name, margin, max_val)
        entry = _entry_point(call, method)
        loaders = _loaders_for(call, entry, train_dataloaders, val_dataloaders, dataloaders)
        self._check_trainer(call, BatchSizeFinder)
        check_module(model, entry)
        data = _data_of(model, entry, loaders, datamodule)
        attribute = find_batch_size_attribute(options, model, data)
        trials = self._rehearse(entry, model, loaders, datamodule, partial(search_batch_size, options))
        if trials is None:
            return None
        self.batch_size_trials = trials
        found = trials.suggestion()
        attribute.write(found)
        rank_zero_info(f"{call} sets {attribute.name!r} to {found}.")
        return found

    def _check_trainer(self, call: str, finder: type[Callback]) -> None:
        trainer = self._trainer
        if trainer.fast_dev_run:
            raise ConfigurationError(
                f"{call} was called with Trainer(fast_dev_run={trainer.fast_dev_run!r}). A run of so few batches shows"
                " nothing of learning rate or memory. Leave out fast_dev_run, or skip the tuning while you use it."
            )
        if any(isinstance(callback, finder) for callback in trainer.callbacks):
            name = finder.__name__
            raise ConfigurationError(
                f"{call} was called with Trainer(callbacks=[{name}(...)]). That callback searches for the same by"
                f" itself when the run begins. Remove {name} from the callbacks, or leave out this call."
            )

    def _rehearse(
        self,
        entry: EntryPoint,
        model: LightningModule,
        loaders: Mapping[str, Any],
        datamodule: LightningDataModule | None,
        work: Callable[[Trainer], Answer],
    ) -> Answer | None:
        """What `work` finds out on a copy of the Trainer, set up for `model` as for `entry`."""
        trial = trial_of(self._trainer)
        run = trial.context
        if run.strategy.shards_parameters and not is_split(model):
            # Once split, a module stays split. What is large comes from `configure_model`, and so is not there yet.
            model = deepcopy(model)
        attach_data(run.data, model, entry, loaders, datamodule)
        check_entry_point(model, run.data, entry, run.settings)
        plan = lifecycle.Plan(entry, model, partial(work, trial), asks_for_callbacks=False)
        with leaving_no_trace(run, model):
            answer: Answer | None = launch(trial, partial(lifecycle.run, run, plan), model)
        return answer


def _data_of(
    model: LightningModule,
    entry: EntryPoint,
    loaders: Mapping[str, Any],
    datamodule: LightningDataModule | None,
) -> RunData:
    """Where the data would come from; nothing is loaded yet."""
    data = RunData()
    attach_data(data, model, entry, loaders, datamodule)
    return data


def _entry_point(call: str, method: str) -> EntryPoint:
    names = [str(entry) for entry in EntryPoint]
    if method not in names:
        raise ConfigurationError(
            f"{call}(method={method!r}) is unknown. A batch size is found for one entry point of the Trainer."
            f" Pass one of {', '.join(map(repr, names))}."
        )
    return EntryPoint(method)


def _loaders_for(
    call: str, entry: EntryPoint, train_dataloaders: Any, val_dataloaders: Any, dataloaders: Any
) -> dict[str, Any]:
    """The loader arguments of `entry`; those of other entry points, and loaders that are ready, are refused."""
    fits = entry is EntryPoint.FIT
    mine: dict[str, Any] = {"train_dataloaders": train_dataloaders, "val_dataloaders": val_dataloaders}
    others: dict[str, Any] = {"dataloaders": dataloaders}
    if not fits:
        mine, others = others, mine
    for name, value in others.items():
        if value is not None:
            raise _wrong_loaders(call, entry, name)
    if any(value is not None and not isinstance(value, LightningDataModule) for value in mine.values()):
        raise loaders_were_passed(call)
    return mine


def _wrong_loaders(call: str, method: str, name: str) -> ConfigurationError:
    right = "train_dataloaders and val_dataloaders" if method == "fit" else "dataloaders"
    return ConfigurationError(
        f"{call}({name}=...) does not go with method={method!r}. That method takes {right}."
        " Use the argument of the method that you mean, or a datamodule."
    )
