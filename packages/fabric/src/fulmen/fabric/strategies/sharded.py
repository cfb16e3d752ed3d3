"""What all strategies share that split parameters over processes: gradients, and the way to and from checkpoints."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Unpack
from weakref import ref

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.checkpoint_io.ranks import Ranks
from fulmen.fabric.class_names import class_name
from fulmen.fabric.compiled import plain_name, plain_state
from fulmen.fabric.errors import ArgumentTypeError, CheckpointKeyError, ConfigurationError
from fulmen.fabric.filesystem import get_filesystem, is_local
from fulmen.fabric.seeding import collect_rng_state, restore_rng_state
from fulmen.fabric.strategies.base import Filter, check_keys, refuse_empty, users_module
from fulmen.fabric.strategies.known_here import NotesOnModulesHere
from fulmen.fabric.strategies.parallel import Parts, ProcessGroupStrategy
from fulmen.fabric.strategies.sharded_state import (
    ParameterBook,
    empty_optimizer_state,
    load_module_state,
    load_optimizer_state,
    named_parameters,
    optimizer_state_by_name,
    parameters_of,
)
from fulmen.fabric.strategies.sharded_tensors import clamp, gather, gradients, scale, total_norm
from fulmen.fabric.types import PathLike

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


class ShardedStrategy(ProcessGroupStrategy, ABC):
    """Parameters, gradients and the state of optimizers are split over processes, as DTensors.

    A subclass splits modules in `split_module`.

    Args:
        saves_shards: Save a folder to which every process writes its shards, and not one file.
        kwargs: See `ProcessGroupStrategy`.
    """

    splits_parameters = True

    def __init__(self, *, saves_shards: bool = True, **kwargs: Unpack[Parts]) -> None:
        super().__init__(**kwargs)
        self._saves_shards = saves_shards
        self._book = ParameterBook()
        self._units: NotesOnModulesHere[list[ref[FSDPModule]]] = NotesOnModulesHere()

    @property
    def saves_shards(self) -> bool:
        """Is a checkpoint a folder to which every process writes its shards?"""
        return self._saves_shards

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """What writes and reads checkpoints."""
        return super().checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO | None) -> None:
        if io is not None and self._saves_shards and not _writes_shards(io):
            raise ConfigurationError(
                f"The checkpoint IO {type(io).__name__} was given to {type(self).__name__}, which saves folders of"
                " shards. It does not say how it writes these, so it would not be used. Override its save_sharded and"
                f" load_sharded, or let the strategy save one file: {self._how_to_save_one_file}."
            )
        self._checkpoint_io = io

    _how_to_save_one_file = ""

    # ---- set up

    @abstractmethod
    def split_module(self, module: Module) -> Module:
        """Split the parameters of the module over the processes; what is trained."""

    def module_to_device(self, module: Module) -> None:
        """Nothing: a module that fits on no device is moved while it is split."""

    def setup_module(self, module: Module) -> Module:
        """The module, its parameters split. Optimizers that were made before follow in `setup_optimizer`."""
        before = named_parameters(module)
        module = self.split_module(module)
        self._book.record(before, module)
        return module

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer, stepping the parameters that are there since the module was set up.

        Raises:
            ConfigurationError: If none of its parameters is of a module that was set up.
        """
        self._book.follow(optimizer)
        parameters = parameters_of(optimizer)
        if parameters and not any(map(self._book.knows, parameters)):
            raise ConfigurationError(
                f"{type(optimizer).__name__} has no parameter of a module that {type(self).__name__} has set up."
                " Splitting a module over processes replaces its parameters, and these would never get a gradient."
                " Set up the module first, and make the optimizer from the parameters of what setup returns."
            )
        return optimizer

    @contextmanager
    def same_random_numbers(self, *, wanted: bool) -> Iterator[None]:
        """Inside, every process draws the random numbers of rank 0. All must enter it; `wanted` on any is enough."""
        if not self.reduce_boolean_decision(wanted, all=False):
            yield
            return
        own = collect_rng_state()
        restore_rng_state(self.broadcast(own))
        try:
            yield
        finally:
            if not self.is_global_zero:
                restore_rng_state(own)

    def hooks_forward(self, module: Module) -> bool:
        """Are parameters gathered in the forward of the module itself?"""
        users: object = users_module(module)
        return any(unit is users for unit in self._units_of(module))

    def _units_of(self, module: Module) -> list[FSDPModule]:
        """The parts of the module whose parameters are gathered and reduced together; looked for once."""
        fsdp = sys.modules.get("torch.distributed.fsdp")  # imported where a module is split in this way
        if fsdp is None:
            return []
        module = users_module(module)
        if not self._units.get(module):
            self._units[module] = [ref(part) for part in module.modules() if isinstance(part, fsdp.FSDPModule)]
        return [unit for unit in (found() for found in self._units[module]) if unit is not None]

    # ---- step

    def no_backward_sync(self, module: Module, enabled: bool) -> AbstractContextManager[Any]:
        """Backward inside adds up gradients without exchanging them, if `enabled`. They stay whole, which takes memory.

        Raises:
            ArgumentTypeError: If nothing in the module exchanges gradients.
        """
        if not enabled:
            return nullcontext()
        units = self._units_of(module)
        if not units and any(parameter.requires_grad for parameter in module.parameters()):
            raise ArgumentTypeError(
                f"no_backward_sync({class_name(module)}) was called with a module in which nothing exchanges"
                " gradients. Only what fully_shard was applied to does."
                " Pass the module that setup() returned, and apply fully_shard to it."
            )
        return _without_exchange(units)

    def clip_gradients_norm(
        self,
        module: Module,
        optimizer: Optimizer,
        max_norm: float | int,
        norm_type: float | int = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor:
        """Scale the gradients of the optimizer's parameters so that their norm is at most `max_norm`; the norm before.

        The norm is that of the whole gradients, over all processes.

        Raises:
            ConfigurationError: If `norm_type` is not positive.
            RuntimeError: If the norm is not finite, unless `error_if_nonfinite` is False.
        """
        if not norm_type > 0:
            raise ConfigurationError(
                f"clip_gradients(norm_type={norm_type!r}) is no norm. Its type is a positive number."
                " Pass 2 for the Euclidean norm, or float('inf') for the largest absolute value."
            )
        self.precision.unscale_gradients(optimizer)
        found = gradients(self.precision.main_params(optimizer))
        norm = self._norm_of(found, float(norm_type))
        if error_if_nonfinite and not torch.isfinite(norm):
            raise RuntimeError(
                f"The norm of the gradients is {norm.item()}, so they cannot be clipped to {max_norm}. A loss or an"
                " activation has overflowed on some process. Pass error_if_nonfinite=False to go on, or look for it."
            )
        scale(found, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
        return norm

    def _norm_of(self, gradients: Sequence[Tensor], norm_type: float) -> Tensor:
        """The norm of all gradients taken as one, the same on every process."""
        return total_norm(gradients, norm_type, self.root_device)

    def clip_gradients_value(self, module: Module, optimizer: Optimizer, clip_val: float | int) -> None:
        """Bring every gradient of the optimizer's parameters into [-clip_val, clip_val]."""
        self.precision.unscale_gradients(optimizer)
        clamp(gradients(self.precision.main_params(optimizer)), float(clip_val))

    # ---- save and load

    def save_checkpoint(
        self,
        path: PathLike,
        state: dict[str, Any],
        storage_options: Any | None = None,
        filter: Filter | None = None,
    ) -> None:
        """Write one checkpoint: a folder to which every process writes, or a file that rank 0 writes. All must call it.

        Raises:
            ArgumentTypeError: For `storage_options`, if it is a folder.
        """
        path = self.broadcast(os.fspath(path))  # names with the time in them differ between processes
        if not self._saves_shards:
            super().save_checkpoint(path, state, storage_options, filter)
            return
        if storage_options is not None:
            raise ArgumentTypeError(
                f"storage_options={storage_options!r} cannot be used by {type(self).__name__}. They are for"
                " checkpoints of one file, and this is a folder of shards."
                f" Leave them out, or let the strategy save one file: {self._how_to_save_one_file}."
            )
        self.checkpoint_io.save_sharded(path, self._collect(state, {} if filter is None else filter))

    def load_checkpoint(
        self,
        path: PathLike,
        state: Module | Optimizer | dict[str, Any] | None = None,
        strict: bool = True,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a folder of shards or one file, saved by any number of processes; what was not asked for comes back.

        Of a folder, each process reads its own part. A file stays on the disk, and each process copies its part from
        there: beside what is loaded, memory is needed for no more than one tensor at a time.

        Args:
            path, state, strict: See `Strategy.load_checkpoint`.
            weights_only: False reads the whole file on every process, and runs what is in it: for files that you trust.
        """
        from fulmen.fabric.checkpoint_io.sharded_names import is_sharded

        refuse_empty(path, state)
        path = self.broadcast(os.fspath(path))
        self.wait_for_saves()
        if not is_sharded(path):
            return super().load_checkpoint(path, state, strict, weights_only)
        return self._load_folder(path, state, strict)

    def read_checkpoint(self, path: PathLike, weights_only: bool | None = None) -> dict[str, Any]:
        """What is in a file; its tensors are read when they are touched. All processes must call it."""
        from fulmen.fabric.checkpoint_io.lazy import lazy_load
        from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO

        if weights_only is False or type(self._writing_io()) is not TorchCheckpointIO:
            return super().read_checkpoint(path, weights_only)
        self.wait_for_saves()
        is_first = self.local_rank == 0
        with self._on_this_machine(path) as here:
            # One process of each machine compares the file with its digests; if it is damaged, all hear of it.
            return Ranks().each(lambda: lazy_load(here, verify=is_first))

    def _writing_io(self) -> CheckpointIO:
        """What writes checkpoints, in the background or not."""
        from fulmen.fabric.checkpoint_io.background import AsyncCheckpointIO

        io = self.checkpoint_io
        return io.checkpoint_io if isinstance(io, AsyncCheckpointIO) else io

    @contextmanager
    def _on_this_machine(self, path: PathLike) -> Iterator[PathLike]:
        """A local file with what is at `path`; the copy of a remote one is unlinked, and stays for who has it open."""
        if is_local(path):
            yield path
            return
        copy = os.path.join(tempfile.gettempdir(), f"fulmen-{self.broadcast(secrets.token_hex(8))}.ckpt")
        try:
            if self.local_rank == 0:
                Ranks().each(lambda: get_filesystem(path).get_file(os.fspath(path), copy))
            else:
                Ranks().each(lambda: None)
            yield copy
            self.barrier()
        finally:
            if self.local_rank == 0:
                with suppress(FileNotFoundError):
                    os.unlink(copy)

    def module_state(self, module: Module) -> dict[str, Any]:
        """The module's state dict as it is saved: split, or whole on rank 0 and empty elsewhere. All must call it."""
        state = plain_state(users_module(module))
        return state if self._saves_shards else self._whole_on_rank_zero(state)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state as it is saved: split and by name, or whole on rank 0 and empty elsewhere."""
        if self._saves_shards:
            return optimizer_state_by_name(optimizer, self._book.names(optimizer))
        return self._whole_on_rank_zero(optimizer.state_dict())

    def load_module_state_dict(self, module: Module, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load a state dict, whole or split; of what is whole, each process takes its part."""
        load_module_state(module, state_dict, strict)

    def load_optimizer_state(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        """Load an optimizer's state, whole or split, by name or number; of the whole, each process takes its part."""
        load_optimizer_state(optimizer, state_dict, lambda: self._book.names(optimizer))

    def _state_of(self, value: Any) -> Any:
        if isinstance(value, Module):
            return self.module_state(value)
        if isinstance(value, Optimizer):
            return self.optimizer_state(value)
        state = super()._state_of(value)
        return state if self._saves_shards else self._gathered(state)

    def _whole_on_rank_zero(self, state: Mapping[Any, Any]) -> dict[Any, Any]:
        whole: dict[Any, Any] = self._gathered(state)
        return whole if self.is_global_zero else {}

    def _gathered(self, value: Any) -> Any:
        """The value with whole tensors on the CPU; on all ranks but 0, None for them. All processes must call it."""
        if isinstance(value, Tensor):
            return gather(value, self.root_device, keep=self.is_global_zero)
        if isinstance(value, Mapping):
            return {name: self._gathered(part) for name, part in value.items()}
        return [self._gathered(part) for part in value] if type(value) is list else value

    def _load_folder(
        self, path: str, state: Module | Optimizer | dict[str, Any] | None, strict: bool
    ) -> dict[str, Any]:
        from fulmen.fabric.checkpoint_io.sharded_folder import ShardedFolder

        folder = ShardedFolder(path)
        paths = folder.metadata.planner_data or {name: (name,) for name in folder.metadata.state_dict_metadata}
        entries = [(paths[name], entry) for name, entry in folder.metadata.state_dict_metadata.items()]
        plain = folder.plain()
        if isinstance(state, Module | Optimizer):
            target = self._to_fill(path, state, entries, strict) or dict.fromkeys(plain)
            self.checkpoint_io.load_sharded(path, target)
            self._take(state, target, strict)
            return {}
        found = {*(place[0] for place, _ in entries), *plain}
        wanted: dict[str, Any] = dict.fromkeys(sorted(found)) if state is None else state
        check_keys(path, wanted, found, strict)
        targets: dict[str, Any] = {}
        for key in [key for key in wanted if key in found]:
            below = [(place[1:], entry) for place, entry in entries if place[0] == key]
            targets[key] = self._to_fill(f"{path}: {key}", wanted[key], below, strict)
        self.checkpoint_io.load_sharded(path, targets)
        for key, target in targets.items():
            self._fill(wanted, key, target, strict)
        return wanted if state is None else {key: value for key, value in plain.items() if key not in state}

    def _to_fill(self, where: str, value: Any, entries: list[tuple[Any, Any]], strict: bool) -> Any:
        """What is to be filled from a folder for `value`: tensors as they lie here, None for what is read whole."""
        if not any(place for place, _ in entries):
            return None  # without tensors, it is read whole
        if isinstance(value, Optimizer):
            names = self._book.names(value)
            parameters = dict(zip(names, parameters_of(value), strict=True))
            return empty_optimizer_state(entries, parameters)
        if isinstance(value, Module):
            users = users_module(value)
            here = plain_state(users)
            there = {plain_name(users, str(place[0])): place[0] for place, _ in entries}
            _check_names(where, here, set(there), strict)
            return {there[name]: value for name, value in here.items() if name in there}
        return None

    def _take(self, value: Module | Optimizer, loaded: dict[str, Any], strict: bool) -> None:
        if isinstance(value, Module):
            self.load_module_state_dict(value, loaded, strict=strict)
        else:
            self.load_optimizer_state(value, loaded)


def _writes_shards(io: CheckpointIO) -> bool:
    from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO

    return isinstance(io, TorchCheckpointIO) or type(io).save_sharded is not CheckpointIO.save_sharded


def _check_names(where: str, here: Iterable[str], there: set[str], strict: bool) -> None:
    missing, unexpected = [name for name in here if name not in there], sorted(there - set(here))
    if strict and (missing or unexpected):
        raise CheckpointKeyError(
            f"{where!r} is the state of another module: it does not hold {missing[:10]}, and holds {unexpected[:10]}"
            " beside what is asked for. Every name has to be on both sides."
            " Build the module as it was when it was saved, or pass strict=False."
        )


@contextmanager
def _without_exchange(units: list[FSDPModule]) -> Iterator[None]:
    _set_exchange(units, False)
    try:
        yield
    finally:
        _set_exchange(units, True)


def _set_exchange(units: list[FSDPModule], enabled: bool) -> None:
    for unit in units:
        unit.set_requires_gradient_sync(enabled, recurse=False)
        # Until the last backward, what a backward prepares for the next is kept.
        unit.set_is_last_backward(enabled)
