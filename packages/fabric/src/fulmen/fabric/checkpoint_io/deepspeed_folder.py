"""A checkpoint in the layout of DeepSpeed: read whole tensors by name, whatever number of processes wrote it.

| file | holds |
| --- | --- |
| `latest` | the name of the folder with the other files |
| `mp_rank_00_model_states.pt` | the module, and what the run saved beside it; with ZeRO 3 one file for each process |
| `*zero_pp_rank_<rank>_mp_rank_00_optim_states.pt` | with ZeRO: flat pieces of master weights and optimizer state |
| `gradients_rank_<rank>.pt` | ours, inside an accumulation window: what the engine had added up |

Reads tensors and plain data only, without the package deepspeed: objects of its classes become `Opaque` ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fulmen.fabric.checkpoint_io.deepspeed_files import Opaque, damaged, read_file
from fulmen.fabric.checkpoint_io.exchange import restore_replaced
from fulmen.fabric.checkpoint_io.sharded_names import LATEST, TAG
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.errors import CheckpointDamagedError, CheckpointError, CheckpointNotFoundError
from fulmen.fabric.filesystem import is_local, join, list_dir, local_path
from fulmen.fabric.types import PathLike

# What the engine writes of itself beside the module.
OWN_KEYS = frozenset(
    {
        "buffer_names",
        "checkpoint_parallel_dimensions",
        "data_sampler",
        "dp_world_size",
        "ds_config",
        "ds_version",
        "frozen_param_fragments",
        "frozen_param_shapes",
        "global_samples",
        "global_steps",
        "lr_scheduler",
        "module",
        "mp_world_size",
        "optimizer",
        "param_shapes",
        "random_ltd",
        "shared_params",
        "skipped_steps",
        "universal_checkpoint_info",
    }
)
# Where entries of a state stand that are called as those of the engine.
RENAMED = "fulmen_renamed"
_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_GRADIENTS = re.compile(r"gradients_rank_(\d+)\.pt")
_OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")


def gradients_file(rank: int) -> str:
    """The file with what the engine of one process had added up."""
    return f"gradients_rank_{rank}.pt"


@dataclass(frozen=True)
class _Piece:
    """Where the numbers of one parameter stand in flat tensors of all processes."""

    shape: torch.Size
    group: int  # of flat tensors
    start: int
    end: int  # with ZERO 1 and 2 in the tensors of all processes behind each other, with 3 in that of each


class DeepSpeedFolder:
    """A folder that an engine of DeepSpeed wrote, by ours, by Lightning or by DeepSpeed alone.

    Args:
        path: The folder, local.
        tag: The name of the inner folder; by default the one that `latest` names.
        trusted: Let its files bring any class, and run code.

    Raises:
        CheckpointNotFoundError: If there is no such checkpoint.
        CheckpointError: If it is at another place than this machine.
    """

    def __init__(self, path: PathLike, tag: str | None = None, *, trusted: bool = False) -> None:
        self.path = os.fspath(path)
        self._trusted = trusted
        if not is_local(path):
            raise CheckpointError(
                f"The checkpoint {self.path!r} is not on this machine, and DeepSpeed reads and writes local files only."
                " Copy the folder here, or let the run save under a local path."
            )
        restore_replaced(os.path.abspath(local_path(path)))
        self.place = inner_folder(path, tag)
        names = list_dir(self.place)
        model = [(int(found[1] or 0), name) for name in names if (found := _MODEL.fullmatch(name))]
        gradients = [(int(found[1]), name) for name in names if (found := _GRADIENTS.fullmatch(name))]
        optimizer = [(int(found[1]), name) for name in names if (found := _OPTIMIZER.fullmatch(name))]
        if not model:
            raise CheckpointNotFoundError(
                f"There is no checkpoint of DeepSpeed at {self.path!r}: {self.place!r} has no file *_model_states.pt."
                " Check the path."
            )
        self._model_files = [name for _, name in sorted(model)]
        self._optimizer_files = [name for _, name in sorted(optimizer)]
        self.gradient_files = [name for _, name in sorted(gradients)]

    def file_names(self) -> list[str]:
        """The files of tensors, below `place`."""
        return [*self._model_files, *self._optimizer_files, *self.gradient_files]

    def gradients(self, rank: int) -> dict[str, Any]:
        """What one process had added up inside an accumulation window; there are `gradient_files`."""
        found: dict[str, Any] = self._read(gradients_file(rank))
        return found

    def verify(self) -> None:
        """Read every file once, and compare it with its SHA-256.

        Raises:
            CheckpointDamagedError: If a byte is not what was written, or a file is missing.
        """
        for name in self.file_names():
            read_file(join(self.place, name))
        self._check_complete()

    @cached_property
    def model_states(self) -> dict[str, Any]:
        """What the first process wrote of the module."""
        state: dict[str, Any] = self._read(self._model_files[0])
        if not isinstance(state, dict) or "module" not in state:
            raise damaged(join(self.place, self._model_files[0]), "it holds no module")
        return state

    @property
    def world_size(self) -> int:
        """How many processes wrote it."""
        return int(self.model_states.get("dp_world_size") or max(1, len(self._optimizer_files)))

    @cached_property
    def stage(self) -> int:
        """Of ZeRO; 0 is none."""
        if not self._optimizer_files:
            return 0
        # That of bf16 with sums of gradients in 32 bit is for stage 1 only, and does not say so.
        saved = self._first_optimizer.get("zero_stage", 1)
        return int(saved.values[0] if isinstance(saved, Opaque) else saved)

    @property
    def is_split(self) -> bool:
        """Are there flat pieces of master weights?"""
        return bool(self._optimizer_files)

    def client_state(self) -> dict[str, Any]:
        """What the run saved beside module and optimizer."""
        state = {key: value for key, value in self.model_states.items() if key not in OWN_KEYS}
        state.update(state.pop(RENAMED, {}))
        return state

    def scaler(self) -> dict[str, Any]:
        """The numbers of the loss scaler; empty without ZeRO."""
        found = self._first_optimizer.get("loss_scaler") if self._optimizer_files else None
        return {name: value for name, value in vars(found).items() if name != "values"} if found is not None else {}

    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the torch optimizer, with their options."""
        groups: list[dict[str, Any]] = self._inner_states[0]["param_groups"]
        return groups

    def trained(self) -> list[str]:
        """The names of the parameters of which there are master weights."""
        return list(self._pieces)

    def weights(self) -> dict[str, Tensor]:
        """The whole module, by the names of its state dict: master weights in 32 bit, what is frozen, and buffers."""
        states = self.model_states
        if not self.is_split:
            return dict(states["module"])
        found = self.untrained()
        found.update((name, self.weight(name)) for name in self._pieces)
        for name, other in dict(states.get("shared_params") or {}).items():
            if other in found:
                found[name] = found[other]
        # In the order of the module, where that is known.
        order = [name for name in states["module"] or () if name in found]
        return {name: found[name] for name in dict.fromkeys([*order, *found])}

    def untrained(self) -> dict[str, Tensor]:
        """Buffers and frozen parameters."""
        states = self.model_states
        if self.stage == 3:
            found = {name: states["module"][name] for name in states.get("buffer_names") or ()}
        else:
            trained = {*self._pieces, *(states.get("shared_params") or ())}
            found = {name: value for name, value in states["module"].items() if name not in trained}
        found = {name: value.float() if value.is_floating_point() else value for name, value in found.items()}
        return {**found, **self._frozen()}

    def weight(self, name: str) -> Tensor:
        """The master weights of one parameter."""
        return self._whole(self._pieces[name], self._masters)

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """The state of the optimizer for one parameter: whole tensors, and numbers that stand for all of it."""
        piece = self._pieces[name]
        index = self._state_index[piece.group]
        states = [state["state"].get(index, {}) for state in self._inner_states]
        found: dict[str, Any] = {}
        for key, value in states[0].items():
            if isinstance(value, Tensor) and value.ndim:
                of_groups = [{piece.group: state[key].reshape(-1)} for state in states]
                found[key] = self._whole(piece, of_groups)
            else:
                found[key] = value
        return found

    # ---- flat tensors

    def _read(self, name: str) -> Any:
        return read_file(join(self.place, name), trusted=self._trusted)

    @cached_property
    def _first_optimizer(self) -> dict[str, Any]:
        """That of one process says what is the same in all: reading those of the others takes long."""
        state: dict[str, Any] = self._read(self._optimizer_files[0])["optimizer_state_dict"]
        return state

    @cached_property
    def _optimizers(self) -> list[dict[str, Any]]:
        others = (self._read(name)["optimizer_state_dict"] for name in self._optimizer_files[1:])
        return [self._first_optimizer, *others]

    @cached_property
    def _inner_states(self) -> list[dict[str, Any]]:
        self._check_complete()
        key = "optimizer_state_dict" if self.stage == 3 else "base_optimizer_state"
        states = [state.get(key) for state in self._optimizers]
        if not all(isinstance(state, dict) for state in states):
            raise CheckpointError(
                f"The checkpoint {self.path!r} was written with zero_optimization.elastic_checkpoint, an older form of"
                " DeepSpeed that holds the optimizer's state otherwise. Its weights can be read, and its optimizer"
                " cannot. Load it with the program that wrote it, and save it without that key."
            )
        return states  # type: ignore[return-value]  # seen above

    @cached_property
    def _masters(self) -> list[dict[int, Tensor]]:
        """For each process, its flat tensors."""
        self._check_complete()
        key = "fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups"
        return [{index: flat.reshape(-1) for index, flat in enumerate(state[key])} for state in self._optimizers]

    @cached_property
    def _state_index(self) -> dict[int, int]:
        """For each group of flat tensors, its number in the state of the torch optimizer."""
        numbers = [index for group in self.param_groups() for index in group["params"]]
        return dict(enumerate(numbers))

    @cached_property
    def _pieces(self) -> dict[str, _Piece]:
        shapes = self.model_states.get("param_shapes") or []
        if not self.is_split:
            return {}
        return dict(self._pieces_of_each(shapes) if self.stage == 3 else self._pieces_of_all(shapes))

    def _pieces_of_all(self, shapes: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, _Piece]]:
        """ZeRO 1 and 2: all parameters of a group stand behind each other, and that is cut into equal parts."""
        paddings = self._first_optimizer.get("param_alignment_paddings")
        for group, of_group in enumerate(shapes):
            at = 0
            for place, (name, size) in enumerate(of_group.items()):
                shape = torch.Size(size)
                yield name, _Piece(shape, group, at, at + shape.numel())
                at += shape.numel() + (paddings[group][place] if paddings else 0)

    def _pieces_of_each(self, shapes: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, _Piece]]:
        """ZeRO 3: each parameter is cut into equal parts, and the parts of a process stand behind each other."""
        sizes = [flat.numel() for flat in self._masters[0].values()]
        group, at = 0, 0
        for name, size in ((name, size) for of_group in shapes for name, size in of_group.items()):
            shape = torch.Size(size)
            part = -(-shape.numel() // self.world_size)
            while group < len(sizes) and at + part > sizes[group]:
                group, at = group + 1, 0
            yield name, _Piece(shape, group, at, at + part)
            at += part

    def _whole(self, piece: _Piece, of_processes: list[dict[int, Tensor]]) -> Tensor:
        flats = [groups[piece.group] for groups in of_processes]
        if self.stage == 3:
            parts = [flat[piece.start : piece.end] for flat in flats]
            return torch.cat(parts)[: piece.shape.numel()].view(piece.shape)
        parts, begin = [], 0
        for flat in flats:
            end = begin + flat.numel()
            if begin < piece.end and piece.start < end:
                parts.append(flat[max(0, piece.start - begin) : piece.end - begin])
            begin = end
        return torch.cat(parts).view(piece.shape) if parts else torch.empty(piece.shape)

    def _frozen(self) -> dict[str, Tensor]:
        """What stage 3 has split, though it is not trained."""
        states = self.model_states
        shapes = dict(states.get("frozen_param_shapes") or {})
        if not shapes or self.stage != 3:
            return {}
        others = [self._read(name) for name in self._model_files[1:]]
        fragments = [state["frozen_param_fragments"] for state in (states, *others)]
        return {
            name: torch.cat([part[name].reshape(-1) for part in fragments])[: torch.Size(size).numel()].view(size)
            for name, size in shapes.items()
        }

    def _check_complete(self) -> None:
        missing = self.world_size - len(self._optimizer_files)
        if self.is_split and missing:
            raise CheckpointDamagedError(
                f"The checkpoint {self.path!r} is damaged: {self.world_size} processes wrote it, and the files of"
                f" {missing} are missing. Each holds a part of every tensor."
                " Copy the folder again from where it came, or load an earlier one."
            )


def inner_folder(path: PathLike, tag: str | None = None) -> str:
    """The folder with the files: that of `tag`, that which `latest` names, or `path` itself.

    Raises:
        CheckpointNotFoundError: If there is none.
    """
    folder = local_path(path)
    if tag is None and os.path.isfile(os.path.join(folder, LATEST)):
        with open(os.path.join(folder, LATEST), encoding="utf-8") as file:
            tag = file.read().strip()
    if tag is None:
        tag = TAG if os.path.isdir(os.path.join(folder, TAG)) else ""
    place = os.path.join(folder, tag) if tag else folder
    if not os.path.isdir(place):
        raise CheckpointNotFoundError(
            f"There is no checkpoint of DeepSpeed at {os.fspath(path)!r}: {place!r} is no folder. The path was looked"
            f" up as given, relative to {os.getcwd()!r} if it is not absolute. Check the path and the tag."
        )
    return place


# What says how a run of an engine goes on: without its folder, nobody can.
_OF_ENGINES = frozenset(("optimizer_states", "lr_schedulers", "callbacks", "state_dict"))


def convert_zero_checkpoint_to_fp32_state_dict(
    checkpoint_dir: PathLike, output_file: PathLike, tag: str | None = None
) -> dict[str, Any]:
    """Make one file of a folder of DeepSpeed: the weights in 32 bit, and what the run saved beside; what is in it.

    Nothing in it is pickled but tensors and plain data, and the package deepspeed is not needed.

    Args:
        checkpoint_dir: The folder.
        output_file: The file; the weights stand under "state_dict" there.
        tag: The name of the inner folder; by default the one that `latest` names.

    Raises:
        CheckpointNotFoundError, CheckpointDamagedError, CheckpointError: As `DeepSpeedFolder`.
    """
    found = DeepSpeedFolder(checkpoint_dir, tag)
    state = {key: value for key, value in found.client_state().items() if key not in _OF_ENGINES}
    state["state_dict"] = found.weights()
    TorchCheckpointIO().save_checkpoint(state, output_file)
    return state


def ds_checkpoint_dir(checkpoint_dir: PathLike, tag: str | None = None) -> str:
    """The inner folder with the files: that of `tag`, or that which `latest` names.

    Raises:
        CheckpointNotFoundError: If there is none.
    """
    return inner_folder(checkpoint_dir, tag)
