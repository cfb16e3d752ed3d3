"""Parameters under a mask, as `torch.nn.utils.prune` keeps them: read, put on, taken off, renamed in a state dict.

Under a mask, the parameter `weight` of a layer is called `weight_orig`, `weight_mask` is a buffer beside it, and
`weight` is their product, made anew before each forward.
"""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune


def is_masked(layer: nn.Module, name: str) -> bool:
    """Is this parameter under a mask?"""
    return hasattr(layer, f"{name}_mask") and hasattr(layer, f"{name}_orig")


def parameter_of(layer: nn.Module, name: str) -> nn.Parameter:
    """What the optimizer trains."""
    parameter: nn.Parameter = getattr(layer, f"{name}_orig" if is_masked(layer, name) else name)
    return parameter


def mask_of(layer: nn.Module, name: str) -> Tensor | None:
    """Its mask, 1 where a weight is left; None without one."""
    return getattr(layer, f"{name}_mask") if is_masked(layer, name) else None


def buffers_without_masks(module: nn.Module) -> Iterator[Tensor]:
    """The buffers of `module` and the modules in it, in their order, each once."""
    seen = set()
    for layer in module.modules():
        for name, buffer in layer.named_buffers(recurse=False):
            if id(buffer) not in seen and not (name.endswith("_mask") and is_masked(layer, name.removesuffix("_mask"))):
                seen.add(id(buffer))
                yield buffer


def put_mask(layer: nn.Module, name: str, mask: Tensor) -> None:
    """Put this mask on, or in the place of the one that is there."""
    parameter = parameter_of(layer, name)
    mask = mask.to(parameter.device, parameter.dtype)
    present = mask_of(layer, name)
    if present is not None:
        with torch.no_grad():
            present.copy_(mask)
        refresh(layer, name)
        return
    with keeping_order(layer):
        prune.custom_from_mask(layer, name, mask)


def take_mask_off(layer: nn.Module, name: str) -> None:
    """Zeros stay zeros, and the mask goes."""
    with keeping_order(layer):
        prune.remove(layer, name)


@contextmanager
def keeping_order(*layers: nn.Module) -> Iterator[None]:
    """The parameters of these layers stay in their order, under whatever name: optimizers count them."""
    before = [(layer, _own_names(layer)) for layer in layers]
    yield
    for layer, names in before:
        own = dict(layer.named_parameters(recurse=False))
        if _own_names(layer) != names:
            for name in sorted(own, key=lambda found: names.index(found.removesuffix("_orig"))):
                delattr(layer, name)
                layer.register_parameter(name, own[name])


def _own_names(layer: nn.Module) -> list[str]:
    return [name.removesuffix("_orig") for name, _ in layer.named_parameters(recurse=False)]


def refresh(layer: nn.Module, name: str) -> None:
    """What layers and readers see: after a step of the optimizer, the product is that of the step before."""
    mask = mask_of(layer, name)
    if mask is not None:
        setattr(layer, name, parameter_of(layer, name) * mask)


def num_zeros(layer: nn.Module, name: str) -> tuple[int, int]:
    """How many weights are pruned, and of how many."""
    mask = mask_of(layer, name)
    return (0 if mask is None else int((mask == 0).sum())), parameter_of(layer, name).numel()


@torch.no_grad()
def overwrite(layer: nn.Module, name: str, values: Tensor) -> None:
    """Give the parameter these values; its mask stays."""
    parameter = parameter_of(layer, name)
    parameter.copy_(values.to(parameter.device, parameter.dtype))
    refresh(layer, name)


@torch.no_grad()
def draw_anew(layer: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """New values for these parameters, as the layer draws them; the layer stays as it is."""
    for name in names:
        refresh(layer, name)
    before = {name: one.detach().clone() for name, one in (*layer.named_parameters(), *layer.named_buffers())}
    layer.reset_parameters()  # type: ignore[operator]  # the caller has seen that it is there
    drawn = {name: getattr(layer, name).detach().clone() for name in names}
    for name, one in (*layer.named_parameters(), *layer.named_buffers()):
        one.copy_(before[name])
    for name in names:
        refresh(layer, name)
    return drawn


def plain_state(state: MutableMapping[str, Any]) -> int:
    """Give masked parameters of a state dict their usual names and zeros. Returns how many there were."""
    masked = [key.removesuffix("_mask") for key in state if key.endswith("_mask")]
    found = [name for name in masked if f"{name}_orig" in state]
    if found:
        renamed = {f"{name}_orig": name for name in found}
        products = {name: state[f"{name}_orig"] * state.pop(f"{name}_mask") for name in found}
        entries = list(state.items())
        state.clear()
        for key, value in entries:
            state[renamed.get(key, key)] = products.get(renamed.get(key, ""), value)
    return len(found)
