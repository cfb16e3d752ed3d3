"""Does the module implement what this entry point needs? Asked before any work begins."""

import os
import warnings
from collections.abc import Iterable

from fulmen.fabric.class_names import class_name
from fulmen.fabric.rank_zero import PossibleUserWarning, rank_zero_deprecation
from fulmen.trainer.callbacks.whole_weights import NeedsWholeWeights
from fulmen.trainer.connectors.hook_calls import check_hook_calls
from fulmen.trainer.connectors.hook_names import check_hook_names, misspelt
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.unbuilt import was_initialised
from fulmen.trainer.data.sources import RunData
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError, MisconfigurationException
from fulmen.trainer.run.settings import Settings
from fulmen.trainer.signature import is_overridden
from fulmen.trainer.stages import EntryPoint, Stage
from fulmen.trainer.strategies.base import Strategy

_STEPS = {
    EntryPoint.VALIDATE: ("validation_step", Stage.VALIDATE),
    EntryPoint.TEST: ("test_step", Stage.TEST),
    EntryPoint.PREDICT: ("predict_step", Stage.PREDICT),
}


class NotAModuleError(ArgumentTypeError):
    """What was passed as the model is no LightningModule."""


class BothConfigureModelError(MisconfigurationException, RuntimeError):
    """The old and the new name of one hook are both overridden."""


def check_module(model: object, entry: EntryPoint) -> None:
    """Refuse anything but a LightningModule that was built properly.

    Raises:
        ArgumentTypeError: If it is something else.
        MisconfigurationException: If its `__init__` did not call `super().__init__()`.
    """
    if isinstance(model, type) or not isinstance(model, LightningModule):
        what = "a class, not an object" if isinstance(model, type) else f"a {class_name(model)}"
        raise NotAModuleError(
            f"Trainer.{entry}(model=...) got {what}."
            " A run needs an object of a class derived from LightningModule: it says what a step is."
            " Wrap your network in a LightningModule, and pass an object of it."
        )
    if not was_initialised(model) or "_device" not in model.__dict__:
        name = class_name(model)
        raise MisconfigurationException(
            f"Trainer.{entry}(model={name}(...)) got a module that was not fully built."
            f" {name}.__init__ did not call super().__init__(), so its parameters are unknown."
            " Call super().__init__() first in its __init__."
        )


def check_path(ckpt_path: object, entry: EntryPoint) -> None:
    """Refuse a `ckpt_path` that is no path.

    Raises:
        ArgumentTypeError: Quoting it.
    """
    if ckpt_path is not None and not isinstance(ckpt_path, str | os.PathLike):
        raise ArgumentTypeError(
            f"Trainer.{entry}(ckpt_path={ckpt_path!r}) is a {type(ckpt_path).__name__}, not a path."
            " It names the checkpoint that the run goes on from. Pass a str or a Path, or 'auto', 'best', 'last' or"
            " 'hpc'."
        )


def check_entry_point(module: LightningModule, data: RunData, entry: EntryPoint, settings: Settings) -> None:
    """Refuse a module that lacks what this entry point calls.

    Raises:
        ConfigurationError: Naming what is missing.
    """
    for owner in (module, data.datamodule):
        if owner is not None:
            check_hook_names(owner)
            check_hook_calls(owner)
    if is_overridden("configure_sharded_model", module, LightningModule):
        _check_configure_sharded_model(module)
    if entry is EntryPoint.FIT:
        _check_fit(module, data, settings)
    else:
        _check_evaluation(module, data, entry)


def check_callbacks(callbacks: Iterable[Callback], strategy: Strategy) -> None:
    """Refuse callbacks that cannot do their work in a fit with this strategy.

    Raises:
        ConfigurationError: Naming both.
    """
    for callback in callbacks:
        if isinstance(callback, NeedsWholeWeights):
            callback.check_strategy(strategy)


def _check_fit(module: LightningModule, data: RunData, settings: Settings) -> None:
    name = class_name(module)
    for method, what in (
        ("training_step", "computes the loss of a batch"),
        ("configure_optimizers", "makes the optimizers"),
    ):
        if not is_overridden(method, module, LightningModule):
            raise ConfigurationError(
                f"Trainer.fit({name}) cannot run: {name} has no {method}(){_nearly(module, method)}."
                f" A fit needs `training_step`, `configure_optimizers` and a `train_dataloader`; {method} {what}."
                f" Define {method}(self{', batch, batch_idx' if method == 'training_step' else ''}) in {name}."
            )
    if not data.is_defined(Stage.TRAIN):
        raise ConfigurationError(
            f"Trainer.fit({name}) has no training data."
            " It was passed no loaders and no datamodule, and the module defines no train_dataloader()."
            " Pass train_dataloaders=DataLoader(...), or datamodule=..., or define train_dataloader()."
        )
    has_step, has_data = is_overridden("validation_step", module, LightningModule), data.is_defined(Stage.VALIDATE)
    if has_data and not has_step:
        warnings.warn(
            f"Trainer.fit({name}) has validation data, and {name} defines no validation_step."
            " Validation is skipped. Define validation_step(self, batch, batch_idx), or pass no validation data.",
            stacklevel=2,
        )
    elif has_step and not has_data:
        warnings.warn(
            f"Trainer.fit({name}) has a validation_step, and no validation data was given."
            " Validation is skipped. Pass val_dataloaders=DataLoader(...), or define val_dataloader().",
            PossibleUserWarning,
            stacklevel=2,
        )
    if not module.automatic_optimization:
        for flag, neutral in (("gradient_clip_val", (None, 0)), ("accumulate_grad_batches", (1,))):
            value = getattr(settings, flag)
            if value not in neutral:
                raise ConfigurationError(
                    f"Trainer({flag}={value}) has no effect on {name}, whose optimization is manual."
                    " There your own training_step clips gradients and counts batches."
                    f" Remove {flag}, and do it in training_step."
                )


def _check_evaluation(module: LightningModule, data: RunData, entry: EntryPoint) -> None:
    name = class_name(module)
    step, stage = _STEPS[entry]
    if getattr(module, step) is None:
        raise ConfigurationError(
            f"Trainer.{entry}({name}) cannot run: {name}.{step} is None."
            f" It is called for every batch. Define {step}(self, batch, batch_idx) in {name}, or leave the name alone."
        )
    if step == "predict_step":
        if not is_overridden(step, module, LightningModule) and not is_overridden("forward", module, LightningModule):
            raise ConfigurationError(
                f"Trainer.predict({name}) cannot run: {name} has neither forward() nor predict_step()."
                " predict_step calls forward unless it is overridden. Define one of them."
            )
    elif not is_overridden(step, module, LightningModule):
        raise ConfigurationError(
            f"Trainer.{entry}({name}) cannot run: {name} has no {step}(){_nearly(module, step)}."
            f" It is called for every batch. Define {step}(self, batch, batch_idx) in {name}."
        )
    if not data.is_defined(stage):
        method = f"{stage.dataloader_prefix}_dataloader"
        raise ConfigurationError(
            f"Trainer.{entry}({name}) has no data."
            f" It was passed no loaders and no datamodule, and the module defines no {method}()."
            f" Pass dataloaders=DataLoader(...), or datamodule=..., or define {method}()."
        )


def _nearly(module: LightningModule, method: str) -> str:
    """What to say of a method that may be a misspelling of the missing one."""
    found = misspelt(module, method)
    return "" if found is None else f", but it has {found}()"


def _check_configure_sharded_model(module: LightningModule) -> None:
    name = class_name(module)
    if is_overridden("configure_model", module, LightningModule):
        raise BothConfigureModelError(
            f"{name} defines both configure_model() and configure_sharded_model(), its older name."
            " Which of them builds the layers cannot be known. Keep configure_model(), and remove the other."
        )
    rank_zero_deprecation(
        f"{name}.configure_sharded_model() is the older name of configure_model(). It is still called."
        " Rename it to configure_model."
    )
