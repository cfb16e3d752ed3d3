import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.metrics.accumulator import ACCUMULATORS, Max, Mean, Min, Sum, batch_size_of_log

NUMBER = st.floats(-1e6, 1e6)
KIND = st.sampled_from(sorted(ACCUMULATORS))
CPU = torch.device("cpu")


def expected(kind, values, weights):
    array = np.array(values)
    return {
        "mean": lambda: np.average(array, weights=weights),
        "sum": array.sum,
        "min": array.min,
        "max": array.max,
    }[kind]()


def take(accumulator, value, weight=1):
    accumulator.prepare(value)
    accumulator.add(value.double(), weight)
    return accumulator


def fill(accumulator, values, weights, how):
    for value, weight in zip(values, weights, strict=True):
        if how == "numbers":
            accumulator.add_number(value, weight)
        elif how == "graph":
            accumulator.add_graph(torch.tensor(value, dtype=torch.float64), weight)
        else:
            take(accumulator, torch.tensor(value, dtype=torch.float64), weight)
    return accumulator


@settings(deadline=None)
@given(kind=KIND, values=st.lists(NUMBER, min_size=1), data=st.data())
def test_equals_numpy_in_float64(kind, values, data):
    weights = data.draw(st.lists(st.integers(1, 100), min_size=len(values), max_size=len(values)))
    how = data.draw(st.sampled_from(["tensors", "numbers", "graph"]))
    result = float(fill(ACCUMULATORS[kind](), values, weights, how).compute())
    assert result == pytest.approx(
        expected(kind, values, weights), rel=1e-9, abs=1e-12 * max(map(abs, values)) * len(values)
    )


@settings(deadline=None)
@given(kind=KIND, values=st.lists(NUMBER, min_size=2), cut=st.integers(1), how=st.sampled_from(["tensors", "numbers"]))
def test_a_saved_state_goes_on_as_if_nothing_happened(kind, values, cut, how):
    cut %= len(values)
    ones = [3] * len(values)
    whole = fill(ACCUMULATORS[kind](), values, ones, how).compute()
    first, second = ACCUMULATORS[kind](), ACCUMULATORS[kind]()
    fill(first, values[:cut], ones[:cut], how)
    second.load_state_dict(first.state_dict(), CPU)
    assert fill(second, values[cut:], ones[cut:], how).compute() == whole


@settings(deadline=None)
@given(kind=KIND, parts=st.lists(st.lists(NUMBER, min_size=1), min_size=1, max_size=4))
def test_processes_joined_equal_one_process(kind, parts):
    """What each of several processes has, joined as a collective does, is what one would have had."""
    join = {"sum": torch.sum, "min": torch.amin, "max": torch.amax}
    accumulators = [fill(ACCUMULATORS[kind](), part, [2] * len(part), "tensors") for part in parts]
    wide = [accumulator.wide(CPU) for accumulator in accumulators]
    joined = [join[accumulators[0].collective](torch.stack(column), 0) for column in zip(*wide, strict=True)]
    together = [value for part in parts for value in part]
    scale = max(map(abs, together)) * len(together)
    result = float(accumulators[0].from_wide(joined))
    assert result == pytest.approx(expected(kind, together, [2] * len(together)), rel=1e-9, abs=1e-12 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_has_the_dtype_of_the_values(dtype):
    for kind in ACCUMULATORS.values():
        assert take(kind(), torch.tensor(1.5, dtype=dtype)).compute().dtype is dtype


@pytest.mark.parametrize("kind", ACCUMULATORS.values())
def test_one_double_among_floats_loses_no_digit(kind):
    accumulator = take(kind(), torch.tensor(0.0))
    third = torch.tensor(1 / 3, dtype=torch.float64)
    for _ in range(3):
        take(accumulator, third, 1)
    answers = {"mean": 0.25, "sum": 1.0, "min": 0.0, "max": 1 / 3}
    assert float(accumulator.compute()) == pytest.approx(answers[kind.kind], rel=1e-15)


def test_a_long_epoch_of_float32_loses_no_digit():
    mean, value = Mean(), torch.tensor(0.1)
    for _ in range(20_000):
        take(mean, value, 1000)
    assert float(mean.compute()) == float(value)


def test_numbers_and_tensors_mix():
    for kind, answer in ((Mean, 3.0), (Sum, 9.0), (Min, 1.0), (Max, 6.0)):
        accumulator = kind()
        accumulator.add_number(1.0, 1)
        take(accumulator, torch.tensor(6.0), 1)
        accumulator.add_number(2, 1)
        assert float(accumulator.compute()) == answer


@pytest.mark.parametrize("kind", [Mean, Sum, Min, Max])
@pytest.mark.parametrize("order", [(float("nan"), 1.0), (1.0, float("nan"))])
def test_nan_is_seen(kind, order):
    of_numbers, of_tensors = kind(), kind()
    for value in order:
        of_numbers.add_number(value, 1)
        take(of_tensors, torch.tensor(value), 1)
    assert math.isnan(of_numbers.compute())
    assert math.isnan(of_tensors.compute())


def test_inference_mode_may_be_left_and_entered():
    mean, largest = Mean(), Max()
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            value = torch.ones(())
            take(mean, value, 1)
            take(largest, value, 1)
    assert mean.compute() == largest.compute() == 1


def test_no_samples_make_no_error():
    mean = Mean()
    mean.add_number(1.0, 0)
    assert math.isnan(mean.compute())


@given(st.one_of(st.integers(0, 10**6), st.floats(0, 1e6)))
def test_a_batch_size_is_any_number_from_zero(size):
    assert batch_size_of_log("a", size) == size
    assert batch_size_of_log("a", torch.tensor(size, dtype=torch.float64)) == size


@pytest.mark.parametrize("size", [-1, float("nan"), "x", [1, 2], torch.ones(2)])
def test_a_bad_batch_size_is_quoted(size):
    with pytest.raises(ConfigurationError, match="batch_size="):
        batch_size_of_log("a", size)
