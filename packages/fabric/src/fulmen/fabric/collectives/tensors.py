"""Reduce and gather tensors, also of uneven shape; nothing to do when alone.

No function here changes the tensor that it is given.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fulmen.fabric.collectives.process_group import is_initialized
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.types import ReduceOp

_MEAN = ("mean", "avg")


def num_processes(group: Any | None = None) -> int:
    """Number of processes in the group, or in all; 1 when alone."""
    return dist.get_world_size(group) if is_initialized() else 1


def reduce_tensor(tensor: Tensor, group: Any | None = None, op: ReduceOp | None = "mean") -> Tensor:
    """The reduction of `tensor` over all processes; a new tensor of the same shape on the same device.

    Args:
        tensor: Of the same shape in every process.
        group: Some of the processes; all by default.
        op: "mean" (or "avg", which is the same), "sum", "min", "max", "product", or a `torch.distributed.ReduceOp`.
            The mean of integers is a float.

    Raises:
        ConfigurationError: If the operation is unknown.
    """
    operation, is_mean = parse_reduce_op(op)
    size = num_processes(group)
    if size == 1:
        return tensor
    result = _for_backend(tensor.detach(), group)
    result = result.to(torch.uint8) if result.dtype == torch.bool else result
    if result.data_ptr() == tensor.data_ptr() or not result.is_contiguous():
        result = result.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, op=operation, group=group)
    if is_mean:
        result = result / size
    return result.to(tensor.device)


def reduce_tensors(tensors: list[Tensor], group: Any | None = None, op: ReduceOp | None = "mean") -> list[Tensor]:
    """The reductions of all `tensors`, in one collective per dtype. Shapes and devices stay."""
    parse_reduce_op(op)
    if num_processes(group) == 1 or not tensors:
        return list(tensors)
    results: list[Tensor | None] = [None] * len(tensors)
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        device = tensors[places[0]].device
        flat = torch.cat([tensors[place].detach().reshape(-1).to(device) for place in places])
        reduced = reduce_tensor(flat, group, op).split([tensors[place].numel() for place in places])
        for place, part in zip(places, reduced, strict=True):
            results[place] = part.reshape(tensors[place].shape).to(tensors[place].device)
    return cast(list[Tensor], results)


def gather_even(tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
    """The tensors of all processes, stacked on a new first axis: (processes, *tensor.shape); when alone, `tensor`.

    Args:
        tensor: Of the same shape in every process.
        group: Some of the processes; all by default.
        sync_grads: Let gradients flow back to the process that each part came from.
    """
    if num_processes(group) == 1:
        return tensor
    if sync_grads and torch.is_grad_enabled():
        from torch.distributed.nn import functional

        parts = functional.all_gather(_for_backend(tensor, group).contiguous(), group or dist.group.WORLD)
        return torch.stack(list(parts)).to(tensor.device)
    return torch.stack(_gather(tensor, group))


def gather_uneven(tensor: Tensor, group: Any | None = None) -> list[Tensor]:
    """The tensors of all processes, by rank. Shapes may differ; the number of axes and the dtype may not."""
    size = num_processes(group)
    if size == 1:
        return [tensor]
    shape = torch.tensor(tensor.shape, dtype=torch.int64, device=tensor.device)
    shapes = [tuple(part.tolist()) for part in _gather(shape, group)] if tensor.ndim else [()] * size
    if all(shape == shapes[0] for shape in shapes):
        return _gather(tensor, group)
    largest = [max(lengths) for lengths in zip(*shapes, strict=True)]
    padded = tensor.new_zeros(largest)
    padded[tuple(slice(length) for length in tensor.shape)] = tensor.detach()
    parts = _gather(padded, group)
    return [part[tuple(slice(length) for length in shape)] for part, shape in zip(parts, shapes, strict=True)]


def parse_reduce_op(op: ReduceOp | None) -> tuple[Any, bool]:
    """The operation for torch, and whether to divide by the number of processes afterwards (gloo has no mean)."""
    if not isinstance(op, str):
        if op is None:
            return dist.ReduceOp.SUM, False
        return (dist.ReduceOp.SUM, True) if op == dist.ReduceOp.AVG else (op, False)
    name = op.lower()
    if name in _MEAN:
        return dist.ReduceOp.SUM, True
    found = getattr(dist.ReduceOp, name.upper(), None)
    if found is None:
        raise ConfigurationError(
            f"reduce_op={op!r} is unknown. It says how the values of all processes become one."
            " Pass 'mean', 'sum', 'min', 'max' or 'product'."
        )
    return found, False


def _gather(tensor: Tensor, group: Any | None) -> list[Tensor]:
    sent = _for_backend(tensor.detach(), group).contiguous()
    parts = [torch.empty_like(sent) for _ in range(num_processes(group))]
    dist.all_gather(parts, sent, group=group)
    return [part.to(tensor.device) for part in parts]


def _for_backend(tensor: Tensor, group: Any | None) -> Tensor:
    # nccl moves nothing that lies in host memory.
    if tensor.device.type == "cpu" and dist.get_backend(group) == "nccl":
        return tensor.cuda()
    return tensor
