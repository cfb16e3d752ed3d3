"""What is refused of arguments and configurations of DeepSpeed, and which arguments change nothing."""

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.strategies.deepspeed.arguments import DEFAULTS, DeepSpeedArguments, LossScaling
from fulmen.fabric.strategies.deepspeed.checks import (
    agreed,
    batch_size_of,
    check_batches,
    check_recomputation,
    check_remote_device,
    check_scaling,
    check_sections,
    without_effect,
)
from fulmen.fabric.strategies.deepspeed.config import chosen, completed, config_from
from fulmen.fabric.strategies.deepspeed.sections import PLACES, SWITCHES, get
from fulmen.fabric.strategies.deepspeed.strategy import DeepSpeedStrategy

# What a configuration does not say: it is the strategy's own.
OF_THE_STRATEGY = {
    "accelerator",
    "config",
    "remote_device",
    "logging_batch_size_per_gpu",
    "logging_level",
    "parallel_devices",
    "cluster_environment",
    "load_full_weights",
    "precision",
    "process_group_backend",
    "timeout",
    "exclude_frozen_parameters",
}
DISKS = {
    "stage": 3,
    "offload_optimizer": True,
    "offload_parameters": True,
    "offload_params_device": "nvme",
    "offload_optimizer_device": "nvme",
}
OTHER = {bool: lambda value: not value, int: lambda value: value - 1, str: lambda _: "/a/disk"}


def test_every_argument_has_its_place():
    arguments = set(inspect.signature(DeepSpeedStrategy.__init__).parameters) - {"self"}
    said = set(PLACES) | set(SWITCHES) | set(vars(LossScaling()))
    assert set(DEFAULTS) == set(PLACES) | set(SWITCHES)
    assert arguments == said | OF_THE_STRATEGY
    assert not said & OF_THE_STRATEGY


@pytest.mark.parametrize("name", [name for name in PLACES if name not in DISKS])
def test_every_argument_changes_what_the_engine_gets(name):
    value = OTHER[type(DEFAULTS[name])](DEFAULTS[name]) if name != "thread_count" else 3
    usual, other = (config_from(DeepSpeedArguments(**DISKS | more)) for more in ({}, {name: value}))
    for place in PLACES[name]:
        assert get(other, place) == value != get(usual, place)
    assert other != usual


@pytest.mark.parametrize("name", list(vars(LossScaling())))
def test_every_number_of_the_scaling_reaches_float16_and_nothing_else(name):
    scaling = LossScaling(**{name: 7})
    assert scaling.given() == {name: 7}
    for precision, expected in (("16-mixed", 7), ("16-true", 7), ("bf16-mixed", None), ("32-true", None)):
        full = completed({}, precision=precision, scaling=scaling, batch_size=None, clip_val=None)
        assert full.get("fp16", {}).get(name) == expected


def test_threads_have_the_name_that_deepspeed_reads():
    assert config_from(DeepSpeedArguments(**DISKS, thread_count=3))["aio"]["intra_op_parallelism"] == 3
    assert chosen(DeepSpeedArguments(), {"aio": {"thread_count": 3}}, None) == {"aio": {"intra_op_parallelism": 3}}
    with pytest.raises(ConfigurationError, match=r"thread_count=2\).*aio\.intra_op_parallelism is 3"):
        chosen(DeepSpeedArguments(thread_count=2), {"aio": {"thread_count": 3}}, None)


# --- what changes nothing


def idle(**given_arguments):
    arguments = DeepSpeedArguments(**given_arguments)
    return without_effect(arguments, chosen(arguments, None, None))


@given(st.sampled_from([0, 1, 2, 3]))
def test_what_is_not_given_is_not_told(stage):
    assert idle(stage=stage) == []


@pytest.mark.parametrize(
    ("given_arguments", "message"),
    [
        ({"block_size": 4096}, r"block_size=4096\) has no effect: nothing is offloaded to a disk"),
        ({"stage": 3, "offload_optimizer": True, "nvme_path": "/a"}, r"nvme_path='/a'\) has no effect"),
        ({"offload_optimizer": True, "optimizer_buffer_count": 9}, "offload_optimizer_device='nvme'"),
        ({"stage": 3, "offload_parameters": True, "max_in_cpu": 9}, "offload_params_device='nvme'"),
        ({"sub_group_size": 9}, r"sub_group_size=9\) has no effect with stage=2"),
        ({"stage": 3, "allgather_bucket_size": 9}, r"allgather_bucket_size=9\) has no effect with stage=3"),
        ({"stage": 0, "reduce_scatter": False}, "with stage=0"),
        ({"allgather_partitions": False}, "since its version 0.19"),
    ],
)
def test_what_changes_nothing_is_told(given_arguments, message):
    (sentence,) = idle(**given_arguments)
    assert re.search(message, sentence), sentence


@pytest.mark.parametrize("name", ["nvme_path", "block_size", "queue_depth", "max_in_cpu", "optimizer_buffer_count"])
def test_on_a_disk_it_changes_something(name):
    assert idle(**DISKS, **{name: OTHER[type(DEFAULTS[name])](DEFAULTS[name])}) == []


# --- what is said twice


@given(st.integers(2, 30), st.integers(2, 30))
def test_two_scales_of_a_loss_agree_or_are_refused(one, other):
    config, scaling = {"fp16": {"enabled": True, "initial_scale_power": one}}, LossScaling(initial_scale_power=other)
    if one == other or not scaling.given():
        check_scaling(config, scaling)
    else:
        with pytest.raises(ConfigurationError, match=rf"power={other}\).*fp16\.initial_scale_power is {one}\."):
            check_scaling(config, scaling)
    check_scaling({"fp16": {"initial_scale_power": "auto"}}, scaling)
    check_scaling({"fp16": {"enabled": True}}, scaling)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(-1, 1))
def test_the_three_sizes_of_a_batch_agree_or_are_refused(micro, accumulate, world_size, wrong):
    whole = micro * accumulate * world_size + wrong
    config = {"train_batch_size": whole, "train_micro_batch_size_per_gpu": micro}
    rest = {"accumulate": accumulate, "world_size": world_size}
    if wrong:
        with pytest.raises(ConfigurationError, match=rf"train_batch_size={whole}, and a step takes {whole - wrong} "):
            check_batches(config, batch_size=None, **rest)
    else:
        check_batches(config, batch_size=micro, **rest)
        check_batches({"train_batch_size": whole}, batch_size=micro, **rest)
    with pytest.raises(ConfigurationError, match=r"DataLoader\(batch_size=10\).*train_micro_batch_size_per_gpu is"):
        check_batches(config, batch_size=10, **rest)
    if wrong and accumulate * world_size > 1:
        with pytest.raises(ConfigurationError, match=rf"train_batch_size={whole}, which cannot be divided.*processes"):
            check_batches({"train_batch_size": whole}, batch_size=None, **rest)
    else:
        check_batches({"train_batch_size": whole}, batch_size=None, **rest)
    check_batches({"train_batch_size": "auto"}, batch_size=micro, **rest)


def test_a_loader_says_the_size_of_its_batches():
    class Sampler:
        batch_size = 4

    class Loader:
        batch_size, batch_sampler = None, Sampler()

    assert batch_size_of(Sampler()) == batch_size_of(Loader()) == 4
    assert batch_size_of(None) is batch_size_of([]) is None


# --- what is refused

MISTAKES = [
    ({"zero_optimization": 2}, ArgumentTypeError, r"zero_optimization=2\..*\{'zero_optimization': \{'stage': 2\}\}"),
    ({"zero_optimization": {"stage": 3, "offload_param": "cpu"}}, ArgumentTypeError, "offload_param='cpu'"),
    ({"fp16": True}, ArgumentTypeError, r"fp16=True.*\{'enabled': True\}"),
    ({"optimizer": "Adam"}, ArgumentTypeError, "optimizer='Adam'"),
    ({"gradient_clipping": "1"}, ConfigurationError, "gradient_clipping='1'.*a number of 0 or more"),
    ({"gradient_clipping": float("nan")}, ConfigurationError, "gradient_clipping=nan"),
    ({"gradient_clipping": -1}, ConfigurationError, "gradient_clipping=-1"),
    ({"gradient_accumulation_steps": "2"}, ConfigurationError, "gradient_accumulation_steps='2'"),
    ({"gradient_accumulation_steps": 0}, ConfigurationError, "gradient_accumulation_steps=0"),
    ({"train_batch_size": True}, ConfigurationError, "train_batch_size=True"),
    ({"gradient_cliping": 1.0}, ConfigurationError, "'gradient_cliping'.*'gradient_clipping'"),
    ({"train_micro_batch_size_per_cpu": 1}, ConfigurationError, "'train_micro_batch_size_per_gpu'"),
]


@pytest.mark.parametrize(("config", "error", "message"), MISTAKES)
def test_configurations_are_refused(config, error, message):
    with pytest.raises(error, match=message):
        chosen(DeepSpeedArguments(), config, None)


def test_what_may_stay_open_and_what_is_deepspeeds_own_is_let_through():
    check_sections({"gradient_clipping": "auto", "train_batch_size": None, "fp16": {"enabled": "auto"}})
    check_sections({"comms_logger": {"enabled": True}, "zenflow": {}, "data_types": {}, "wandb": {}, "amp": {}})


def test_memory_for_activations_needs_a_size():
    arguments = DeepSpeedArguments(partition_activations=True, contiguous_memory_optimization=True)
    with pytest.raises(ConfigurationError, match="number_checkpoints"):
        check_recomputation(chosen(arguments, None, None))
    check_recomputation(chosen(arguments, {"activation_checkpointing": {"number_checkpoints": 2}}, None))
    with pytest.raises(ConfigurationError, match="partition_activations=True"):
        check_recomputation(
            {"activation_checkpointing": {"contiguous_memory_optimization": True, "number_checkpoints": 2}}
        )
    check_recomputation({})


def test_parts_on_a_disk_need_one():
    with pytest.raises(ConfigurationError, match=r"remote_device='nvme'.*offload_params_device='nvme'"):
        check_remote_device("nvme", {"zero_optimization": {"stage": 3}})
    check_remote_device("nvme", config_from(DeepSpeedArguments(**DISKS)))


def test_what_the_run_says_stands_where_the_configuration_is_open():
    assert agreed({"train_batch_size": "auto"}, "train_batch_size", 4, "") == 4
