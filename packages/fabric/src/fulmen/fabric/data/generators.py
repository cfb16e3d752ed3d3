"""The random generators that a loader's parts own: find them, save and restore their states.

A sampler with `generator=` draws from a stream of its own, which runs on from epoch to epoch: where that stands belongs
to the position in the data. Found is what stands directly in an attribute, from torch, Python or numpy.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from typing import Any

import torch

from fulmen.fabric.seeding import plain_rng_state


def owned_generators(owners: Iterable[object]) -> list[Any]:
    """Every generator in the attributes of `owners`, once, in an order that depends on the program only."""
    found: dict[int, Any] = {}
    kinds = _kinds()
    for owner in owners:
        for value in getattr(owner, "__dict__", {}).values():
            if isinstance(value, kinds):
                found.setdefault(id(value), value)
    return list(found.values())


def generator_state(generator: Any) -> Any:
    """Its state, in tensors, lists, dicts, numbers and strings: `torch.load(weights_only=True)` takes it."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return _plain(generator.getstate())
    if hasattr(generator, "bit_generator"):
        return _plain(generator.bit_generator.state)
    return _plain(generator.get_state(legacy=False))


def restore_generator(generator: Any, state: Any) -> None:
    """Put back what `generator_state` gave."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        version, numbers, gauss_next = state
        generator.setstate((version, tuple(numbers), gauss_next))
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


class GlobalGenerators:
    """The state of torch's (CPU), Python's and numpy's global generators, as it is when this is made.

    Held as it comes: an epoch begins in microseconds, and only a save pays for plain data.
    """

    __slots__ = ("_numpy", "_python", "_torch")

    def __init__(self) -> None:
        numpy = sys.modules.get("numpy")
        self._torch = torch.get_rng_state()
        self._python = random.getstate()
        self._numpy = None if numpy is None else numpy.random.get_state(legacy=False)

    def plain(self) -> dict[str, Any]:
        """As `collect_rng_state` gives it."""
        return plain_rng_state(self._torch, self._python, self._numpy)


def _kinds() -> tuple[type, ...]:
    # Where numpy is not loaded, nobody holds a generator of it.
    numpy = sys.modules.get("numpy")
    numpy_kinds = () if numpy is None else (numpy.random.Generator, numpy.random.RandomState)
    return (torch.Generator, random.Random, *numpy_kinds)


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [_plain(value) for value in state]
    return state.tolist() if hasattr(state, "tolist") else state
