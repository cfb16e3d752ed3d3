"""How many numbers a model holds, and in how many bytes: also split, quantized and packed ones."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fulmen.fabric.rank_zero import WarningCache

warning_cache = WarningCache()

# Their weights are no parameters: they are packed for the kernels, and come out by a method.
_PACKING = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")


def num_parameters(module: nn.Module) -> int:
    """The numbers in all parameters of `module` and the modules in it; shared ones count once."""
    return sum(map(num_numbers, module.parameters())) + sum(tensor.numel() for tensor in packed_tensors(module))


def num_bytes_of(module: nn.Module) -> int:
    """The bytes that they take."""
    return sum(map(num_bytes, module.parameters())) + sum(map(num_bytes, packed_tensors(module)))


def num_numbers(parameter: Tensor) -> int:
    """How many numbers a parameter stands for: on all processes if it is split, before they were packed to 4 bits."""
    if is_lazy(parameter):
        return 0
    whole: Any = getattr(parameter, "ds_numel", None)  # DeepSpeed keeps its shard elsewhere
    if whole is not None:
        return int(whole)
    packed: Any = getattr(parameter, "quant_state", None)  # bitsandbytes: two numbers in one byte
    return parameter.numel() if packed is None else math.prod(packed.shape)


def num_bytes(parameter: Tensor) -> int:
    """How many bytes these numbers take, with what is needed to read quantized ones: scales, zero points, codes."""
    if is_lazy(parameter):
        return 0
    if getattr(parameter, "ds_numel", None) is not None:
        return num_numbers(parameter) * parameter.element_size()
    to_local: Any = getattr(parameter, "to_local", None)
    if to_local is not None:  # a DTensor: the local part may be of a type of its own
        local = to_local()
        each = num_bytes(local) / local.numel() if local.numel() else parameter.element_size()
        return round(each * parameter.numel())
    flatten: Any = getattr(parameter, "__tensor_flatten__", None)
    if flatten is not None:  # a tensor made of tensors, as torchao has them
        return sum(num_bytes(getattr(parameter, name)) for name in flatten()[0])
    scales = [getattr(parameter, "SCB", None)]  # bitsandbytes, 8 bit
    state: Any = getattr(parameter, "quant_state", None)
    while state is not None:
        scales += [state.absmax, state.code]
        state = getattr(state, "state2", None)  # the scales themselves may be quantized
    return sum(part.numel() * part.element_size() for part in (parameter, *scales) if part is not None)


def packed_tensors(module: nn.Module) -> Iterator[Tensor]:
    """The weights in `module` and the modules in it that are no parameters, because torch has packed them."""
    for part in module.modules():
        if not type(part).__module__.startswith(_PACKING):
            continue
        for name in ("weight", "bias", "get_weight", "get_bias"):
            method: Any = getattr(part, name, None)
            if callable(method):
                found = method()
                yield from filter(torch.is_tensor, found.values() if isinstance(found, dict) else [found])


def is_lazy(parameter: Tensor) -> bool:
    """Has the parameter no shape before the first call? A summary says once that it does not count such."""
    if not torch.nn.parameter.is_lazy(parameter):
        return False
    warning_cache.warn(
        "A layer is lazy and has no parameters yet. Their number is not known before the first batch."
        " The summary counts them as 0."
    )
    return True
