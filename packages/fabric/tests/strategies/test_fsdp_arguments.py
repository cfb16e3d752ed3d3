from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.fsdp import (
    BackwardPrefetch,
    CPUOffload,
    CPUOffloadPolicy,
    MixedPrecision,
    MixedPrecisionPolicy,
    OffloadPolicy,
    ShardingStrategy,
)

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, MisconfigurationException
from fulmen.fabric.strategies.fsdp_arguments import (
    Casts,
    Options,
    check_together,
    offloads,
    read_casts,
    read_options,
    reshards,
    sharding_name,
)

# As a user may write each of them.
ACCEPTED = {
    "use_orig_params": True,
    "limit_all_gathers": True,
    "backward_prefetch": BackwardPrefetch.BACKWARD_PRE,
    "forward_prefetch": True,
    "sync_module_states": True,
    "reshard_after_forward": 2,
    "param_init_fn": print,
    "shard_placement_fn": print,
}


@given(st.sets(st.sampled_from(sorted(ACCEPTED))))
def test_every_argument_that_means_something_is_taken_and_kept(names):
    options = read_options({name: ACCEPTED[name] for name in names})
    for name in Options.__dataclass_fields__.keys() & names:
        assert getattr(options, name) == ACCEPTED[name]
    kept = Options.__dataclass_fields__.keys() & names
    assert replace(options, **{name: getattr(Options(), name) for name in kept}) == Options()


@pytest.mark.parametrize(
    ("name", "value", "error", "advice"),
    [
        ("use_orig_params", False, ConfigurationError, "use_orig_params=False.* Leave it out"),
        ("limit_all_gathers", False, ConfigurationError, "Leave it out"),
        ("backward_prefetch", BackwardPrefetch.BACKWARD_POST, ConfigurationError, "BACKWARD_PRE"),
        ("backward_prefetch", None, ConfigurationError, "BACKWARD_PRE"),
        ("mesh", 1, ArgumentTypeError, "device_mesh"),
        ("mp_policy", 1, ArgumentTypeError, "mixed_precision"),
        ("offload_policy", 1, ArgumentTypeError, "cpu_offload"),
        ("device_id", 0, ArgumentTypeError, "devices="),
        ("sync_modules", True, ArgumentTypeError, r"sync_modules=True\) is unknown.*sync_module_states"),
        ("ignored_parameters", (), ArgumentTypeError, "ignored_params"),
        ("ignored_modules", [3], ArgumentTypeError, "holds 3.*list of Module"),
        ("ignored_states", [3], ArgumentTypeError, "list of Module or Parameter"),
        ("forward_prefetch", "no", ArgumentTypeError, r"forward_prefetch='no'\) got a str.*True or False"),
        ("sync_module_states", 1, ArgumentTypeError, r"sync_module_states=1\).*True or False"),
        ("param_init_fn", 3, ArgumentTypeError, r"param_init_fn=3\).*Pass a function"),
        ("shard_placement_fn", 3, ArgumentTypeError, r"shard_placement_fn=3\).*Pass a function"),
        ("reshard_after_forward", "yes", ArgumentTypeError, "2 or more"),
        ("reshard_after_forward", 1, ArgumentTypeError, "2 or more"),
        ("process_group", "mine", ArgumentTypeError, r"new_group"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(name, value, error, advice):
    with pytest.raises(error, match=advice):
        read_options({name: value})


def test_only_what_is_unknown_is_called_so():
    with pytest.raises(ArgumentTypeError, match=r"^FSDPStrategy\(wrap=1\) is unknown"):
        read_options({"use_orig_params": True, "ignored_modules": [nn.Linear(1, 1)], "wrap": 1})


def test_what_is_ignored_may_be_named_in_three_ways():
    module, other = nn.Linear(1, 1), nn.Linear(1, 1)
    expected = {*module.parameters(), other.weight}
    assert read_options({"ignored_modules": [module], "ignored_params": {other.weight}}).ignored() == expected
    assert read_options({"ignored_states": [module, other.weight]}).ignored() == expected
    assert read_options({}).ignored() == set()


@pytest.mark.parametrize("strategy", ShardingStrategy)
def test_sharding_strategies_are_names_or_torchs(strategy):
    assert sharding_name(strategy) == sharding_name(strategy.name) == strategy.name
    keeps = strategy.name in ("SHARD_GRAD_OP", "NO_SHARD", "_HYBRID_SHARD_ZERO2")
    assert reshards(strategy.name, Options()) is (False if keeps else None)


@pytest.mark.parametrize("value", ["FULL", 1, None])
def test_other_sharding_strategies_are_refused(value):
    with pytest.raises(ConfigurationError, match=r"sharding_strategy=.*'HYBRID_SHARD'"):
        sharding_name(value)


@pytest.mark.parametrize(
    ("name", "mesh", "options"),
    [
        ("FULL_SHARD", (2, 2), Options()),
        ("NO_SHARD", None, Options(reshard_after_forward=True)),
        ("HYBRID_SHARD", (2, 2), Options(process_group=object())),
        ("HYBRID_SHARD", (2, 2, 2), Options()),
        ("HYBRID_SHARD", "2x2", Options()),
    ],
)
def test_contradictions_are_named(name, mesh, options):
    with pytest.raises(MisconfigurationException, match=r"FSDPStrategy\("):
        check_together(name, mesh, options)


def test_a_mesh_of_two_axes_goes_with_hybrid_sharding():
    check_together("HYBRID_SHARD", (2, 2), Options())
    check_together("FULL_SHARD", None, Options(reshard_after_forward=2))


def test_casts_of_fsdp1_keep_their_meaning():
    casts = read_casts(MixedPrecision(param_dtype=torch.bfloat16, buffer_dtype=torch.float16))
    assert (casts.reduce_dtype, casts.buffer_dtype) == (torch.bfloat16, torch.float16)
    root = casts.policy(nn.Linear(1, 1), is_root=True)
    assert (root.param_dtype, root.reduce_dtype, root.cast_forward_inputs) == (torch.bfloat16, torch.bfloat16, True)
    assert not casts.policy(nn.Linear(1, 1), is_root=False).cast_forward_inputs
    assert casts.keeps_apart(nn.BatchNorm1d(1))
    assert casts.policy(nn.BatchNorm1d(1), is_root=False) == MixedPrecisionPolicy(cast_forward_inputs=False)
    assert not Casts().keeps_apart(nn.BatchNorm1d(1))


def test_casts_of_fully_shard_are_taken_as_they_are():
    given = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
    assert read_casts(given).policy(nn.Linear(1, 1), is_root=True) == given
    assert read_casts(given).policy(nn.Linear(1, 1), is_root=False).output_dtype is None


def test_casts_that_cannot_be_had():
    with pytest.raises(ConfigurationError, match="keep_low_precision_grads"):
        read_casts(MixedPrecision(keep_low_precision_grads=True))
    with pytest.raises(ArgumentTypeError, match=r"mixed_precision='bf16'\) is a str"):
        read_casts("bf16")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, False),
        (True, True),
        (CPUOffload(offload_params=True), True),
        (CPUOffload(), False),
        (CPUOffloadPolicy(), True),
        (OffloadPolicy(), False),
    ],
)
def test_offloading_is_said_in_many_ways(given, expected):
    assert offloads(given) is expected


def test_other_words_for_offloading_are_refused():
    with pytest.raises(ArgumentTypeError, match=r"cpu_offload='yes'\) is a str"):
        offloads("yes")
