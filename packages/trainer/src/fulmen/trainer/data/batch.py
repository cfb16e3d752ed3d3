"""Size of a batch; the road of a batch to the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from fulmen.fabric.class_names import class_name
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.strategies.base import Strategy as FabricStrategy
from fulmen.fabric.strategies.batch_mover import batch_mover
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.hooks import DataHooks
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.metrics.batch_size import extract_batch_size as extract_batch_size
from fulmen.trainer.signature import is_overridden

Placer: TypeAlias = Callable[[Any, int], Any]
"""`(batch, dataloader_idx)` to the batch as the step gets it."""

BType: TypeAlias = "Tensor | str | dict[Any, BType] | list[BType] | tuple[BType, ...]"
"""What a batch may be."""


class Mover(Protocol):
    """What is asked of a strategy here."""

    transfer: Callable[[Any, torch.device, int], Any] | None
    fabric_strategy: FabricStrategy

    @property
    def precision_plugin(self) -> Precision:
        """Converts batches."""

    @property
    def root_device(self) -> torch.device:
        """Where batches go."""

    @property
    def moves_batches_itself(self) -> bool:
        """Is there anything special about `batch_to_device`?"""

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Move a batch, by `transfer` if there is one."""


_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def make_placer(
    module: LightningModule,
    datamodule: LightningDataModule | None,
    strategy: Mover,
    as_hook: Callable[[str, Callable[..., Any]], Callable[..., Any]] = lambda name, function: function,
) -> Placer | None:
    """The road of every batch: convert to the precision, then the three transfer hooks. Worked out once.

    Args:
        module: Its hooks are used,
        datamodule: unless this one overrides them.
        strategy: Moves batches; is told the user's hook for that.
        as_hook: Called with name and function of each user hook; gives what is called in its place.

    Returns:
        None if nothing happens to a batch on its way.
    """
    steps: list[Placer] = []
    precision = strategy.precision_plugin
    if precision.converts_input:
        steps.append(lambda batch, dataloader_idx: precision.convert_input(batch))
    before, transfer, after = (_chosen(name, module, datamodule) for name in _HOOKS)
    if before is not None:
        steps.append(as_hook(_HOOKS[0], before))
    strategy.transfer = None if transfer is None else as_hook(_HOOKS[1], transfer)
    device = strategy.root_device
    if transfer is not None or strategy.moves_batches_itself:
        own = strategy.batch_to_device
        steps.append(lambda batch, dataloader_idx: own(batch, device, dataloader_idx))
    else:
        move = batch_mover(strategy.fabric_strategy, device)
        if move is not None:
            steps.append(lambda batch, dataloader_idx: move(batch))
    if after is not None:
        steps.append(as_hook(_HOOKS[2], after))
    return _in_turn(steps)


def _in_turn(steps: list[Placer]) -> Placer | None:
    if len(steps) < 2:
        return steps[0] if steps else None

    def place(batch: Any, dataloader_idx: int) -> Any:
        for step in steps:
            batch = step(batch, dataloader_idx)
        return batch

    return place


def _chosen(name: str, module: LightningModule, datamodule: LightningDataModule | None) -> Callable[..., Any] | None:
    """The hook of whoever overrides it; of the datamodule if both do."""
    of_module = is_overridden(name, module, DataHooks)
    if datamodule is not None and is_overridden(name, datamodule, DataHooks):
        if of_module:
            rank_zero_warn(
                f"Both {type(datamodule).__name__} and {class_name(module)} override `{name}`."
                f" Only that of {type(datamodule).__name__} is called: data is the datamodule's. Remove one of them."
            )
        hook: Callable[..., Any] = getattr(datamodule, name)
        return hook
    return getattr(module, name) if of_module else None
