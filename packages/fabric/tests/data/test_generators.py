"""Generators that a loader's parts own."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from fulmen.fabric.data.generators import GlobalGenerators, generator_state, owned_generators, restore_generator
from fulmen.fabric.seeding import collect_rng_state, restore_rng_state

KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch": (lambda: torch.Generator().manual_seed(1), lambda g: torch.rand(3, generator=g).tolist()),
    "python": (lambda: random.Random(1), lambda g: [g.random() for _ in range(3)]),
    "numpy": (lambda: numpy.random.default_rng(1), lambda g: g.random(3).tolist()),
    "numpy, Mersenne twister": (
        lambda: numpy.random.Generator(numpy.random.MT19937(1)),
        lambda g: g.random(3).tolist(),
    ),
    "numpy, legacy": (lambda: numpy.random.RandomState(1), lambda g: g.randn(3).tolist()),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_state_survives_a_checkpoint_file(kind: str) -> None:
    make, draw = KINDS[kind]
    generator: Any = make()
    draw(generator)
    file = io.BytesIO()
    torch.save(generator_state(generator), file)
    expected = draw(generator)
    file.seek(0)
    other: Any = make()
    restore_generator(other, torch.load(file, weights_only=True))
    assert draw(other) == expected


def test_the_global_generators_are_held_as_they_were() -> None:
    before = collect_rng_state(include_cuda=False)
    held = GlobalGenerators()
    drawn = [random.random(), torch.rand(1).item(), numpy.random.rand()]
    after = collect_rng_state(include_cuda=False)
    plain = held.plain()
    assert repr(plain) == repr(before) != repr(collect_rng_state(include_cuda=False))
    assert repr(collect_rng_state(include_cuda=False)) == repr(after)
    restore_rng_state(plain)
    assert [random.random(), torch.rand(1).item(), numpy.random.rand()] == drawn


def test_each_generator_is_found_once() -> None:
    shared, own = torch.Generator(), random.Random()
    owners = [SimpleNamespace(a=shared, b=1), SimpleNamespace(c=own, d=shared), object()]
    assert [id(found) for found in owned_generators(owners)] == [id(shared), id(own)]
