"""How the batches of a loop come to the device: decided before the loop, the same for Fabric and for a trainer.

Where the device has streams, a batch is copied on a stream of its own, while the steps before it still compute. It is
not taken from its loader any sooner: a program launches steps faster than a GPU makes them, so the copy begins as
soon as the step before was launched. A loader, its position and the order of hooks see nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.trees import can_move, map_tree, move_data_to_device, waits_for_copies

NUM_AHEAD = 8
"""So many steps a program may launch ahead of the device: each holds a batch there."""


def batch_mover(strategy: Strategy, device: torch.device) -> Callable[[Any], Any] | None:
    """What moves each batch of a loop to `device`; None where batches are there already.

    Args:
        strategy: If it overrides `batch_to_device`, that is called.
        device: The device of this process.
    """
    if type(strategy).batch_to_device is not Strategy.batch_to_device:
        return partial(strategy.batch_to_device, device=device)
    if device.type == "cpu":  # where loaders put their batches
        return None
    return SideStream(device) if has_side_streams(device) else partial(move_data_to_device, device=device)


def has_side_streams(device: torch.device) -> bool:
    """Can `device` copy on one stream while it computes on another? CUDA, ROCm and XPU can; CPU, MPS and XLA not."""
    accelerator = torch.accelerator.current_accelerator()
    return (
        accelerator is not None
        and accelerator.type == device.type
        and not waits_for_copies(device)
        and hasattr(torch.get_device_module(device), "Stream")
    )


@cache
def _stream_of(device: torch.device) -> Any:
    # One for all loops of the process: the allocator keeps memory by stream, and gives none of it to another.
    return torch.get_device_module(device).Stream(device)


class SideStream:
    """Copies batches on a stream beside the one that computes.

    Tensors in host memory are copied aside, and so is an object with methods `to(device)` and `record_stream(stream)`.
    Everything else is moved on the stream that computes: of an object with `to` alone nobody knows which memory it
    holds, and the allocator would give it away while a step still reads it.

    The caller's current stream waits for the copies, the program does not; it waits only to be no more than `NUM_AHEAD`
    batches ahead of the device.

    Args:
        device: An accelerator; `has_side_streams` has said so.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module = torch.get_device_module(device)  # torch.cuda, torch.xpu, ...
        self._stream = _stream_of(device)
        self._marks = cycle([self._module.Event() for _ in range(NUM_AHEAD)])

    def __call__(self, batch: Any) -> Any:
        """`batch` on the device, ready for whoever reads it on the current stream."""
        device, on_stream = self._device, self._module.stream
        computing = self._module.current_stream(device)
        mark = next(self._marks)
        mark.synchronize()  # of a mark that was never set, it returns at once
        mark.record(computing)
        copied: list[Any] = []

        def move(item: Any) -> Any:
            if not can_move(item):
                return item
            if not _is_copied_aside(item):
                with on_stream(computing):
                    return move_data_to_device(item, device)
            moved = move_data_to_device(item, device)
            copied.append(moved)
            return moved

        with on_stream(self._stream):
            batch = map_tree(batch, move, is_leaf=can_move)
        if copied:
            computing.wait_stream(self._stream)
            for moved in copied:
                # Its memory belongs to the side stream: not to be used again before the steps have read it.
                moved.record_stream(computing)
        return batch

    def __reduce__(self) -> tuple[type[SideStream], tuple[torch.device]]:
        return SideStream, (self._device,)  # a stream stays in its process


def _is_copied_aside(item: Any) -> bool:
    if not isinstance(item, Tensor):
        return callable(getattr(item, "record_stream", None))
    # Subclasses and tensors made of several, such as sparse ones, cannot all say who uses their memory.
    return type(item) is Tensor and item.is_cpu and item.layout is torch.strided and not item.is_quantized
