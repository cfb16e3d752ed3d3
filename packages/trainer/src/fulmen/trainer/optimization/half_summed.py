"""Gradients between two optimizer steps, when a checkpoint is written inside an accumulation window.

Every process has its own: they are averaged over processes when the window ends.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Gradients = dict[str, Tensor]


def take(module: nn.Module) -> Gradients:
    """The gradients of this process, by name of the parameter, in the memory of the machine."""
    grads = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return {name: _local(grad).detach().to("cpu", copy=True) for name, grad in grads.items()}


def put_back(module: nn.Module, saved: Sequence[Gradients], rank: int, world_size: int) -> bool:
    """Give the parameters their gradients again. Was it possible?

    Args:
        module: With the same parameters as when they were taken.
        saved: Of each process then. For another number of processes now, each gets their mean, which is what the end
            of the window would have made of them; where each process has a part of the parameters, there is no mean.
        rank, world_size: Of this process.
    """
    parameters = dict(module.named_parameters())
    if len(saved) != world_size and any(_is_sharded(parameter) for parameter in parameters.values()):
        return False
    mine = saved[rank] if len(saved) == world_size else _mean(saved)
    for name, grad in mine.items():
        parameter = parameters[name]
        parameter.grad = torch.zeros_like(parameter)
        _local(parameter.grad).copy_(grad)
    return True


def _mean(saved: Sequence[Gradients]) -> Gradients:
    names = {name: None for grads in saved for name in grads}
    return {name: torch.stack([grads[name] for grads in saved if name in grads]).sum(0) / len(saved) for name in names}


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")  # a DTensor, without importing what makes them


def _local(tensor: Any) -> Tensor:
    local: Tensor = tensor.to_local() if _is_sharded(tensor) else tensor
    return local
