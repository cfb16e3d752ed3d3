"""Gradients between two optimizer steps, when a checkpoint is written inside an accumulation window.

Every process has its own: they are averaged over processes when the window ends.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fulmen.fabric.compiled import plain_parameters
from fulmen.trainer.strategies.fabric_backed import FabricBacked

Gradients = dict[str, Tensor]
# Before the name of a parameter: the mean over processes of its gradients, which the first process keeps.
MEAN = "mean:"


class KeepsGradients(FabricBacked):
    """Hands out the gradients of all processes for a checkpoint, and takes them back."""

    def gather_gradients(self, module: nn.Module) -> list[Gradients]:
        """The gradients that each process has added up, by name of the parameter; every process must call it."""
        return self.gather_objects(take(module))

    def put_back_gradients(self, module: nn.Module, saved: Sequence[Gradients]) -> bool:
        """Give the parameters their gradients again. Was it possible?

        Args:
            module: With the same parameters as when they were gathered.
            saved: Of each process then. For another number of processes now, each gets their mean, which is what the
                end of the window would have made of them.
        """
        means, own = apart(saved)
        mine = own[self.global_rank] if len(own) == self.world_size else mean_of(own)
        return put(plain_parameters(module), {**means, **mine})


def take(module: nn.Module) -> Gradients:
    """The gradients of this process, in the memory of the machine."""
    grads = {name: parameter.grad for name, parameter in plain_parameters(module).items() if parameter.grad is not None}
    return {name: in_memory(grad) for name, grad in grads.items()}


def put(parameters: Mapping[str, nn.Parameter], gradients: Gradients) -> bool:
    """Set the gradients of `parameters`. Did all of them fit? If not, none is set."""
    if any(name not in parameters or local(parameters[name]).shape != grad.shape for name, grad in gradients.items()):
        return False
    for name, grad in gradients.items():
        parameter = parameters[name]
        parameter.grad = torch.zeros_like(parameter)
        local(parameter.grad).copy_(grad)
    return True


def apart(saved: Sequence[Gradients]) -> tuple[Gradients, list[Gradients]]:
    """The means that one process kept for all, and what each process kept for itself."""
    means = {name.removeprefix(MEAN): grad for one in saved for name, grad in one.items() if name.startswith(MEAN)}
    return means, [{name: grad for name, grad in one.items() if not name.startswith(MEAN)} for one in saved]


def mean_of(saved: Sequence[Gradients]) -> Gradients:
    """The mean over processes; one that has none for a parameter counts as zero."""
    names = {name: None for grads in saved for name in grads}
    return {name: torch.stack([grads[name] for grads in saved if name in grads]).sum(0) / len(saved) for name in names}


def is_sharded(tensor: Tensor) -> bool:
    """Is a part of it elsewhere?"""
    return hasattr(tensor, "to_local")  # a DTensor, without importing what makes them


def local(tensor: Any) -> Tensor:
    """The part that is here."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return part


def in_memory(tensor: Any) -> Tensor:
    """A copy of the part that is here, on the CPU."""
    return local(tensor).detach().to("cpu", copy=True)
