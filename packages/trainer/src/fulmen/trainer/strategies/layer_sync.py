"""Layers that look at the batches of all processes at once: synchronised batch norm."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class LayerSync(ABC):
    """Exchanges layers for synchronised ones before training, and gives the old kind back after it."""

    @abstractmethod
    def apply(self, model: nn.Module) -> nn.Module:
        """`model` with synchronised layers; it may be a new object if the model itself is such a layer."""

    @abstractmethod
    def revert(self, model: nn.Module) -> nn.Module:
        """`model` with the layers that `apply` exchanged as they were, holding what they have learned."""


class TorchSyncBatchNorm(LayerSync):
    """Batch norm as `torch.nn.SyncBatchNorm`: one mean and variance over the batches of all processes.

    Only what `apply` exchanged is reverted: a `SyncBatchNorm` that the user put in stays.
    """

    def __init__(self) -> None:
        # Parameters and buffers of the old layer live on in the new one; only its class has to be remembered.
        self._classes: dict[nn.Module, type[nn.Module]] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """`model` with every batch norm synchronised."""
        found = {path: type(layer) for path, layer in model.named_modules(remove_duplicate=False) if _is_plain(layer)}
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        for path, kind in found.items():
            self._classes[model.get_submodule(path)] = kind
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """`model` with the batch norms that it had."""
        if model in self._classes:
            return self._as_it_was(model)
        for parent, name, layer in list(_children(model)):
            if layer in self._classes:
                setattr(parent, name, self._as_it_was(layer))
        return model

    def _as_it_was(self, layer: nn.Module) -> nn.Module:
        kind = self._classes.pop(layer)
        old = kind.__new__(kind)
        old.__dict__.update({key: value for key, value in vars(layer).items() if key != "process_group"})
        return old


def has_batch_norm(model: nn.Module) -> bool:
    """Is there a batch norm in `model`, of whatever kind?"""
    return any(isinstance(layer, _BatchNorm) for layer in model.modules())


def _is_plain(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm)


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        for name, layer in parent.named_children():
            yield parent, name, layer
