"""Tensors that are split over processes (DTensors): which part is here, fill it, gather it, measure and scale it.

Every function also takes plain tensors. `torch.distributed.tensor` is imported only where there are DTensors.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fulmen.fabric.errors import CheckpointError, ConfigurationError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def is_dtensor(value: object) -> TypeGuard[DTensor]:
    """Is it a DTensor?"""
    # The module takes seconds to import; where nobody has imported it, there is no DTensor.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def is_split(module: nn.Module) -> bool:
    """Are its parameters split over processes, or gathered for the moment?"""
    if any(map(is_dtensor, module.parameters())):
        return True
    return any(True for _ in _units(module))


def split_again(module: nn.Module) -> None:
    """Give up parameters that are still gathered, as after a forward without a backward."""
    for unit in _units(module):
        unit.reshard()


def _units(module: nn.Module) -> Iterator[FSDPModule]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return (part for part in module.modules() if fsdp is not None and isinstance(part, fsdp.FSDPModule))


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of it, in the same memory."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def local_box(tensor: DTensor) -> tuple[slice, ...]:
    """Which part of the whole this process holds, as a slice per axis."""
    (chunk,) = tensor.__create_chunk_list__()
    return tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))


@torch.no_grad()
def fill(name: str, target: Tensor, source: Tensor) -> None:
    """Copy into `target` what this process holds of it; of `source`, no more than that is read.

    Args:
        name: Of the tensor; quoted in errors.
        target: A DTensor or a plain tensor.
        source: The whole, or a DTensor split as the target is.

    Raises:
        CheckpointError: If their shapes differ.
        ConfigurationError: If the target has no memory.
    """
    if target.shape != source.shape:
        raise CheckpointError(
            f"{name!r} has the shape {tuple(source.shape)} in the checkpoint, and {tuple(target.shape)} here. The"
            " checkpoint is of a module of other sizes. Build the module as it was when it was saved."
        )
    if target.is_meta:
        raise ConfigurationError(
            f"{name!r} is on the meta device and cannot be loaded. It has a shape and no memory."
            " Set the module up first: setup() gives its parameters memory."
        )
    if is_dtensor(target) and not is_dtensor(source):
        local_part(target).copy_(source[local_box(target)])
    else:
        target.copy_(source)


@torch.no_grad()
def split_like(whole: Tensor, like: Tensor) -> Tensor:
    """What this process is to hold of `whole`, in memory of its own: split as `like` is, and next to it.

    Args:
        whole: Of the same shape as `like`; the same on all processes.
        like: A DTensor; beside a plain tensor, the whole is kept.
    """
    if not is_dtensor(like):
        return whole.detach().clone()
    local = local_part(like)
    part = torch.empty(local.shape, dtype=whole.dtype, device=local.device)
    part.copy_(whole[local_box(like)])
    return joined(part, like)


def joined(part: Tensor, like: DTensor) -> Tensor:
    """The DTensor whose part here is `part`, split as `like` is. Nothing is communicated."""
    return type(like).from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@torch.no_grad()
def gather(tensor: Tensor, device: torch.device, *, keep: bool) -> Tensor | None:
    """The whole tensor on the CPU, for the processes that `keep` it. All processes must call it.

    Args:
        tensor: Split or whole.
        device: Where the processes can talk to each other.
        keep: Does this process want it?
    """
    tensor = tensor.detach()
    if is_dtensor(tensor):
        # Parameters that wait on the CPU are gathered where the process group works.
        whole: Tensor = tensor.to(device).full_tensor()  # type: ignore[attr-defined]  # still a DTensor
        tensor = whole
    return tensor.cpu() if keep else None


def gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients that are there, none of them a sum that is still to be made."""
    found: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if is_dtensor(parameter.grad) and any(place.is_partial() for place in parameter.grad.placements):
            assert is_dtensor(parameter)
            parameter.grad = parameter.grad.redistribute(placements=parameter.placements)
        found.append(parameter.grad)
    return found


@torch.no_grad()
def total_norm(tensors: Sequence[Tensor], norm_type: float, device: torch.device) -> Tensor:
    """The norm of all tensors taken as one, the same on every process; a plain scalar.

    One small collective per axis for all tensors that are split over the same axes of the same mesh.

    Args:
        tensors: DTensors of any mesh, and plain tensors, which are the same on every process.
        norm_type: 2 for the Euclidean norm, `inf` for the largest absolute value.
        device: Of the result.
    """
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        key = None
        if is_dtensor(tensor):
            key = tensor.device_mesh, tuple(not place.is_replicate() for place in tensor.placements)
        groups.setdefault(key, []).append(tensor)
    powers = [_power(key, [local_part(tensor) for tensor in group], norm_type) for key, group in groups.items()]
    if not powers:
        return torch.zeros((), device=device)
    together = torch.stack([power.to(device) for power in powers])
    total = together.max() if math.isinf(norm_type) else together.sum() ** (1.0 / norm_type)
    return total.to(torch.promote_types(torch.float32, _widest(tensors)))


def _power(key: Any, parts: list[Tensor], norm_type: float) -> Tensor:
    """The norm of a group to the power of its type, over all processes; for `inf`, the norm."""
    parts = [part for part in parts if part.numel()]  # more processes than rows leave some without
    device = parts[0].device if parts else torch.device("cpu")
    norms = [torch.zeros((), device=device)]
    for is_complex, dtype in ((False, torch.float64), (True, None)):  # squares of float16 leave its range
        same = [part for part in parts if part.is_complex() == is_complex]
        norms.extend(torch._foreach_norm(same, norm_type, dtype=dtype) if same else ())
    norm = torch.linalg.vector_norm(torch.stack([one.to(torch.float64) for one in norms]), norm_type)
    power: Tensor = norm if math.isinf(norm_type) else norm**norm_type
    if key is None:
        return power
    mesh, is_split = key
    operation = dist.ReduceOp.MAX if math.isinf(norm_type) else dist.ReduceOp.SUM
    whole: Tensor = power.to(mesh.device_type)  # parameters that wait on the CPU
    for axis, split in enumerate(is_split):
        if split:
            dist.all_reduce(whole, op=operation, group=mesh.get_group(axis))
    return whole


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    widest = torch.float32
    for tensor in tensors:
        widest = torch.promote_types(widest, tensor.dtype)
    return widest


@torch.no_grad()
def scale(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply all tensors by a plain scalar, in place."""
    for device, parts in _by_device(tensors).items():
        torch._foreach_mul_(parts, factor.to(device))


@torch.no_grad()
def clamp(tensors: Sequence[Tensor], limit: float) -> None:
    """Bring all values into [-limit, limit], in place."""
    for parts in _by_device(tensors).values():
        torch._foreach_clamp_min_(parts, -limit)
        torch._foreach_clamp_max_(parts, limit)


def _by_device(tensors: Sequence[Tensor]) -> dict[torch.device, list[Tensor]]:
    found: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        part = local_part(tensor)
        found.setdefault(part.device, []).append(part)
    return found
