import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.checkpoint.migrate import migrate_checkpoint
from fulmen.trainer.format_version import FORMAT_VERSION, VERSION_KEY


def loops_of_1_9():
    counts = {"total": {"ready": 4, "completed": 4}, "current": {"ready": 2, "completed": 2}}
    return {
        "fit_loop": {
            "state_dict": {},
            "epoch_loop.state_dict": {"_batches_that_stepped": 4},
            "epoch_loop.batch_progress": counts,
            "epoch_loop.batch_loop.state_dict": {},
            "epoch_loop.batch_loop.optimizer_loop.state_dict": {},
            "epoch_loop.batch_loop.optimizer_loop.optim_progress": {
                "optimizer": {"step": counts},
                "optimizer_position": 1,
            },
            "epoch_loop.batch_loop.manual_loop.optim_step_progress": counts,
            "epoch_loop.val_loop.state_dict": {},
            "epoch_loop.val_loop.dataloader_progress": counts,
            "epoch_loop.val_loop.epoch_loop.state_dict": {},
            "epoch_loop.val_loop.epoch_loop.batch_progress": counts,
            "epoch_progress": counts,
        },
        "validate_loop": {"state_dict": {}, "dataloader_progress": counts, "epoch_loop.batch_progress": counts},
    }


@given(st.sampled_from(["0.9.0", "1.4.0", "1.5.10", "1.6.0", "1.8.6", "1.9.5", "2.0.0", FORMAT_VERSION, None]))
def test_migrating_twice_changes_no_more(version):
    checkpoint = {"epoch": 2, "global_step": 4, "state_dict": {}, "loops": loops_of_1_9()}
    if version is not None:
        checkpoint[VERSION_KEY] = version
    once, _ = migrate_checkpoint(copy.deepcopy(checkpoint))
    twice, done = migrate_checkpoint(copy.deepcopy(once))
    assert twice == once
    assert done == {}


def test_the_current_form_is_left_alone():
    checkpoint = {VERSION_KEY: FORMAT_VERSION, "loops": {"fit_loop": {"epoch_loop.val_loop._results": 1}}}
    same, done = migrate_checkpoint(checkpoint)
    assert same == {VERSION_KEY: FORMAT_VERSION, "loops": {"fit_loop": {"epoch_loop.val_loop._results": 1}}}
    assert done == {}


def test_loops_inside_loops_become_the_ones_of_2_0():
    checkpoint, done = migrate_checkpoint({VERSION_KEY: "1.9.5", "loops": loops_of_1_9()})
    assert sorted(checkpoint["loops"]["fit_loop"]) == [
        "epoch_loop.automatic_optimization.optim_progress",
        "epoch_loop.automatic_optimization.state_dict",
        "epoch_loop.batch_progress",
        "epoch_loop.manual_optimization.optim_step_progress",
        "epoch_loop.state_dict",
        "epoch_loop.val_loop.batch_progress",
        "epoch_loop.val_loop.state_dict",
        "epoch_progress",
        "state_dict",
    ]
    assert sorted(checkpoint["loops"]["validate_loop"]) == ["batch_progress", "state_dict"]
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    assert "optimizer_position" not in progress
    assert list(done) == ["2.0.0"]


def test_a_checkpoint_without_loops_gets_counts():
    checkpoint, _ = migrate_checkpoint({VERSION_KEY: "1.4.0", "epoch": 3, "global_step": 12, "state_dict": {}})
    fit = checkpoint["loops"]["fit_loop"]
    assert fit["epoch_progress"]["current"]["completed"] == 3
    steps = fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]
    assert steps == {"ready": 12, "completed": 12}
    assert fit["epoch_loop.state_dict"] == {"_batches_that_stepped": 12}


def test_flat_states_of_callbacks_are_nested():
    flat = {
        "checkpoint_callback_best_model_path": "p",
        "early_stop_callback_wait": 2,
        "early_stop_callback_patience": 5,
    }
    checkpoint, _ = migrate_checkpoint({VERSION_KEY: "0.9.0", **flat})
    assert checkpoint["callbacks"] == {
        "ModelCheckpoint": {"best_model_path": "p"},
        "EarlyStopping": {"wait_count": 2, "patience": 5},
    }


def test_keys_of_model_checkpoints_lose_what_no_longer_counts():
    old = "ModelCheckpoint{'monitor': 'a', 'train_time_interval': None, 'save_on_train_epoch_end': True}"
    checkpoint, _ = migrate_checkpoint({VERSION_KEY: "1.8.0", "callbacks": {old: 1}})
    assert checkpoint["callbacks"] == {"ModelCheckpoint{'monitor': 'a', 'train_time_interval': None}": 1}


@pytest.mark.parametrize("key", ["native_amp_scaling_state", "MixedPrecisionPlugin"])
def test_the_scaler_is_found_under_the_name_of_the_precision(key):
    checkpoint, _ = migrate_checkpoint({VERSION_KEY: "1.9.0", key: {"scale": 2.0}, "amp_scaling_state": {}})
    assert checkpoint == {VERSION_KEY: FORMAT_VERSION, "MixedPrecision": {"scale": 2.0}}


def test_a_target_is_not_passed():
    _, done = migrate_checkpoint({VERSION_KEY: "1.4.0"}, target_version="1.6.0")
    assert list(done) == ["1.5.0", "1.6.0"]
