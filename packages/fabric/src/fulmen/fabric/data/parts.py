"""What a loader is made of, and what of it keeps a state: samplers, dataset, generators.

Its parts may be the user's own; they are looked at, told and restored through their public names only.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from fulmen.fabric.data.generators import owned_generators, restore_generator


def loader_parts(loader: object) -> dict[str, Any]:
    """The parts that the user may have written, each once; of what is no DataLoader, itself."""
    if not isinstance(loader, DataLoader):
        return {"loader": loader}
    inner = getattr(loader.batch_sampler, "sampler", None)
    found = {
        "sampler": loader.sampler,
        "batch_sampler": loader.batch_sampler,
        "inner_sampler": None if inner is loader.sampler else inner,
        "dataset": loader.dataset,
    }
    return {name: part for name, part in found.items() if part is not None}


def generators_of(loader: object) -> list[Any]:
    """The random generators of a DataLoader and its parts, in an order that depends on the program only."""
    return owned_generators([loader, *loader_parts(loader).values()]) if isinstance(loader, DataLoader) else []


def restore_generators(generators: list[Any], states: list[Any]) -> None:
    """Put back one state for each generator."""
    for generator, state in zip(generators, states, strict=False):
        restore_generator(generator, state)


def stateful_parts(loader: object) -> dict[str, Any]:
    """The parts that keep a state of their own."""
    return {name: part for name, part in loader_parts(loader).items() if keeps_state(part)}


def restore_stateful(parts: dict[str, Any], states: dict[str, Any]) -> None:
    """Put back the states of those `parts` that have one in `states`."""
    for name, part in parts.items():
        if name in states:
            part.load_state_dict(states[name])


def keeps_state(part: object) -> bool:
    """Does it say its state, and take it back?"""
    return hasattr(part, "state_dict") and hasattr(part, "load_state_dict")


def is_sharded(loader: DataLoader[Any]) -> bool:
    """Has the user split it over processes already?"""
    samplers = (loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    return any(isinstance(sampler, DistributedSampler) for sampler in samplers)


def iterates_as_torch(loader: object) -> bool:
    """Does each batch of indices that is drawn become one batch that is given?"""
    kind: Any = type(loader)
    names = ("__iter__", "_get_iterator", "_index_sampler")
    return all(getattr(kind, name, None) is getattr(DataLoader, name, None) for name in names)
