"""Device flags to a bound strategy."""

import inspect
from collections.abc import Iterable
from typing import Any

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.selection import Selection, select
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies.base import Strategy
from fulmen.trainer.strategies.catalog import STRATEGY_REGISTRY, bind, build
from fulmen.trainer.strategies.layer_sync import LayerSync, TorchSyncBatchNorm


def choose_strategy(
    *,
    accelerator: str | Accelerator,
    strategy: str | Strategy,
    devices: list[int] | str | int,
    num_nodes: int,
    precision: Any,
    plugins: Any,
    sync_batchnorm: bool,
) -> tuple[Strategy, Selection]:
    """The strategy that these flags ask for, with accelerator, devices, precision and checkpoint IO in place.

    Raises:
        ConfigurationError: For unknown names, and flags that contradict each other.
    """
    layer_sync, others = _split_layer_sync(plugins)
    if sync_batchnorm and layer_sync is not None and not isinstance(layer_sync, TorchSyncBatchNorm):
        raise ConfigurationError(
            f"Trainer(sync_batchnorm=True, plugins=[{type(layer_sync).__name__}()]) asks for two ways to synchronise"
            " layers. Each would convert the same layers. Remove one of them."
        )
    own = strategy if isinstance(strategy, Strategy) else None
    named = STRATEGY_REGISTRY.get(strategy) if isinstance(strategy, str) and strategy in STRATEGY_REGISTRY else None
    if named is not None and issubclass(named, Strategy):
        own = build(str(strategy))  # a name that a user registered for a strategy of the trainer's own kind
    selection = select(
        accelerator=accelerator,
        strategy=own.fabric_strategy if own is not None else strategy,  # type: ignore[arg-type]
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,
        plugins=others,
        registry=STRATEGY_REGISTRY,
        caller="Trainer",
    )
    bound = own or bind(selection.strategy)
    _check_precision(bound.precision_plugin)
    bound.layer_sync = layer_sync or (TorchSyncBatchNorm() if sync_batchnorm else bound.layer_sync)
    return bound, selection


# What a precision of the reference's trainer may define, and where it belongs here.
_STEPS_IN_CONTEXT = "forward_context(), which surrounds every step"
_CLIPPING = "LightningModule.configure_gradient_clipping(), and the strategy's clip_gradients()"
_ELSEWHERE = {
    "train_step_context": _STEPS_IN_CONTEXT,
    "val_step_context": _STEPS_IN_CONTEXT,
    "test_step_context": _STEPS_IN_CONTEXT,
    "predict_step_context": _STEPS_IN_CONTEXT,
    "clip_gradients": _CLIPPING,
    "clip_grad_by_norm": _CLIPPING,
    "clip_grad_by_value": _CLIPPING,
    "connect": "convert_module(), and the strategy's take_optimizers()",
    "on_save_checkpoint": "state_dict()",
    "on_load_checkpoint": "load_state_dict()",
}


def _check_precision(precision: Precision) -> None:
    """Refuse a precision of the user's own that defines what nobody would call."""
    name = type(precision).__name__
    for method, place in _ELSEWHERE.items():
        if hasattr(precision, method):
            raise ConfigurationError(
                f"Trainer(plugins=[{name}(...)]) has a method {method}(), which no run calls. A precision says how"
                f" numbers are held and computed, and the same ones serve Fabric. What it does belongs into {place}."
            )
    for method, argument in (("optimizer_step", "model"), ("backward", "optimizer")):
        if argument in inspect.signature(getattr(precision, method)).parameters:
            raise ConfigurationError(
                f"Trainer(plugins=[{name}(...)]) has a {method}() that wants {argument!r}. A precision is given no"
                f" {argument} there. Leave the argument out: {method}{inspect.signature(getattr(Precision, method))}."
            )


def _split_layer_sync(plugins: Any) -> tuple[LayerSync | None, list[Any] | None]:
    if plugins is None:
        return None, None
    given = list(plugins) if isinstance(plugins, Iterable) and not isinstance(plugins, str) else [plugins]
    layer_syncs = [plugin for plugin in given if isinstance(plugin, LayerSync)]
    others = [plugin for plugin in given if not isinstance(plugin, LayerSync)]
    return (layer_syncs[0] if layer_syncs else None), others or None
