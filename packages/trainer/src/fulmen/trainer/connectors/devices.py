"""Device flags to a bound strategy."""

from collections.abc import Iterable
from typing import Any

from fulmen.fabric.accelerators.base import Accelerator
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
    bound.layer_sync = layer_sync or (TorchSyncBatchNorm() if sync_batchnorm else bound.layer_sync)
    return bound, selection


def _split_layer_sync(plugins: Any) -> tuple[LayerSync | None, list[Any] | None]:
    if plugins is None:
        return None, None
    given = list(plugins) if isinstance(plugins, Iterable) and not isinstance(plugins, str) else [plugins]
    layer_syncs = [plugin for plugin in given if isinstance(plugin, LayerSync)]
    others = [plugin for plugin in given if not isinstance(plugin, LayerSync)]
    return (layer_syncs[0] if layer_syncs else None), others or None
