"""Buffers in which processes differ, such as the running means that a batch norm has of its own process's batches.

A checkpoint holds the buffers of the first process. Those in which others differ lie beside it, of every process, so
that each goes on with its own.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fulmen.fabric.strategies.sharded_tensors import is_dtensor
from fulmen.trainer.run.context import RunContext


def own_buffers(run: RunContext) -> list[dict[str, Tensor]] | None:
    """Of each process, the buffers that are not the same in all; None if there are none. All processes must call it."""
    strategy = run.strategy
    module = strategy.lightning_module
    if strategy.world_size == 1 or module is None:
        return None
    buffers = dict(_saved_buffers(module))
    digests: list[dict[str, str]] = strategy.gather_objects({name: _digest(own) for name, own in buffers.items()})
    differing = {
        name for of_rank in digests for name in of_rank if any(one.get(name) != of_rank[name] for one in digests)
    }
    if not differing:
        return None
    return strategy.gather_objects({name: own.detach().cpu() for name, own in buffers.items() if name in differing})


def put_back_buffers(run: RunContext, saved: Sequence[Mapping[str, Tensor]] | None) -> None:
    """Give each process its own, if as many run as when they were saved; to be called when the model is set up."""
    strategy = run.strategy
    module = strategy.lightning_module
    if saved is None or len(saved) != strategy.world_size or module is None:
        return
    mine = saved[strategy.global_rank]
    with torch.no_grad():
        for name, buffer in _saved_buffers(module):
            if name in mine and mine[name].shape == buffer.shape:
                buffer.copy_(mine[name])


def _saved_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Those that a state dict has, and that lie in this process as a whole; sparse ones are constants."""
    for prefix, layer in module.named_modules():
        passed_over: Any = layer._non_persistent_buffers_set
        for name, buffer in layer.named_buffers(prefix, recurse=False):
            lies_here = buffer.layout is torch.strided and not (buffer.is_meta or is_dtensor(buffer))
            if lies_here and name.rpartition(".")[2] not in passed_over:
                yield name, buffer


def _digest(buffer: Tensor) -> str:
    content = buffer.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(content.data, digest_size=16, usedforsecurity=False).hexdigest()
