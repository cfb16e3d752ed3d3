import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.forecast.figures import Forecast, Shard, Traffic, ring_bytes, size_text, steps_in_epoch


@given(st.integers(0, 2**60))
def test_a_size_has_three_digits_and_is_right(num_bytes):
    number, unit = size_text(num_bytes).split()
    assert len(number) <= 4 or unit == "PiB"
    power = ("B", "KiB", "MiB", "GiB", "TiB", "PiB").index(unit)
    assert float(number) * 1024**power == pytest.approx(num_bytes, rel=0.006)


operations = st.sampled_from(["all_gather", "reduce_scatter", "all_reduce", "send"])


@given(operations, st.integers(0, 10**12), st.integers(2, 4096))
def test_nobody_sends_more_than_twice_the_tensor(operation, size, num_processes):
    sent = ring_bytes(operation, size, num_processes)
    assert 0 <= sent <= (2 if operation == "all_reduce" else 1) * size


@given(st.integers(1, 10**6), st.integers(1, 64), st.integers(1, 512), st.integers(1, 9))
def test_an_epoch_sees_all_samples(num_samples, num_data, batch_size, accumulate):
    steps = steps_in_epoch(num_samples, num_data, batch_size, accumulate)
    assert steps * accumulate * batch_size * num_data >= num_samples
    # With one step less, some would not be seen.
    assert (steps - 1) * accumulate * batch_size < math.ceil(num_samples / num_data)


names = st.text("abcdefg.0123", min_size=1, max_size=120)
shapes = st.lists(st.integers(1, 99999), max_size=4).map(tuple)
forecasts = st.builds(
    Forecast,
    strategy=st.just("ModelParallelStrategy"),
    precision=st.just("transformer-engine-float16"),
    num_nodes=st.integers(1, 10**4),
    num_processes=st.integers(1, 16),
    mesh=st.just({"replicate": 64, "data_parallel": 128, "tensor_parallel": 8}),
    num_parameters=st.integers(0, 10**13),
    num_trained=st.integers(0, 10**13),
    shards=st.lists(st.builds(Shard, names, shapes, shapes), max_size=12),
    memory_bytes=st.dictionaries(st.sampled_from(["parameters", "optimizer state"]), st.integers(0, 2**50)),
    traffic=st.lists(
        st.builds(
            Traffic,
            st.sampled_from(["reduce_scatter", "all_gather"]),
            st.sampled_from(["tensor_parallel", "data_parallel"]),
            st.integers(2, 10**4),
            st.integers(1, 10**6),
            st.integers(0, 2**50),
            st.integers(0, 2**50),
        ),
        max_size=4,
    ),
    checkpoint_bytes=st.integers(0, 2**50),
    steps_per_epoch=st.none() | st.integers(0, 10**9),
    warnings=st.lists(st.text("abc ,'=", max_size=300), max_size=3),
)


@given(forecasts)
def test_a_table_is_not_wider_than_a_terminal(forecast):
    assert max(map(len, str(forecast).splitlines())) <= 80


@given(forecasts)
def test_all_of_it_goes_to_json(forecast):
    found = json.loads(json.dumps(forecast.as_dict()))
    assert found["world_size"] == forecast.num_nodes * forecast.num_processes
    assert len(found["shards"]) == len(forecast.shards)
    assert found["memory_bytes"] == forecast.memory_bytes
