"""What torch_xla's wrapper has split, to files and back: one file per process in a folder, or whole weights in one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.checkpoint_io.commit import FolderAside
from fulmen.fabric.checkpoint_io.exchange import restore_replaced
from fulmen.fabric.errors import CheckpointError, CheckpointNotFoundError
from fulmen.fabric.filesystem import get_filesystem, is_dir, is_local, local_path
from fulmen.fabric.optional_packages import require
from fulmen.fabric.printable import printable_names
from fulmen.fabric.strategies.base import check_keys, refuse_empty
from fulmen.fabric.types import PathLike, Stateful

T = TypeVar("T")
# In the file of each process, beside the keys of the state: how what it holds was split.
_SPLIT = "shard_metadata"
# Written last, and removed first: who finds it, finds all the others.
_COMPLETE = "complete.ckpt"


class Writer(Protocol):
    """What is asked of a strategy here."""

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """Writes and reads files."""

    @property
    def global_rank(self) -> int:
        """Of this process."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    def barrier(self, name: str | None = None) -> None:
        """Wait until all processes are here."""

    def gather_objects(self, obj: T) -> list[T]:
        """The `obj` of every process."""

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """The `obj` of one process."""

    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        """The tensors of all processes, on a new first axis."""


def is_wrapped(module: object) -> bool:
    """Is it what torch_xla's wrapper made of a module?"""
    fsdp: Any = require("torch_xla.distributed.fsdp", purpose="XLAFSDPStrategy()", pip="torch_xla")
    return isinstance(module, fsdp.XlaFullyShardedDataParallel)


def file_of(path: PathLike, rank: int, world_size: int) -> str:
    """The file of one process in the folder `path`."""
    return os.path.join(os.fspath(path), f"checkpoint_rank-{rank:08d}-of-{world_size:08d}.pth")


def write_shards(
    writer: Writer, path: PathLike, state: dict[str, Any], module: Any, *, one_by_one: bool, options: Any
) -> None:
    """Write the folder `path`: each process its file, and then one that says that all are there.

    A local folder is written aside, and takes its place when all of it is on the disk: what was there before is there
    until then. On a remote storage it is incomplete from the first to the last file.

    Args:
        writer: Of this process.
        path: The folder.
        state: What this process has.
        module: The wrapped one.
        one_by_one: Let the processes write one after the other.
        options: For the checkpoint IO.

    Raises:
        CheckpointError: On every process, if one of them fails.
    """
    io, rank = writer.checkpoint_io, writer.global_rank
    aside: FolderAside | None = None
    with _Together(writer) as together, together.keeping():
        if rank == 0:
            aside = _begin(path)
    place: str = writer.broadcast(os.fspath(path) if aside is None else aside.place)
    own = {**state, _SPLIT: _plain(module.get_shard_metadata())}
    try:
        with _Together(writer) as together:
            for turn in range(writer.world_size if one_by_one else 1):
                if not one_by_one or turn == rank:
                    with together.keeping():
                        io.save_checkpoint(own, file_of(place, rank, writer.world_size), options)
                        io.wait()  # one that saves in the background
                if one_by_one:
                    writer.barrier(f"shard {turn}")
        with _Together(writer) as together, together.keeping():
            if rank == 0:
                io.save_checkpoint({"world_size": writer.world_size}, os.path.join(place, _COMPLETE), options)
                io.wait()
                if aside is not None:
                    aside.commit(set())
    except BaseException:
        if aside is not None:
            aside.abandon()
        raise


def _begin(path: PathLike) -> FolderAside | None:
    if is_local(path):
        return FolderAside.begin(path)
    with suppress(FileNotFoundError):
        get_filesystem(path).rm_file(os.path.join(os.fspath(path), _COMPLETE))
    return None


class _Together:
    """At its end all processes have done their part, or all of them raise: nobody waits for one that has failed."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._error: Exception | None = None

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside, an error is kept until the end."""
        try:
            yield
        except Exception as error:
            self._error = error

    def __enter__(self) -> _Together:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        told = self._writer.gather_objects(
            None if self._error is None else f"{type(self._error).__name__}: {self._error}"
        )
        if self._error is not None:
            raise self._error
        for rank, text in enumerate(told):
            if text is not None:
                raise CheckpointError(
                    f"The checkpoint was not written, because process {rank} failed. It said: {text} Mend what stopped"
                    " it, and save again; a local checkpoint that was at the path before is unchanged."
                )


def read_shards(
    writer: Writer,
    path: PathLike,
    state: Module | Optimizer | dict[str, Any] | None,
    *,
    strict: bool,
    weights_only: bool | None,
) -> dict[str, Any]:
    """Fill `state` from the file of this process; what was not asked for comes back.

    Raises:
        CheckpointNotFoundError: If there is no such folder.
        CheckpointError: If it is not complete, or was written by another number of processes.
    """
    refuse_empty(path, state)
    if is_local(path):
        restore_replaced(os.path.abspath(local_path(path)))
    if not is_dir(path):
        raise CheckpointNotFoundError(
            f"There is no folder {os.fspath(path)!r}. XLAFSDPStrategy(state_dict_type='sharded') reads what it wrote, a"
            " folder with a file of each process. Check the path; a single file is read with state_dict_type='full'."
        )
    io = writer.checkpoint_io
    try:
        written_by = io.load_checkpoint(os.path.join(os.fspath(path), _COMPLETE))["world_size"]
    except CheckpointNotFoundError as error:
        raise CheckpointError(
            f"The folder {os.fspath(path)!r} is not complete. The file that is written last, {_COMPLETE!r}, is not"
            " there, so the shards of some process may be missing. Load an older checkpoint."
        ) from error
    if written_by != writer.world_size:
        raise CheckpointError(
            f"The folder {os.fspath(path)!r} was written by {written_by} processes, and there are"
            f" {writer.world_size}. The shards of torch_xla's wrapper fit as many as they were made for."
            f" Run {written_by} processes; with state_dict_type='full' or spmd=True, weights fit any number."
        )
    held = io.load_checkpoint(file_of(path, writer.global_rank, writer.world_size), weights_only=weights_only)
    held.pop(_SPLIT)
    if state is None:
        return held
    wanted: dict[str, Any] = state if isinstance(state, dict) else {_only(held, state): state}
    check_keys(path, wanted, held, strict)
    for key in [key for key in wanted if key in held]:
        _fill(wanted, key, held.pop(key), strict)
    return held if isinstance(state, dict) else {}


def gather_whole(writer: Writer, shards: Mapping[str, Tensor], module: Any) -> dict[str, Any]:
    """The whole weights, on the CPU, under the names of the user's own module. All processes must call it.

    Args:
        writer: Of this process.
        shards: The state dict of the wrapped module.
        module: The wrapped one.
    """
    tools: Any = require("torch_xla.distributed.fsdp.state_dict_utils", purpose="XLAFSDPStrategy()", pip="torch_xla")
    of_ranks: list[dict[str, Tensor]] = [{} for _ in range(writer.world_size)]
    for name, shard in shards.items():
        parts = writer.all_gather(shard).cpu() if writer.world_size > 1 else shard.detach().cpu().unsqueeze(0)
        for of_rank, part in zip(of_ranks, parts, strict=True):
            of_rank[name] = part
    return dict(tools.consolidate_sharded_state_dicts(of_ranks, module.get_shard_metadata()))


def write_whole(writer: Writer, path: PathLike, state: dict[str, Any], *, options: Any) -> None:
    """Write one file, from rank 0.

    Raises:
        CheckpointError: On every process, if it fails.
    """
    with _Together(writer) as together, together.keeping():
        if writer.global_rank == 0:
            writer.checkpoint_io.save_checkpoint(state, path, options)


def _plain(value: Any) -> Any:
    """Without classes that a checkpoint would have to name."""
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _only(held: Mapping[str, Any], state: Module | Optimizer) -> str:
    """The name of what a bare module or optimizer is to be filled from."""
    is_module = isinstance(state, Module)
    found = [
        key for key, value in held.items() if isinstance(value, Mapping) and ("param_groups" in value) != is_module
    ]
    return found[0] if len(found) == 1 else "model" if is_module else "optimizer"


def _fill(wanted: dict[str, Any], key: str, loaded: Any, strict: bool) -> None:
    value = wanted[key]
    load: Callable[..., Any] | None = getattr(value, "load_state_dict", None)
    if isinstance(value, Module):
        with printable_names(loaded):
            value.load_state_dict(loaded, strict=strict)
    elif load is not None and isinstance(value, Stateful | Optimizer):
        load(loaded)
    else:
        wanted[key] = loaded
