"""Which parameters get gradients: all, none, or those of one of several optimizers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self, cast

from torch import nn
from torch.optim import Optimizer

from fulmen.trainer.core.optimizer import LightningOptimizer


class SwitchesGradients(nn.Module):
    """A module whose gradients can be switched off, and on again."""

    def freeze(self) -> Self:
        """Switches gradients off for all parameters, and eval mode on."""
        for param in self.parameters():
            param.requires_grad = False
        return self.eval()

    def unfreeze(self) -> Self:
        """Switches gradients on for all parameters, and train mode on."""
        for param in self.parameters():
            param.requires_grad = True
        return self.train()

    def toggle_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> None:
        """Switches gradients off for every parameter that only other optimizers train; `untoggle_optimizer` ends it."""
        remembered: dict[nn.Parameter, bool] = self.__dict__.setdefault("_switched_off", {})
        own = {param for group in optimizer.param_groups for param in group["params"]}
        for other in cast(Any, self).trainer.optimizers:
            for group in other.param_groups:
                for param in group["params"]:
                    if param not in own:
                        remembered.setdefault(param, param.requires_grad)
                        param.requires_grad = False
        for param in own & remembered.keys():  # switched off for another optimizer, and not switched on again
            param.requires_grad = remembered.pop(param)

    def untoggle_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> None:
        """Gives every parameter back what `toggle_optimizer` changed."""
        for param, requires_grad in self.__dict__.pop("_switched_off", {}).items():
            param.requires_grad = requires_grad

    @contextmanager
    def toggled_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> Iterator[None]:
        """Inside, gradients are off for every parameter that only other optimizers train."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)
