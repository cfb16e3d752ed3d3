from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.seeding import (
    collect_rng_state,
    derive_seed,
    isolate_rng,
    max_seed_value,
    min_seed_value,
    pl_worker_init_function,
    reset_seed,
    restore_rng_state,
    seed_everything,
    seeds_workers,
)

VARIABLES = ("FULMEN_GLOBAL_SEED", "FULMEN_SEED_WORKERS", "PL_GLOBAL_SEED")
numpy = pytest.importorskip("numpy")


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    state = collect_rng_state()
    before = {name: os.environ.pop(name, None) for name in VARIABLES}
    yield
    restore_rng_state(state)
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def draw() -> tuple[object, ...]:
    """Of every generator, through every kind of buffer that it keeps."""
    return (
        random.random(),
        random.gauss(0, 1),
        numpy.random.rand(),
        numpy.random.randn(),
        torch.rand(1).item(),
        torch.randn(3).sum().item(),
        torch.randperm(5).tolist(),
    )


seeds = st.integers(min_seed_value, max_seed_value)


@given(seeds)
def test_the_same_seed_gives_the_same_numbers(seed: int) -> None:
    assert seed_everything(seed, verbose=False) == seed
    first = draw()
    seed_everything(seed, verbose=False)
    assert draw() == first


@given(seeds, st.integers(0, 3), st.integers(0, 3))
def test_isolated_draws_leave_no_trace(seed: int, num_before: int, num_inside: int) -> None:
    def numbers(num_inside: int) -> tuple[object, ...]:
        seed_everything(seed, verbose=False)
        for _ in range(num_before):
            draw()
        with isolate_rng():
            for _ in range(num_inside):
                draw()
        return draw()

    assert numbers(num_inside) == numbers(0)


def test_isolation_ends_on_errors_too() -> None:
    seed_everything(1, verbose=False)
    expected = draw()
    seed_everything(1, verbose=False)
    with pytest.raises(KeyError), isolate_rng():  # noqa: PT012  # what raises is the block
        draw()
        raise KeyError
    assert draw() == expected


@given(seeds)
def test_a_state_survives_a_file_that_may_hold_no_code(seed: int) -> None:
    seed_everything(seed, verbose=False)
    draw()
    file = io.BytesIO()
    torch.save(collect_rng_state(), file)
    expected = draw()
    file.seek(0)
    restore_rng_state(torch.load(file, weights_only=True))
    assert draw() == expected


def test_a_state_of_tuples_and_arrays_is_taken_too() -> None:
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": numpy.random.get_state(), "cuda": []}
    expected = draw()
    restore_rng_state(state)
    assert draw() == expected


def test_a_foreign_numpy_generator_is_left_out() -> None:
    before = numpy.random.get_bit_generator()
    try:
        numpy.random.set_bit_generator(numpy.random.PCG64(1))
        with isolate_rng():
            assert "numpy" not in collect_rng_state()
    finally:
        numpy.random.set_bit_generator(before)


@pytest.mark.parametrize("seed", [-1, 2**32, 10**30])
def test_a_seed_out_of_range_is_an_error(seed: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"seed_everything\({seed}\) is out of range"):
        seed_everything(seed)
    assert "FULMEN_GLOBAL_SEED" not in os.environ


@pytest.mark.parametrize("seed", [1.5, "x", [1], True, float("nan"), float("inf")])
def test_what_is_no_integer_is_an_error(seed: object) -> None:
    with pytest.raises(ArgumentTypeError, match="A seed is an integer"):
        seed_everything(seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", ["7", numpy.int64(7), 7.0])
def test_what_is_surely_an_integer_is_taken(seed: object) -> None:
    assert seed_everything(seed, verbose=False) == 7  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "seed"),
    [
        ({"FULMEN_GLOBAL_SEED": "5"}, 5),
        ({"PL_GLOBAL_SEED": "6"}, 6),
        ({"FULMEN_GLOBAL_SEED": "5", "PL_GLOBAL_SEED": "6"}, 5),
    ],
)
def test_without_a_number_the_environment_says_it(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], seed: int
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert seed_everything() == seed
    assert os.environ["FULMEN_GLOBAL_SEED"] == str(seed)


@pytest.mark.parametrize("variable", ["FULMEN_GLOBAL_SEED", "PL_GLOBAL_SEED"])
def test_nonsense_in_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "x")
    with pytest.raises(ConfigurationError, match=f"{variable}='x' is no seed"):
        seed_everything()


def test_without_any_seed_it_is_zero_and_says_so() -> None:
    with pytest.warns(UserWarning, match="The seed is 0"):
        assert seed_everything() == 0


def test_the_seed_is_said_once_from_rank_zero(caplog: pytest.LogCaptureFixture) -> None:
    seed_everything(3)
    assert caplog.messages == ["Seed set to 3"]
    seed_everything(4, verbose=False)
    assert len(caplog.messages) == 1


def test_reset_goes_back_to_the_last_seed() -> None:
    before = torch.get_rng_state()
    reset_seed()
    assert torch.equal(torch.get_rng_state(), before)
    seed_everything(9, workers=True, verbose=False)
    expected = draw()
    reset_seed()
    assert draw() == expected
    assert seeds_workers()


@given(st.lists(st.integers(), min_size=1, max_size=4), st.lists(st.integers(), min_size=1, max_size=4))
def test_derived_seeds_are_in_range_and_differ(a: list[int], b: list[int]) -> None:
    assert 0 < derive_seed(*a) < 2**63
    assert (derive_seed(*a) == derive_seed(*b)) == (a == b)


def test_derived_seeds_are_the_same_on_every_machine_and_in_every_version() -> None:
    assert [derive_seed(0), derive_seed(1, 2, 3)] == [8493733112532773765, 3034334815109854691]


def test_an_apple_gpu_is_captured_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [torch.tensor([1, 2, 3], dtype=torch.uint8)]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: held[0].clone())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: held.__setitem__(0, state))
    with isolate_rng():
        held[0] = torch.zeros(3, dtype=torch.uint8)
    assert held[0].tolist() == [1, 2, 3]
    state = collect_rng_state()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    restore_rng_state(state)  # on a machine without one
    assert "mps" not in collect_rng_state()


def test_workers_differ_and_repeat() -> None:
    def first_numbers(worker_id: int, rank: int) -> tuple[object, ...]:
        torch.manual_seed(100 + worker_id)
        pl_worker_init_function(worker_id, rank)
        return draw()

    numbers = {first_numbers(worker_id, rank)[:6] for worker_id in range(3) for rank in range(3)}
    assert len(numbers) == 9
    assert first_numbers(1, 2) == first_numbers(1, 2)
