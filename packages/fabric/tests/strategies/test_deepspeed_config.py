"""Arguments to a configuration and back: the same meaning, and what contradicts each other."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.strategies.deepspeed.arguments import DEFAULTS, NAMES, DeepSpeedArguments, LossScaling
from fulmen.fabric.strategies.deepspeed.checks import (
    agreed,
    check_absent,
    check_batches,
    check_precision,
    check_remote_device,
)
from fulmen.fabric.strategies.deepspeed.config import (
    arguments_from,
    chosen,
    completed,
    config_from,
    counts_batches,
    merged,
    read_config,
)
from fulmen.fabric.strategies.deepspeed.sections import SECTIONS, offloads, precision_in, zero_stage

VALUES = {
    bool: st.booleans(),
    int: st.integers(1, 10**9),
    str: st.sampled_from(["cpu", "nvme", "/a/disk"]),
}


def arguments(**fixed):
    drawn = {name: VALUES[type(default)] for name, default in DEFAULTS.items()}
    drawn |= {"stage": st.integers(0, 3)}
    drawn |= {name: st.sampled_from(["cpu", "nvme"]) for name in DEFAULTS if name.endswith("device")}
    return st.builds(DeepSpeedArguments, **(drawn | {name: st.just(value) for name, value in fixed.items()}))


ALL_ON = arguments(zero_optimization=True, offload_optimizer=True, offload_parameters=True)


@given(arguments())
def test_the_way_back_says_the_same(given_arguments):
    config = config_from(given_arguments)
    assert config_from(arguments_from(config)) == config


@given(ALL_ON)
def test_where_all_sections_are_on_nothing_is_lost(given_arguments):
    assert arguments_from(config_from(given_arguments)) == given_arguments


@given(arguments())
def test_a_configuration_agrees_with_its_own_arguments(given_arguments):
    config = config_from(given_arguments)
    assert merged(config, arguments_from(config)) == config


@given(ALL_ON, ALL_ON)
def test_arguments_beside_a_configuration_agree_or_are_refused(one, other):
    config = config_from(one)
    contradicts = any(value != getattr(one, name) for name, value in other.given().items())
    if contradicts:
        with pytest.raises(ConfigurationError, match="contradicts the configuration of DeepSpeed"):
            merged(config, other)
    else:
        assert merged(config, other) == config


@given(arguments(), st.sampled_from(list(SECTIONS)), st.none() | st.floats(0.1, 5), st.none() | st.integers(1, 99))
def test_what_the_engine_gets_is_complete_and_can_be_written(given_arguments, precision, clip_val, batch_size):
    config = config_from(given_arguments)
    before = json.dumps(config)
    full = completed(config, precision=precision, scaling=LossScaling(), batch_size=batch_size, clip_val=clip_val)
    assert json.dumps(config) == before, "the user's is left alone"
    assert json.loads(json.dumps(full)) == full
    assert full["gradient_accumulation_steps"] == 1
    assert full["managed_gradient_accumulation"] is False
    assert full["train_micro_batch_size_per_gpu"] == (batch_size or 1)
    assert full["gradient_clipping"] == (clip_val or 0.0)
    enabled = {name for name in ("fp16", "bf16") if full.get(name, {}).get("enabled")}
    assert enabled == ({SECTIONS[precision]} - {None})
    assert zero_stage(full) == zero_stage(config)


@given(st.recursive(st.integers() | st.text() | st.booleans(), lambda inner: st.dictionaries(st.text(), inner)))
def test_a_file_says_what_a_dictionary_says(tmp_path_factory, content):
    content = {"x": content}
    path = tmp_path_factory.getbasetemp() / "config.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_config(path) == read_config(str(path)) == read_config(content) == content


@pytest.mark.parametrize(("name", "preset"), [(name, preset) for name, _, preset in NAMES])
def test_a_name_says_its_stage_and_what_waits_where(name, preset):
    preset = {key: value for key, value in preset.items() if key != "remote_device"}
    config = chosen(DeepSpeedArguments(**preset), None, None)
    assert zero_stage(config) == next((int(digit) for digit in name if digit.isdigit()), 2)
    where = "nvme" if name.endswith("nvme") else "cpu" if "offload" in name else None
    assert offloads(config, "optimizer") == where
    assert offloads(config, "parameters") == (where if zero_stage(config) == 3 else None)


def test_a_configuration_takes_the_place_of_the_defaults():
    assert zero_stage(chosen(DeepSpeedArguments(stage=3), {}, None)) == 3
    assert zero_stage(chosen(DeepSpeedArguments(offload_optimizer=True), {}, None)) == 2
    config = chosen(DeepSpeedArguments(), {"zero_optimization": {"stage": 3}}, None)
    assert config == {"zero_optimization": {"stage": 3}}
    config = chosen(DeepSpeedArguments(pin_memory=True), {"zero_optimization": {"offload_optimizer": {}}}, None)
    assert config == {"zero_optimization": {"offload_optimizer": {"pin_memory": True}}}


def test_the_environment_names_a_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"zero_optimization": {"stage": 1}}')
    assert zero_stage(chosen(DeepSpeedArguments(), None, str(path))) == 1
    assert zero_stage(chosen(DeepSpeedArguments(), {"zero_optimization": {"stage": 3}}, str(path))) == 3


def test_an_engine_that_counts_batches_is_left_to_it():
    config = {"gradient_accumulation_steps": 4, "zero_optimization": {"stage": 1, "overlap_comm": True}}
    full = completed(config, precision="32-true", scaling=LossScaling(), batch_size=2, clip_val=None)
    assert full["managed_gradient_accumulation"] is True
    assert full["zero_optimization"]["overlap_comm"] is True
    by_run = completed(config, precision="32-true", scaling=LossScaling(), batch_size=2, clip_val=None, run_counts=True)
    assert by_run["gradient_accumulation_steps"] == 1
    assert by_run["managed_gradient_accumulation"] is False
    assert by_run["zero_optimization"]["overlap_comm"] is False
    assert not counts_batches({"gradient_accumulation_steps": "auto"})


def test_sizes_of_a_batch_that_say_the_third_are_left_alone():
    config = {"train_batch_size": 8, "gradient_accumulation_steps": 2}
    full = completed(config, precision="32-true", scaling=LossScaling(), batch_size=5, clip_val=None)
    assert "train_micro_batch_size_per_gpu" not in full


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 7), st.booleans())
def test_two_sizes_of_a_batch_say_the_third(micro, steps, world_size, which, is_auto):
    said = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "train_batch_size": micro * steps * world_size,
    }
    left = {key: value for place, (key, value) in enumerate(said.items()) if which & 1 << place}
    config = {**dict.fromkeys(said, "auto"), **left} if is_auto else left
    rest = {"precision": "32-true", "scaling": LossScaling(), "clip_val": None, "world_size": world_size}
    full = completed(config, batch_size=None, **rest)
    accumulate = full["gradient_accumulation_steps"]
    check_batches(full, batch_size=None, accumulate=accumulate, world_size=world_size)
    assert "auto" not in full.values()
    assert left.items() <= full.items()
    if len(left) > 1:
        assert accumulate == steps
        assert full.get("train_micro_batch_size_per_gpu", micro) == micro
        assert full["managed_gradient_accumulation"] == (steps > 1)
    elif "gradient_accumulation_steps" not in left:
        assert accumulate == 1
    by_run = completed(config, batch_size=micro, run_counts=True, **rest)
    assert by_run["train_micro_batch_size_per_gpu"] == micro
    assert by_run["gradient_accumulation_steps"] == 1
    assert "train_batch_size" not in by_run


def test_a_section_that_is_null_is_left_out():
    rest = {"precision": "32-true", "scaling": LossScaling(), "clip_val": None, "batch_size": None}
    assert not {"optimizer", "scheduler"} & completed({"optimizer": None, "scheduler": None}, **rest).keys()
    section = {"type": "Lamb"}
    assert completed({"optimizer": section, "scheduler": None}, **rest)["optimizer"] == section


def test_the_size_for_reports_is_one_of_them():
    rest = {"precision": "32-true", "scaling": LossScaling(), "clip_val": None, "world_size": 2}
    full = completed({"train_batch_size": 16}, batch_size=4, **rest)
    assert (full["train_micro_batch_size_per_gpu"], full["gradient_accumulation_steps"]) == (4, 2)
    assert completed({"train_batch_size": 15}, batch_size=4, **rest)["gradient_accumulation_steps"] == 1


def test_loss_scaling_fills_only_what_the_configuration_leaves_open():
    full = completed(
        {"fp16": {"loss_scale_window": 7}},
        precision="16-mixed",
        scaling=LossScaling(loss_scale_window=9, hysteresis=3),
        batch_size=None,
        clip_val=None,
    )
    assert full["fp16"]["loss_scale_window"] == 7
    assert full["fp16"]["hysteresis"] == 3


def test_the_precision_of_a_configuration_is_read():
    assert precision_in({}) is None
    assert precision_in({"fp16": {"enabled": True}}) == "16-mixed"
    assert precision_in({"bf16": {"enabled": True}, "fp16": {"enabled": False}}) == "bf16-mixed"
    check_precision({"bf16": {"enabled": True}}, "bf16-true", "Trainer(precision='bf16-true')")


# --- what is refused

GIVEN_ALONE = [
    ({"stage": 4}, ConfigurationError, r"stage=4"),
    ({"stage": "2"}, ArgumentTypeError, r"stage='2'"),
    ({"stage": 2.0}, ArgumentTypeError, r"stage=2\.0"),
    ({"zero_optimization": 1}, ArgumentTypeError, r"zero_optimization=1"),
    ({"offload_optimizer": "cpu"}, ArgumentTypeError, r"offload_optimizer='cpu'"),
    ({"offload_parameters": True}, ConfigurationError, r"stage=2, offload_parameters=True"),
    ({"offload_params_device": "disk", "stage": 3, "offload_parameters": True}, ConfigurationError, r"'disk'"),
    ({"offload_optimizer_device": "nvme"}, ConfigurationError, r"offload_optimizer_device='nvme'.*no effect"),
    ({"pin_memory": True}, ConfigurationError, r"pin_memory=True.*no effect"),
    ({"nvme_path": 3}, ArgumentTypeError, r"nvme_path=3"),
    ({"queue_depth": 0}, ConfigurationError, r"queue_depth=0"),
    ({"zero_optimization": False, "stage": 3}, ConfigurationError, r"stage=3.*no effect.*zero_optimization"),
    ({"reduce_bucket_size": 5e8}, ArgumentTypeError, r"reduce_bucket_size=500000000\.0"),
]


@pytest.mark.parametrize(("given_arguments", "error", "message"), GIVEN_ALONE)
def test_arguments_are_refused(given_arguments, error, message):
    with pytest.raises(error, match=message):
        chosen(DeepSpeedArguments(**given_arguments), None, None)


CONFIGURATIONS = [
    (3, ArgumentTypeError, "config=3"),
    ("nowhere.json", ConfigurationError, "nowhere.json.*cannot be read"),
    ({"zero_optimization": {"stage": 5}}, ConfigurationError, "zero_optimization.stage=5"),
    ({"zero_optimization": {"stage": "3"}}, ConfigurationError, "zero_optimization.stage='3'"),
    ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, ConfigurationError, "offload_param"),
    ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, ConfigurationError, "fp16 and bf16"),
    ({"checkpoint": {"load_universal": True}}, ConfigurationError, "load_universal"),
]


@pytest.mark.parametrize(("config", "error", "message"), CONFIGURATIONS)
def test_configurations_are_refused(config, error, message):
    with pytest.raises(error, match=message):
        chosen(DeepSpeedArguments(), config, None)


@pytest.mark.parametrize(("text", "message"), [("{", "no JSON"), ("[1]", "holds a list")])
def test_files_are_refused(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_config(path)


def test_both_sides_of_a_contradiction_are_named():
    with pytest.raises(ConfigurationError, match=r"stage=3\).*zero_optimization\.stage is 1"):
        merged({"zero_optimization": {"stage": 1}}, DeepSpeedArguments(stage=3))
    with pytest.raises(ConfigurationError, match=r"zero_optimization=False\).*zero_optimization is \{\.\.\.\}"):
        merged({"zero_optimization": {"stage": 1}}, DeepSpeedArguments(zero_optimization=False))
    with pytest.raises(ConfigurationError, match=r"offload_params_device='nvme'\) has no effect.*offload_param\."):
        merged({"zero_optimization": {"stage": 3}}, DeepSpeedArguments(offload_params_device="nvme"))
    with pytest.raises(ConfigurationError, match=r"Trainer\(gradient_clip_val=0\.5\).*gradient_clipping is 1\.0"):
        agreed({"gradient_clipping": 1.0}, "gradient_clipping", 0.5, "Trainer(gradient_clip_val=0.5)")
    assert agreed({"gradient_clipping": "auto"}, "gradient_clipping", 0.5, "") == 0.5
    assert agreed({"gradient_clipping": 1.0}, "gradient_clipping", None, "") == 1.0
    with pytest.raises(ConfigurationError, match=r"Trainer\(precision='32-true'\).*bf16\.enabled is True"):
        check_precision({"bf16": {"enabled": True}}, "32-true", "Trainer(precision='32-true')")
    with pytest.raises(ConfigurationError, match=r"fp16\.enabled is False"):
        check_precision({"fp16": {"enabled": False}}, "16-mixed", "Trainer(precision='16-mixed')")
    with pytest.raises(ConfigurationError, match=r"precision='64-true'"):
        check_precision({}, "64-true", "Trainer(precision='64-true')")
    with pytest.raises(ConfigurationError, match=r"here.*section 'optimizer'"):
        check_absent({"optimizer": {"type": "Adam"}}, "optimizer", "here")


def test_parts_elsewhere_need_parts():
    check_remote_device(None, {})
    check_remote_device("cpu", {"zero_optimization": {"stage": 3}})
    with pytest.raises(ConfigurationError, match=r"remote_device='cpu'.*stage=2"):
        check_remote_device("cpu", {"zero_optimization": {"stage": 2}})
    with pytest.raises(ConfigurationError, match="remote_device='disk'"):
        check_remote_device("disk", {"zero_optimization": {"stage": 3}})


def of_name(name):
    return DeepSpeedArguments(**next(preset for known, _, preset in NAMES if known == name))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_name_says_its_stage_beside_a_configuration(stage):
    name = of_name(f"deepspeed_stage_{stage}")
    said = chosen(name, {"train_micro_batch_size_per_gpu": 4}, None)
    assert said["zero_optimization"] == {"stage": stage}
    assert type(said["zero_optimization"]["stage"]) is int
    assert json.loads(json.dumps(chosen(name, None, None)))["zero_optimization"]["stage"] == stage
    assert chosen(name, {"zero_optimization": {"stage": stage}}, None)["zero_optimization"]["stage"] == stage
    for other in {0, 1, 2, 3} - {stage}:
        with pytest.raises(ConfigurationError, match=rf"stage={stage}\).*zero_optimization\.stage is {other}"):
            chosen(name, {"zero_optimization": {"stage": other}}, None)


def test_the_usual_stage_says_nothing_beside_a_configuration():
    for config in ({}, {"zero_optimization": {"stage": 3}}):
        for arguments in (DeepSpeedArguments(), of_name("deepspeed")):
            assert chosen(arguments, config, None) == config
