"""Read the state of an engine of DeepSpeed from its folder, or from one file with whole tensors.

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

from fulmen.fabric.checkpoint_io.deepspeed_folder import DeepSpeedFolder
from fulmen.fabric.checkpoint_io.ranks import Ranks
from fulmen.fabric.class_names import class_name
from fulmen.fabric.compiled import load_plain_state, plain_buffers, plain_name, plain_parameters, plain_state
from fulmen.fabric.errors import CheckpointError, CheckpointKeyError, ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.strategies.deepspeed.gradients import put_gradients
from fulmen.fabric.types import PathLike


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
        _load_gradients(engine, folder)
        return folder.client_state()
    load_whole(engine, folder, strict=strict)
    load_untrained(engine.module, folder.untrained())
    states = folder.model_states
    for name in ("global_steps", "skipped_steps", "global_samples"):
        setattr(engine, name, states.get(name, 0))
    scaler = vars(engine.optimizer.loss_scaler)
    scaler.update({name: value for name, value in folder.scaler().items() if name in scaler})
    _load_gradients(engine, folder)
    return folder.client_state()


def _load_gradients(engine: Any, folder: DeepSpeedFolder) -> None:
    """Inside an accumulation window, those of its first batches; without them where this run divides otherwise."""
    ranks, files = Ranks(), folder.gradient_files
    if not files:
        return
    is_alike = len(files) == ranks.world_size == folder.world_size and folder.stage == engine.zero_optimization_stage()
    if is_alike and put_gradients(engine, folder.gradients(ranks.rank)):
        return
    rank_zero_warn(
        f"The checkpoint {folder.path!r} was written by {folder.world_size} processes inside an accumulation window,"
        f" with stage={folder.stage}. This run divides gradients otherwise, so those of the window's first batches are"
        " lost. Resume with as many processes and the same strategy to go on exactly."
    )


def load_whole(engine: Any, source: WholeTensors, *, strict: bool = True) -> None:
    """Give an engine with ZeRO its parts of whole tensors.

    Raises:
        CheckpointKeyError: If `strict` and one side has parameters that the other has not.
        CheckpointError: If the optimizer has another number of groups.
        ConfigurationError: If this engine holds its optimizer in another form.
    """
    optimizer, rank, world_size = engine.optimizer, Ranks().rank, Ranks().world_size
    is_split = engine.zero_optimization_stage() == 3
    if not is_split and not hasattr(optimizer, "round_robin_bit16_groups"):
        raise ConfigurationError(
            "DeepSpeed holds the optimizer otherwise for bf16 with stage 1 and data_types.grad_accum_dtype='fp32', and"
            " takes back only what as many processes wrote with the same configuration. The checkpoint is of others."
            " Go on with stage 2, or without grad_accum_dtype."
        )
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
    own = plain_buffers(module)
    weights = {plain_name(module, name): value for name, value in weights.items()}
    for name, value in weights.items():
        if name in own:
            own[name].copy_(value)
    frozen = {
        name: parameter
        for name, parameter in plain_parameters(module).items()
        if name in weights and not parameter.requires_grad
    }
    copy_into(frozen, weights)


def load_weights(module: Module, weights: Mapping[str, Tensor], *, strict: bool) -> None:
    """Load whole weights into a module that is not trained, also where its parameters are split.

    Raises:
        CheckpointKeyError: If `strict` and one side has names that the other has not.
    """
    parameters = plain_parameters(module)
    if not any(is_partitioned(parameter) for parameter in parameters.values()):
        load_plain_state(module, weights, strict)
        return
    weights = {plain_name(module, name): value for name, value in weights.items()}
    expected = set(plain_state(module))
    missing, unexpected = sorted(expected - set(weights)), sorted(set(weights) - expected)
    if strict and (missing or unexpected):
        raise CheckpointKeyError(
            f"The weights do not fit {class_name(module)}: they lack {missing[:10]}, and hold {unexpected[:10]}"
            " beside. Every name has to be on both sides."
            " Build the module as it was when they were saved, or load with strict=False."
        )
    for name, buffer in plain_buffers(module).items():
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
    parameters = plain_parameters(module, remove_duplicate=False)
    for name, value in plain_state(module, keep_vars=True).items():
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
