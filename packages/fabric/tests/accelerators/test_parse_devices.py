from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.accelerators.parse_devices import parse_device_indices, parse_process_count
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, HardwareError, MisconfigurationException

anything = (
    st.integers(-3, 9)
    | st.sampled_from(["auto", "", ",", "x", "-1", "0,1", "1,", "0, 2", "1.5", "0,x", None, True, 1.5])
    | st.text(max_size=4)
    | st.lists(st.integers(-1, 9), max_size=4)
    | st.lists(st.booleans() | st.text(max_size=1), max_size=2)
    | st.floats()
    | st.dictionaries(st.integers(), st.integers(), max_size=1)
)
available = st.lists(st.integers(0, 7), unique=True).map(sorted)


def parsed_or_answered(parse: Callable[..., Any], devices: Any, *args: Any) -> Any:
    """What `parse` gives; None if it says what is wrong, with the argument quoted."""
    try:
        return parse(devices, *args)
    except MisconfigurationException as error:
        if not str(error).startswith(f"devices={devices!r} "):
            raise
        return None


@given(anything, available)
def test_indices_are_some_that_exist_each_once_or_a_clear_error(devices: Any, available: list[int]) -> None:
    indices = parsed_or_answered(parse_device_indices, devices, available)
    if indices is None:
        return
    assert indices
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(available)
    # What was parsed parses to itself, also as text.
    assert parse_device_indices(indices, available) == indices
    assert parse_device_indices(",".join(map(str, indices)) + ",", available) == indices


@given(anything)
def test_a_process_count_is_positive_or_a_clear_error(devices: Any) -> None:
    count = parsed_or_answered(parse_process_count, devices)
    if count is not None:
        assert type(count) is int
        assert count > 0
        assert parse_process_count(count) == parse_process_count(str(count)) == count


@pytest.mark.parametrize(
    ("devices", "indices"),
    [
        (2, [0, 1]),
        ("2", [0, 1]),
        (-1, [0, 1, 2, 3]),
        ("-1", [0, 1, 2, 3]),
        ("auto", [0, 1, 2, 3]),
        ([3, 1], [3, 1]),
        ((0,), [0]),
        (range(1, 3), [1, 2]),
        ("0,2", [0, 2]),
        ("0, 2", [0, 2]),
        ("3,", [3]),
    ],
)
def test_devices_with_four_gpus(devices: Any, indices: list[int]) -> None:
    assert parse_device_indices(devices, range(4)) == indices


@pytest.mark.parametrize(
    ("devices", "kind", "match"),
    [
        (5, HardwareError, r"asks for 5 GPUs\. This machine has 4 .* Pass devices=4"),
        ([0, 7, 9], HardwareError, r"names GPU 7, 9\. .* are \[0, 1, 2, 3\]"),
        ([-1], HardwareError, "names GPU -1"),
        ([0, 0], ConfigurationError, r"names a GPU twice.* Pass devices=\[0\]"),
        (0, ConfigurationError, "above 0"),
        (-2, ConfigurationError, "or -1 for all"),
        ([], ConfigurationError, "asks for no GPU"),
        ("", ConfigurationError, "asks for no GPU"),
        ("x", ConfigurationError, "cannot be read"),
        ("0,x", ConfigurationError, "cannot be read"),
        (None, ArgumentTypeError, "is a NoneType"),
        (True, ArgumentTypeError, "is a bool"),
        (1.5, ArgumentTypeError, "is a float"),
        (["0"], ArgumentTypeError, "is a list"),
    ],
)
def test_mistakes_with_four_gpus(devices: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        parse_device_indices(devices, range(4))


@pytest.mark.parametrize("devices", [1, -1, "auto", [0]])
def test_without_any_gpu_every_wish_is_an_error(devices: Any) -> None:
    with pytest.raises(HardwareError, match=r"that this\s+torch can use"):
        parse_device_indices(devices, [])


@pytest.mark.parametrize(("devices", "count"), [(1, 1), (3, 3), ("4", 4), ("auto", 1)])
def test_processes_on_the_cpu(devices: Any, count: int) -> None:
    assert parse_process_count(devices) == count


@pytest.mark.parametrize(
    ("devices", "kind"),
    [
        (0, ConfigurationError),
        ("0", ConfigurationError),
        ([], ConfigurationError),
        ("", ConfigurationError),
        (-1, ArgumentTypeError),
        ("-1", ArgumentTypeError),
        ("x", ArgumentTypeError),
        ([0, 1], ArgumentTypeError),
        (None, ArgumentTypeError),
        (True, ArgumentTypeError),
        (1.5, ArgumentTypeError),
    ],
)
def test_mistakes_on_the_cpu(devices: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"\. Pass devices=1, or"):
        parse_process_count(devices)
