"""Command line and script may write the same in different ways; what differs in meaning is still told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric import Fabric
from fulmen.fabric.accelerators.cpu import CPUAccelerator
from fulmen.fabric.accelerators.cuda import CUDAAccelerator
from fulmen.fabric.accelerators.parse_devices import parse_device_indices
from fulmen.fabric.command import ACCELERATORS, PRECISIONS, STRATEGIES
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.flag_meanings import flag_meaning
from fulmen.fabric.precision.catalog import precision_name
from fulmen.fabric.run_flags import VARIABLE, to_variable
from fulmen.fabric.strategies.ddp import DDPStrategy


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("precision", "16", "16-mixed"),
        ("precision", 16, "16"),
        ("precision", "bf16", "bf16-mixed"),
        ("precision", 32, "32-true"),
        ("precision", "64", "64-true"),
        ("devices", "2", 2),
        ("devices", "2", [0, 1]),
        ("devices", "0,", [0]),
        ("devices", "1,3", (1, 3)),
        ("devices", "-1", -1),
        ("devices", "auto", -1),
        ("accelerator", "cpu", CPUAccelerator()),
        ("strategy", "ddp_fork", "ddp_notebook"),
        ("num_nodes", 2, 2),
    ],
)
def test_what_means_the_same_is_equal(name, one, other):
    assert flag_meaning(name, one) == flag_meaning(name, other)


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("precision", "16-true", "16-mixed"),
        ("precision", "bf16", "16"),
        ("devices", "1", "1,"),
        ("devices", [1, 0], "0,1"),
        ("devices", "auto", 2),
        ("accelerator", "cpu", "cuda"),
        ("accelerator", "cpu", CUDAAccelerator()),
        ("strategy", "ddp", "ddp_spawn"),
        ("strategy", "ddp", "ddp_find_unused_parameters_true"),
        ("strategy", "fsdp", "ddp"),
        ("strategy", "ddp", DDPStrategy()),  # who knows with which arguments
        ("num_nodes", 2, 3),
    ],
)
def test_what_means_something_else_is_not(name, one, other):
    assert flag_meaning(name, one) != flag_meaning(name, other)


def test_gpu_is_the_kind_that_is_here(monkeypatch):
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    assert flag_meaning("accelerator", "gpu") == flag_meaning("accelerator", "cuda") == "cuda"
    assert flag_meaning("accelerator", "auto") == "cuda"
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: False))
    assert flag_meaning("accelerator", "gpu") not in ("cpu", "cuda")


INDICES = st.lists(st.integers(0, 7), min_size=1, unique=True)
COUNTS = st.integers(1, 8)
WRITTEN = st.one_of(
    INDICES,
    INDICES.map(lambda indices: ",".join(map(str, indices)) + ("," if len(indices) == 1 else "")),
    COUNTS,
    COUNTS.map(str),
    st.sampled_from([-1, "-1", "auto"]),
)


@given(WRITTEN, WRITTEN)
def test_devices_mean_the_same_exactly_if_they_are_the_same(one, other):
    there = range(100)  # more than are named: all of them is none of the rest
    same = parse_device_indices(one, there) == parse_device_indices(other, there)
    assert (flag_meaning("devices", one) == flag_meaning("devices", other)) == same


@given(st.sampled_from(PRECISIONS), st.sampled_from(PRECISIONS))
def test_precisions_mean_the_same_exactly_if_they_have_one_full_name(one, other):
    same = precision_name(one) == precision_name(other)
    assert (flag_meaning("precision", one) == flag_meaning("precision", other)) == same


@pytest.mark.parametrize(
    ("on_line", "in_script"),
    [
        ({"precision": "bf16"}, {"precision": "bf16-mixed"}),
        ({"precision": "64"}, {"precision": 64}),
        ({"devices": "1", "accelerator": "auto"}, {"devices": 1, "accelerator": CPUAccelerator()}),
    ],
)
def test_a_script_that_says_the_same_in_other_words_runs(on_line, in_script, monkeypatch):
    monkeypatch.setenv(VARIABLE, to_variable({"accelerator": "cpu", **on_line}))
    monkeypatch.setattr("fulmen.fabric.flag_meanings.best_available", lambda: "cpu")
    assert Fabric(**in_script).world_size == 1


def test_a_script_that_says_something_else_does_not(monkeypatch):
    monkeypatch.setenv(VARIABLE, to_variable({"precision": "16"}))
    with pytest.raises(ConfigurationError, match=r"`fulmen-fabric run --precision 16` contradicts Fabric\(precision="):
        Fabric(precision="16-true")


def test_every_name_of_the_command_line_has_a_meaning():
    for name, values in (("accelerator", ACCELERATORS), ("strategy", STRATEGIES), ("precision", PRECISIONS)):
        for value in values:
            assert flag_meaning(name, value) == flag_meaning(name, value)
