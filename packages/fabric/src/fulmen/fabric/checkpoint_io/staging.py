"""A copy of a state in memory, made fast: into memory that was used before, by several threads."""

from __future__ import annotations

import copy
import mmap
import os
from collections import deque
from collections.abc import Iterable, Mapping
from threading import Thread
from typing import Any

import torch
from torch import Tensor

_MAX_THREADS = 4
_PIECE_NUM_BYTES = 16 * 2**20
# Where a copied tensor may begin; what `torch.save` itself aligns to.
_ALIGNMENT = 64


class Staging:
    """Memory for one copy of a state. The next copy overwrites the last one.

    Fresh memory costs more than twice as much as the copying itself, so it is kept until `release`.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """`state` as it is now; its tensors on the CPU, those that share memory still do.

        Raises:
            TypeError: If something in it cannot be copied.
        """
        tensors = list({id(tensor): tensor for tensor in _tensors(state)}.values())
        copies = self.copy_tensors(tensors)
        # Everything else may change too, wherever it is nested.
        memo = {id(tensor): copied for tensor, copied in zip(tensors, copies, strict=True)}
        return copy.deepcopy(state, memo)

    def copy_tensors(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Tensors as they are now, on the CPU."""
        tensors = list(tensors)
        places: dict[tuple[Any, ...], tuple[int, torch.UntypedStorage]] = {}
        num_bytes = 0
        for tensor in filter(_is_plain, tensors):
            storage = tensor.untyped_storage()
            if _key(storage) not in places:
                places[_key(storage)] = (num_bytes, storage)
                num_bytes += -(-storage.nbytes() // _ALIGNMENT) * _ALIGNMENT
        memory = self._room(num_bytes, any(storage.device.type == "cuda" for _, storage in places.values()))
        copied: dict[tuple[Any, ...], torch.UntypedStorage] = {}
        pieces: deque[tuple[Tensor, Tensor]] = deque()
        for key, (start, storage) in places.items():
            copied[key] = memory.untyped_storage()[start : start + storage.nbytes()]
            pieces.extend(_pieces(_as_bytes(copied[key]), _as_bytes(storage)))
        _copy_in_threads(pieces)
        if torch.cuda.is_initialized() and memory.is_pinned():
            torch.cuda.synchronize()
        return [_rebuilt(tensor, copied) if _is_plain(tensor) else _copy_whole(tensor) for tensor in tensors]

    def release(self) -> None:
        """Give the memory back, once nothing uses the copy any more."""
        self._memory = None

    def _room(self, num_bytes: int, is_pinned: bool) -> Tensor:
        if self._memory is None or self._memory.numel() < num_bytes or (is_pinned and not self._memory.is_pinned()):
            self._memory = None
            self._memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True) if is_pinned else _new(num_bytes)
        return self._memory


def _new(num_bytes: int) -> Tensor:
    if not hasattr(mmap, "MAP_ANONYMOUS") or num_bytes == 0:
        return torch.empty(num_bytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Half the cost of the first copy is the system handing out pages of 4 KiB.
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _is_plain(tensor: Tensor) -> bool:
    is_known = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    return is_known and not (tensor.is_quantized or tensor.is_meta or tensor.is_conj() or tensor.is_neg())


def _key(storage: torch.UntypedStorage) -> tuple[Any, ...]:
    return storage.device, storage.data_ptr(), storage.nbytes()


def _as_bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _pieces(target: Tensor, source: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(target.split(_PIECE_NUM_BYTES), source.split(_PIECE_NUM_BYTES), strict=True) if len(source) else ()


def _copy_in_threads(pieces: deque[tuple[Tensor, Tensor]]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while True:
                target, source = pieces.popleft()
                target.copy_(source, non_blocking=source.is_cuda)
        except IndexError:
            return
        except BaseException as error:
            failures.append(error)

    num_threads = min(_MAX_THREADS, os.cpu_count() or 1, len(pieces))
    threads = [Thread(target=run, name="fulmen-staging") for _ in range(num_threads - 1)]
    for thread in threads:
        thread.start()
    run()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _rebuilt(tensor: Tensor, copied: dict[tuple[Any, ...], torch.UntypedStorage]) -> Tensor:
    storage = copied[_key(tensor.untyped_storage())]
    with torch.no_grad():
        plain = torch.empty(0, dtype=tensor.dtype)
        plain.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
    if type(tensor) is torch.nn.Parameter:
        return torch.nn.Parameter(plain, tensor.requires_grad)
    return plain.requires_grad_(tensor.requires_grad)


def _copy_whole(tensor: Tensor) -> Tensor:
    copied: Tensor = copy.deepcopy(tensor.detach()).cpu()
    return copied
