"""The state of modules and optimizers whose parameters are split over processes, on its way to and from checkpoints.

The parameters of an optimizer are told apart by their names in the module: a number in a list says nothing to another
number of processes. A file that holds the whole state has the numbers of `torch.optim` all the same, so that it loads
everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from fulmen.fabric.compiled import load_plain_state, plain_name, plain_parameters, plain_state, without_wrappers
from fulmen.fabric.errors import CheckpointKeyError, ConfigurationError
from fulmen.fabric.strategies.base import users_module
from fulmen.fabric.strategies.sharded_tensors import fill, is_dtensor, split_like


def named_parameters(module: Module) -> dict[str, Tensor]:
    """All parameters of the user's module; one that has several names is there under each."""
    return dict(plain_parameters(users_module(module), remove_duplicate=False))


class ParameterBook:
    """Which parameter has which name, and which one took the place of which when a module was split.

    Holds no parameter alive; a copy is empty.
    """

    def __init__(self) -> None:
        self._names: Any = WeakIdKeyDictionary()
        self._successors: Any = WeakIdKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # the parameters are of this process

    def record(self, before: Mapping[str, Tensor], module: Module) -> None:
        """Take down a module that was just split.

        Args:
            before: Its parameters as they were, by name.
            module: As it is now.

        Raises:
            ConfigurationError: If parameters that were one are two now.
        """
        after = named_parameters(module)
        names_of: dict[int, list[str]] = {}
        for name, parameter in before.items():
            names_of.setdefault(id(parameter), []).append(name)
        for names in names_of.values():
            kept = [name for name in names if name in after]
            if len({id(after[name]) for name in kept}) > 1:
                raise ConfigurationError(
                    f"The parameters {', '.join(map(repr, kept))} of {type(users_module(module)).__name__} were one,"
                    " and are two after it was split: a shared parameter has to lie in one unit. They would be trained"
                    " apart. Choose units such that the modules that share it are in the same one, such as the root."
                )
        for name, parameter in reversed(after.items()):  # of several names, the first stays
            self._names[parameter] = name
        for name, parameter in before.items():
            if name in after and parameter is not after[name]:
                self._successors[parameter] = after[name]

    def knows(self, parameter: Tensor) -> bool:
        """Is it a parameter of a module that was set up?"""
        return parameter in self._names

    def names(self, optimizer: Optimizer) -> list[str]:
        """The names of an optimizer's parameters, in its order.

        Raises:
            ConfigurationError: If one has no name, or two have the same.
        """
        names: list[str] = []
        for parameter in parameters_of(optimizer):
            name = self._names.get(parameter)
            if name is None or name in names:
                reason = "is in no module that was set up" if name is None else f"is the second one named {name!r}"
                raise ConfigurationError(
                    f"A parameter of {type(optimizer).__name__}, of shape {tuple(parameter.shape)}, {reason}. The state"
                    " of an optimizer is kept by the names of its parameters. Give each module that was set up an"
                    " optimizer of its own, with the parameters of that module only."
                )
            names.append(name)
        return names

    def follow(self, optimizer: Optimizer) -> None:
        """Let an optimizer that was made before the module was split step the parameters that are there now."""
        for group in optimizer.param_groups:
            group["params"] = [self._follow(parameter, optimizer) for parameter in group["params"]]

    def _follow(self, parameter: Tensor, optimizer: Optimizer) -> Tensor:
        successor: Tensor | None = self._successors.get(parameter)
        if successor is None:
            return parameter
        state = optimizer.state.pop(parameter, None)
        if state is not None:
            optimizer.state[successor] = {name: _beside(value, successor) for name, value in state.items()}
        return successor


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The parameters that an optimizer steps, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _beside(value: Any, parameter: Tensor) -> Any:
    """A value of a parameter's state, split as the parameter is if it has its shape."""
    if not isinstance(value, Tensor) or is_dtensor(value):
        return value
    if value.shape == parameter.shape:
        return split_like(value, parameter)
    return value.detach().clone()  # not the file from which it was read


# ---- modules


def load_module_state(module: Module, state: Mapping[str, Any], strict: bool = True) -> None:
    """Load whole or split tensors into a module; of a whole one, only the part that lies here is read.

    Raises:
        CheckpointError: If shapes differ.
        RuntimeError: As `Module.load_state_dict`, if `strict` and names are missing on either side.
    """
    users = users_module(module)
    here = plain_state(users)
    filled: dict[str, Any] = {}
    for saved_name, value in state.items():
        name = plain_name(users, saved_name)
        target = here.get(name)
        if isinstance(value, Tensor) and isinstance(target, Tensor):
            if not (value.is_meta and target.is_meta):  # another process has it
                fill(name, target, value)
            value = target
        filled[name] = value if target is not None else _on_every_process(value, here)
    # The module's own hooks hear of it; what is filled already is copied onto itself.
    load_plain_state(users, filled, strict)


def _on_every_process(value: Any, here: Mapping[str, Any]) -> Any:
    """A whole tensor of a name that is not here, as the module's own hooks can give it to a parameter that is split."""
    split = next((tensor for tensor in here.values() if is_dtensor(tensor)), None)
    if split is None or not isinstance(value, Tensor) or is_dtensor(value):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = split.device_mesh
    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


# ---- optimizers


def optimizer_state_by_name(optimizer: Optimizer, names: list[str]) -> dict[str, Any]:
    """The state of an optimizer with names in the place of numbers; tensors stay split."""
    packed = optimizer.state_dict()
    groups = [{**group, "params": [names[place] for place in group["params"]]} for group in packed["param_groups"]]
    state = {names[place]: value for place, value in packed["state"].items()}
    return {**packed, "state": state, "param_groups": groups}


def is_by_name(state: Mapping[str, Any]) -> bool:
    """Has this state of an optimizer names in the place of numbers?"""
    places = [place for group in state["param_groups"] for place in group["params"]]
    return any(isinstance(place, str) for place in [*places, *state.get("state", ())])


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any], names: Callable[[], list[str]]) -> None:
    """Load the state of an optimizer, with names or numbers, whole or split.

    Args:
        optimizer: What is loaded into.
        state: From `optimizer_state_by_name`, or of any optimizer of `torch.optim`.
        names: Of the optimizer's parameters, in its order; asked for only if the state has names.

    Raises:
        CheckpointKeyError: If a group of parameters is not in the state.
    """
    saved = {_plain(key): values for key, values in state.get("state", {}).items()}
    keys: list[Any] = list(range(len(parameters_of(optimizer))))
    groups = list(state["param_groups"])
    if is_by_name(state):
        keys = list(names())
        groups = _groups_by_name(optimizer, keys, groups)
    values = {
        place: {name: _beside(value, parameter) for name, value in saved[key].items()}
        for place, (key, parameter) in enumerate(zip(keys, parameters_of(optimizer), strict=True))
        if key in saved
    }
    optimizer.load_state_dict({**state, "state": values, "param_groups": groups})


def _groups_by_name(optimizer: Optimizer, names: list[str], saved: list[Any]) -> list[dict[str, Any]]:
    group_of = {_plain(name): group for group in saved for name in group["params"]}
    groups: list[dict[str, Any]] = []
    place = 0
    for index, group in enumerate(optimizer.param_groups):
        count = len(group["params"])
        own = names[place : place + count]
        found = next((group_of[name] for name in own if name in group_of), None)
        if found is None and own:
            raise CheckpointKeyError(
                f"The checkpoint holds no settings for group {index} of {type(optimizer).__name__}, of the parameters"
                f" {', '.join(map(repr, own[:5]))}. It has these: {', '.join(map(repr, list(group_of)[:20]))}."
                " Load the state into an optimizer of the module that it was saved with."
            )
        groups.append({**(found or saved[index]), "params": list(range(place, place + count))})
        place += count
    return groups


def empty_optimizer_state(
    described: Iterable[tuple[tuple[Any, ...], Any]], parameters: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The state of an optimizer as a folder describes it, with tensors to be filled, and None for what is read whole.

    Args:
        described: For each entry its place ("state", name of the parameter, key, ...), and what
            `torch.distributed.checkpoint` says of it.
        parameters: By name. What has the shape of its parameter is split as that is; state of others is left out.
    """
    state: dict[str, Any] = {}
    groups: dict[int, dict[str, Any]] = {}
    for (first, *path), entry in described:
        if first == "param_groups" and len(path) > 1:
            groups.setdefault(path[0], {})[path[1]] = None
        elif first != "state":
            state[first] = None
        elif path and without_wrappers(path[0]) in parameters:
            name, key, *below = path
            is_tensor = not below and hasattr(entry, "chunks")
            values = state.setdefault("state", {}).setdefault(name, {})
            values[key] = _empty(entry, parameters[without_wrappers(name)]) if is_tensor else None
    if groups:
        state["param_groups"] = [groups[index] for index in sorted(groups)]
    return state


def _plain(key: str | int) -> str | int:
    return without_wrappers(key) if isinstance(key, str) else key


def _empty(described: Any, parameter: Tensor) -> Tensor:
    if tuple(described.size) == tuple(parameter.shape):
        return torch.empty_like(parameter, dtype=described.properties.dtype, requires_grad=False)
    return torch.empty(described.size, dtype=described.properties.dtype)
