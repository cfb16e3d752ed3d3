"""The state of an engine of DeepSpeed to and from its folder: whole or not at all, and nothing in it is run.

Read by as many processes as wrote it, each takes its own file. Read by others, or with another stage of ZeRO, each
takes its part of every tensor, by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module

from fulmen.fabric.checkpoint_io.commit import FolderAside, storage_failures
from fulmen.fabric.checkpoint_io.deepspeed_folder import (
    KNOWN_CLASSES,
    OWN_KEYS,
    RENAMED,
    DeepSpeedFolder,
    read_file,
    write_file,
)
from fulmen.fabric.checkpoint_io.ranks import Ranks
from fulmen.fabric.checkpoint_io.safe import CANNOT_PICKLE, cannot_be_saved
from fulmen.fabric.checkpoint_io.sharded_names import TAG
from fulmen.fabric.errors import CheckpointError, CheckpointKeyError, ConfigurationError
from fulmen.fabric.filesystem import is_local, sync_dir
from fulmen.fabric.types import PathLike


class SafeFiles:
    """Takes the place of an engine's own writer and reader of files: only tensors and plain data come in and out.

    A failure while writing is kept until all processes have written: raised at once, it would leave the others waiting.
    """

    name = "SafeFiles"

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.trusted = False  # may the files that are read now run code?

    def create(self, info: Any) -> None:
        """A checkpoint begins."""
        self.failure = None

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder."""
        os.makedirs(path, exist_ok=exist_ok)

    def save(self, state_dict: Mapping[str, Any], path: str) -> None:
        """Write one file."""
        try:
            with storage_failures(path):
                write_file(path, dict(state_dict))
        except CANNOT_PICKLE as error:
            self.failure = self.failure or cannot_be_saved(path, state_dict, str(error))
        except Exception as error:
            self.failure = self.failure or error

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file."""
        return read_file(path, let_in=_known_classes(), trusted=self.trusted)

    def commit(self, info: Any) -> bool:
        """All files were asked for."""
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        """Does this process write what all have?"""
        return dp_rank == 0

    def is_decoupled(self) -> bool:
        """Does it write in the background? No."""
        return False

    def set_commit_info(self, info: Any) -> None:
        """Nothing is to be remembered."""

    def get_commit_info(self) -> None:
        """Nothing is remembered."""

    def cleanup(self) -> None:
        """Nothing is held."""

    def raise_failure(self) -> None:
        """Raise what went wrong since `create`."""
        if self.failure is not None:
            raise self.failure


def _known_classes() -> list[Any]:
    parts = [name.rpartition(".") for name in KNOWN_CLASSES]
    return [getattr(import_module(module), name) for module, _, name in parts]


def save_engine(engine: Any, path: PathLike, state: Mapping[str, Any], *, exclude_frozen: bool) -> None:
    """Write module and optimizer of an engine, and `state`, to the folder `path`. Every process must call it.

    Raises:
        CheckpointError: On every process, if one of them fails; what was at `path` before is unchanged.
    """
    ranks, files = Ranks(), engine.checkpoint_engine
    check_local(path)
    renamed = {key: value for key, value in state.items() if key in OWN_KEYS}
    client = {key: value for key, value in state.items() if key not in OWN_KEYS}
    aside = ranks.on_zero(lambda: FolderAside.begin(path))
    try:
        engine.save_checkpoint(
            aside.place,
            tag=TAG,
            client_state={**client, RENAMED: renamed} if renamed else client,
            exclude_frozen_parameters=exclude_frozen,
        )
        ranks.each(files.raise_failure)
        ranks.on_zero(lambda: _finish(aside))
    except BaseException:
        if ranks.is_zero:
            aside.abandon()
        raise


def check_local(path: PathLike) -> None:
    """Refuse a path on another machine.

    Raises:
        CheckpointError: Quoting it.
    """
    if not is_local(path):
        raise CheckpointError(
            f"The checkpoint {os.fspath(path)!r} cannot be written there: DeepSpeed reads and writes local files only."
            " Pass a local path that all processes reach, and copy the folder afterwards."
        )


def _finish(aside: FolderAside) -> None:
    with storage_failures(aside.path):
        for name in os.listdir(aside.place):
            place = os.path.join(aside.place, name)
            if os.path.isdir(place):
                sync_dir(place)
            else:
                with open(place, "rb") as file:
                    os.fsync(file.fileno())
    aside.commit(set())


class WholeTensors(Protocol):
    """Master weights and optimizer state by the names of parameters, whole; read one at a time."""

    def trained(self) -> list[str]:
        """Of which parameters there are master weights."""

    def weight(self, name: str) -> Tensor:
        """The master weights of one."""

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """The state of the optimizer for one; empty where it has none."""

    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the optimizer; their "params" do not matter."""


class OneFile:
    """`WholeTensors` of a checkpoint that one file holds.

    Args:
        weights: The state dict of the module.
        optimizer: The state dict of a torch optimizer; None where only weights are wanted.
        names: Of the parameters, in the order of the optimizer.
    """

    def __init__(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any] | None, names: list[str]) -> None:
        self._weights, self._optimizer = weights, optimizer
        saved = [] if optimizer is None else [index for group in optimizer["param_groups"] for index in group["params"]]
        if optimizer is not None and len(saved) != len(names):
            raise CheckpointError(
                f"The checkpoint holds the optimizer's state of {len(saved)} parameters, and it has {len(names)}. Which"
                " belongs to which cannot be known. Build module and optimizer as they were when it was saved, or load"
                " the weights alone."
            )
        self._index = dict(zip(names, saved, strict=False))

    def trained(self) -> list[str]:
        """All names."""
        return list(self._weights)

    def weight(self, name: str) -> Tensor:
        """What the file holds."""
        return self._weights[name]

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """What the file holds, by the number of the parameter."""
        if self._optimizer is None:
            return {}
        found: dict[str, Any] = self._optimizer["state"].get(self._index[name], {})
        return found

    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the file."""
        return [] if self._optimizer is None else list(self._optimizer["param_groups"])


def load_engine(engine: Any, path: PathLike, *, strict: bool, trusted: bool = False) -> dict[str, Any]:
    """Read the folder `path` into an engine that trains; what was saved beside it. Every process must call it.

    Raises:
        CheckpointNotFoundError, CheckpointDamagedError, CheckpointError: See `DeepSpeedFolder`.
        CheckpointKeyError: If `strict` and the module has other parameters.
    """
    folder = DeepSpeedFolder(path, trusted=trusted)
    stage = engine.zero_optimization_stage()
    if (folder.stage == 0) != (stage == 0):
        saved = f"ZeRO stage {folder.stage}" if folder.stage else "no ZeRO"
        raise ConfigurationError(
            f"The checkpoint {os.fspath(path)!r} was saved with {saved}, and this run has stage={stage}. With ZeRO, the"
            " optimizer is held in pieces, and without in another form. Pass the stage of then, or one of 1, 2, 3"
            " instead of each other; or load the weights alone."
        )
    if stage == 0 or (folder.stage == stage and folder.world_size == Ranks().world_size):
        place, tag = os.path.split(folder.place)
        engine.checkpoint_engine.trusted = trusted
        engine.load_checkpoint(place, tag=tag, load_module_strict=strict)
        return folder.client_state()
    load_whole(engine, folder, strict=strict)
    load_untrained(engine.module, folder.untrained())
    states = folder.model_states
    for name in ("global_steps", "skipped_steps", "global_samples"):
        setattr(engine, name, states.get(name, 0))
    scaler = vars(engine.optimizer.loss_scaler)
    scaler.update({name: value for name, value in folder.scaler().items() if name in scaler})
    return folder.client_state()


def load_whole(engine: Any, source: WholeTensors, *, strict: bool = True) -> None:
    """Give an engine with ZeRO its parts of whole tensors.

    Raises:
        CheckpointKeyError: If `strict` and one side has parameters that the other has not.
        CheckpointError: If the optimizer has another number of groups.
    """
    optimizer, rank, world_size = engine.optimizer, Ranks().rank, Ranks().world_size
    is_split = engine.zero_optimization_stage() == 3
    groups: list[list[Any]] = optimizer.fp16_groups if is_split else optimizer.round_robin_bit16_groups
    names = [[engine.param_names[parameter] for parameter in group] for group in groups]
    there = set(source.trained())
    missing = [name for group in names for name in group if name not in there]
    if missing and strict:
        raise CheckpointKeyError(
            f"The checkpoint does not hold {', '.join(map(repr, missing[:10]))}, which this module trains. Every"
            " parameter has to be there. Build the module as it was when it was saved, or load with strict=False."
        )
    own = optimizer.state_dict()
    masters_key = "fp32_flat_groups" if is_split else "single_partition_of_fp32_groups"
    inner_key = "optimizer_state_dict" if is_split else "base_optimizer_state"
    flats: list[Tensor] = (
        optimizer.fp32_partitioned_groups_flat if is_split else optimizer.single_partition_of_fp32_groups
    )
    numbers = [index for group in own[inner_key]["param_groups"] for index in group["params"]]
    masters, states = [], {}
    for index, flat in enumerate(flats):
        paddings = None if is_split else optimizer.round_robin_bit16_padding[index]
        places = list(_places(groups[index], names[index], paddings, flat.numel(), rank, world_size, each=is_split))
        master = flat.detach().to("cpu", copy=True)
        _fill(master, places, {name: source.weight for name in names[index] if name in there})
        masters.append(master)
        state = _state_of_flat(source, places, flat.numel(), [name for name in names[index] if name in there])
        if state:
            states[numbers[index]] = state
    inner = {"state": states, "param_groups": _options(own[inner_key]["param_groups"], source.param_groups())}
    loaded = {**own, masters_key: masters, inner_key: inner}
    # Without any state of an optimizer, the one that is here stays.
    optimizer.load_state_dict([loaded] * world_size, load_optimizer_states=bool(states), load_from_fp32_weights=True)
    if not is_split:
        optimizer.update_lp_params()


_Place = tuple[str, int, int, int]  # name, where in the flat tensor, from and to in the parameter


def _places(
    parameters: Iterable[Any],
    names: Iterable[str],
    paddings: Iterable[int] | None,
    size: int,
    rank: int,
    world_size: int,
    *,
    each: bool,
) -> Iterator[_Place]:
    """Which part of which parameter lies where in the flat tensor of this process."""
    at = 0
    pads = iter(paddings) if paddings is not None else None
    for parameter, name in zip(parameters, names, strict=True):
        if each:  # every parameter is cut into equal parts
            numel = parameter.ds_numel
            part = -(-numel // world_size)
            start, end = rank * part, min((rank + 1) * part, numel)
            if start < end:
                yield name, at, start, end
            at += part
        else:  # all of them behind each other are cut
            numel = parameter.numel()
            start, end = max(at, rank * size), min(at + numel, (rank + 1) * size)
            if start < end:
                yield name, start - rank * size, start - at, end - at
            at += numel + (next(pads) if pads is not None else 0)


def _fill(flat: Tensor, places: Iterable[_Place], readers: Mapping[str, Any]) -> None:
    for name, at, start, end in places:
        whole = readers[name](name) if name in readers else None
        if whole is not None:
            flat[at : at + end - start].copy_(whole.reshape(-1)[start:end])


def _state_of_flat(source: WholeTensors, places: list[_Place], size: int, names: list[str]) -> dict[str, Any]:
    """The optimizer's state of one flat tensor."""
    # A parameter that never had a gradient may have no state, or not all of it: zeros stand for it.
    example = next(filter(None, map(source.optimizer_state, names)), {})
    state: dict[str, Any] = {}
    for key, value in example.items():
        if isinstance(value, Tensor) and value.ndim:
            state[key] = torch.zeros(size, dtype=value.dtype)
            readers = dict.fromkeys(names, lambda name, key=key: source.optimizer_state(name).get(key))
            _fill(state[key], places, readers)
        else:
            state[key] = value.clone() if isinstance(value, Tensor) else value
    return state


def _options(own: list[dict[str, Any]], saved: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not saved:
        return own
    if len(saved) != len(own):
        raise CheckpointError(
            f"The checkpoint holds {len(saved)} groups of parameters of the optimizer, and it has {len(own)}. Which"
            " belongs to which cannot be known. Build the optimizer as it was when it was saved, or load the weights"
            " alone."
        )
    return [{**group, **other, "params": group["params"]} for group, other in zip(own, saved, strict=True)]


def load_untrained(module: Module, weights: Mapping[str, Tensor]) -> None:
    """Copy buffers and frozen parameters into a module, also where their parameters are split."""
    own = dict(module.named_buffers())
    for name, value in weights.items():
        if name in own:
            own[name].copy_(value)
    frozen = {
        name: parameter
        for name, parameter in module.named_parameters()
        if name in weights and not parameter.requires_grad
    }
    copy_into(frozen, weights)


def load_weights(module: Module, weights: Mapping[str, Tensor], *, strict: bool) -> None:
    """Load whole weights into a module that is not trained, also where its parameters are split.

    Raises:
        CheckpointKeyError: If `strict` and one side has names that the other has not.
    """
    parameters = dict(module.named_parameters())
    if not any(is_partitioned(parameter) for parameter in parameters.values()):
        module.load_state_dict(weights, strict=strict)
        return
    expected = set(module.state_dict())
    missing, unexpected = sorted(expected - set(weights)), sorted(set(weights) - expected)
    if strict and (missing or unexpected):
        raise CheckpointKeyError(
            f"The weights do not fit {type(module).__name__}: they lack {missing[:10]}, and hold {unexpected[:10]}"
            " beside. Every name has to be on both sides."
            " Build the module as it was when they were saved, or load with strict=False."
        )
    for name, buffer in module.named_buffers():
        if name in weights:
            buffer.copy_(weights[name])
    copy_into({name: one for name, one in parameters.items() if name in weights}, weights)


@torch.no_grad()
def copy_into(parameters: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into parameters; of one that is split, each process takes its part. All must call it."""
    for name, parameter in parameters.items():
        if is_partitioned(parameter):
            with _gathered(parameter, modifier_rank=0):
                parameter.copy_(weights[name])
        else:
            parameter.copy_(weights[name])


def is_partitioned(parameter: Any) -> bool:
    """Has ZeRO 3 split this parameter?"""
    return hasattr(parameter, "ds_id")


def whole_state(module: Module, *, keep: bool, masters: bool = False) -> dict[str, Any]:
    """The state dict of a module, whole and on the CPU; where parameters are split, gathered one by one.

    Args:
        module: Of which all processes call this.
        keep: Is it wanted in this process? If not, the tensors are left out.
        masters: Take the master weights of what is trained, where there are any.
    """
    whole: dict[str, Any] = {}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, value in module.state_dict(keep_vars=True).items():
        parameter = parameters.get(name)
        master = _master(parameter) if masters and parameter is not None else None
        if master is not None:
            if keep:
                whole[name] = master.detach().to("cpu", copy=True)
        elif parameter is not None and is_partitioned(parameter):
            with _gathered(parameter):
                if keep:
                    whole[name] = parameter.detach().to("cpu", copy=True)
        elif keep:
            whole[name] = value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
    return whole


def _master(parameter: Any) -> Tensor | None:
    """The 32-bit weights of a parameter, gathered; None if nobody has any."""
    if not parameter.requires_grad:
        return None
    package: Any = import_module("deepspeed.utils")
    found: Tensor | None = package.safe_get_full_fp32_param(parameter)
    return found


def _gathered(parameter: Any, modifier_rank: int | None = None) -> AbstractContextManager[Any]:
    """Inside, a parameter that ZeRO 3 has split is whole; what `modifier_rank` makes of it stays."""
    zero: Any = import_module("deepspeed.runtime.zero")
    gathered: AbstractContextManager[Any] = zero.GatheredParameters([parameter], modifier_rank=modifier_rank)
    return gathered
