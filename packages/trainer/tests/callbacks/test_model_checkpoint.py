import datetime
import os

import pytest
import torch

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint

# The ckpt_* cases that the reference was measured with: arguments; what is not as usual in the fit; the files; best;
# last; best score; k-th best; the ranking. Usual: 3 epochs of 2 batches, val_loss 3.0, 1.0, 2.0.
ONE, TWO = {"max_epochs": 1}, {"max_epochs": 2}
HALF = {"max_epochs": 1, "val_check_interval": 0.5, "val_check_batch": 1}
E0, E1, E2 = "epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt", "epoch=2-step=6.ckpt"
S = [f"step={step:05d}.ckpt" for step in (2, 4, 6)]
M = [f"epoch=0{epoch}-val_loss={loss}.ckpt" for epoch, loss in enumerate(("3.00", "1.00", "2.00"))]
N = [f"epoch={epoch}-loss={loss}.ckpt" for epoch, loss in enumerate(("3.0", "1.0", "2.0"))]
V = [f"val/loss={loss}.ckpt" for loss in ("3.00", "1.00", "2.00")]
CASES = {
    "default": ({}, {}, [E2], E2, "", None, "", {}),
    "monitor_top1": ({"monitor": "val_loss"}, {}, [E1], E1, "", 1.0, E1, {E1: 1.0}),
    "monitor_top2": ({"monitor": "val_loss", "save_top_k": 2}, {}, [E1, E2], E1, "", 1.0, E2, {E1: 1.0, E2: 2.0}),
    "monitor_top2_max": (
        {"monitor": "val_loss", "save_top_k": 2, "mode": "max"},
        *({}, [E0, E2], E0, "", 3.0, E2, {E0: 3.0, E2: 2.0}),
    ),
    "top_all": ({"save_top_k": -1}, {}, [E0, E1, E2], E2, "", None, "", {}),
    "monitor_top_all": (
        {"monitor": "val_loss", "save_top_k": -1},
        *({}, [E0, E1, E2], E1, "", 1.0, E0, {E0: 3.0, E1: 1.0, E2: 2.0}),
    ),
    "top_0": ({"save_top_k": 0}, {}, [], "", "", None, "", {}),
    "top_0_save_last": ({"save_top_k": 0, "save_last": True}, {}, ["last.ckpt"], "", "last.ckpt", None, "", {}),
    "save_last": (
        {"save_last": True, "monitor": "val_loss"},
        *({}, [E1, "last.ckpt"], E1, "last.ckpt", 1.0, E1, {E1: 1.0}),
    ),
    "save_last_link": (
        {"save_last": "link", "monitor": "val_loss"},
        *({}, [E1, f"last.ckpt -> {E1}"], E1, "last.ckpt", 1.0, E1, {E1: 1.0}),
    ),
    "filename_metric": (
        {"filename": "{epoch:02d}-{val_loss:.2f}", "monitor": "val_loss", "save_top_k": -1},
        *({}, M, M[1], "", 1.0, M[0], {M[0]: 3.0, M[1]: 1.0, M[2]: 2.0}),
    ),
    "filename_no_auto_insert": (
        {
            "filename": "epoch={epoch}-loss={val_loss:.1f}",
            "auto_insert_metric_name": False,
            "monitor": "val_loss",
            "save_top_k": -1,
        },
        *({}, N, N[1], "", 1.0, N[0], {N[0]: 3.0, N[1]: 1.0, N[2]: 2.0}),
    ),
    "filename_slash_metric": (
        {"filename": "{val/loss:.2f}", "monitor": "val/loss", "save_top_k": -1},
        *({}, sorted(V), V[1], "", 1.0, V[0], {V[0]: 3.0, V[1]: 1.0, V[2]: 2.0}),
    ),
    "filename_slash_no_auto_insert": (
        {"filename": "l={val/loss:.2f}", "monitor": "val/loss", "auto_insert_metric_name": False},
        *({}, ["l=1.00.ckpt"], "l=1.00.ckpt", "", 1.0, "l=1.00.ckpt", {"l=1.00.ckpt": 1.0}),
    ),
    "filename_missing_metric": (
        {"filename": "{nope:.2f}-{epoch}"},
        *({}, ["nope=0.00-epoch=2.ckpt"], "nope=0.00-epoch=2.ckpt", "", None, "", {}),
    ),
    "filename_step": (
        {"filename": "{step:05d}", "every_n_train_steps": 2, "save_top_k": -1},
        *({}, S, S[2], "", None, "", {}),
    ),
    "filename_constant": (
        {"filename": "model", "monitor": "val_loss"},
        *({}, ["model.ckpt"], "model.ckpt", "", 1.0, "model.ckpt", {"model.ckpt": 1.0}),
    ),
    "filename_constant_top_all": (
        {"filename": "model", "save_top_k": -1},
        *({}, ["model.ckpt"], "model.ckpt", "", None, "", {}),
    ),
    "filename_constant_existing": (
        {"filename": "model"},
        *({"existing": "model.ckpt"}, ["model-v1.ckpt", "model.ckpt"], "model-v1.ckpt", "", None, "", {}),
    ),
    "filename_constant_existing_no_version": (
        {"filename": "model", "enable_version_counter": False},
        *({"existing": "model.ckpt"}, ["model.ckpt"], "model.ckpt", "", None, "", {}),
    ),
    "every_n_epochs_2": ({"every_n_epochs": 2, "save_top_k": -1}, {}, [E1], E1, "", None, "", {}),
    "every_n_epochs_0": ({"every_n_epochs": 0}, {}, [], "", "", None, "", {}),
    "every_n_train_steps_3": (
        {"every_n_train_steps": 3, "save_top_k": -1},
        *({}, ["epoch=1-step=3.ckpt", E2], E2, "", None, "", {}),
    ),
    "every_n_train_steps_monitor": (
        {"every_n_train_steps": 2, "monitor": "train_loss"},
        *({}, [E2], E2, "", -6.0, E2, {E2: -6.0}),
    ),
    "save_on_train_epoch_end": (
        {"save_on_train_epoch_end": True, "save_top_k": -1},
        *({}, [E0, E1, E2], E2, "", None, "", {}),
    ),
    "val_check_half": ({"save_top_k": -1}, HALF, ["epoch=0-step=1.ckpt", E0], E0, "", None, "", {}),
    "val_check_half_monitor": (
        {"save_top_k": -1, "monitor": "val_loss"},
        *(HALF, ["epoch=0-step=1.ckpt", E0], "epoch=0-step=1.ckpt", "", 3.0, "epoch=0-step=1.ckpt"),
        {"epoch=0-step=1.ckpt": 3.0, E0: 3.0},
    ),
    "filename_subdir": (
        {"filename": "sub/{epoch}"},
        *({}, ["sub/epoch=2.ckpt"], "sub/epoch=2.ckpt", "", None, "", {}),
    ),
    "filename_unformatted": (
        {"filename": "{epoch}-{step}-{val_loss}"},
        *(ONE, ["epoch=0-step=2-val_loss=3.0.ckpt"], "epoch=0-step=2-val_loss=3.0.ckpt", "", None, "", {}),
    ),
    "weights_only": ({"save_weights_only": True}, ONE, [E0], E0, "", None, "", {}),
    "no_validation": ({}, {**TWO, "enable_validation": False}, [E1], E1, "", None, "", {}),
    "train_time_interval": (
        {"train_time_interval": datetime.timedelta(0), "save_top_k": -1},
        *(ONE, ["epoch=0-step=1.ckpt", E0], E0, "", None, "", {}),
    ),
    "train_time_interval_long": (
        {"train_time_interval": datetime.timedelta(seconds=3600)},
        *(ONE, [], "", "", None, "", {}),
    ),
    "nan_monitor": (
        {"monitor": "val_loss"},
        *({**TWO, "val_losses": (float("nan"), 2.0)}, [E1], E1, "", 2.0, E1, {E1: 2.0}),
    ),
    "save_on_exception": ({"save_on_exception": True}, {"fail_at": 1}, ["epoch=0-step=1.ckpt"], "", "", None, "", {}),
}


def files(folder):
    """Relative paths of all files; links with what they point to."""
    found = []
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            target = f" -> {os.readlink(path)}" if os.path.islink(path) else ""
            found.append(os.path.relpath(path, folder) + target)
    return sorted(found)


@pytest.mark.filterwarnings("ignore:The checkpoint folder")
@pytest.mark.parametrize("case", CASES)
def test_files_and_ranking_are_those_of_the_reference(case, make_trainer, tmp_path):
    arguments, setting, expected_files, best, last, score, kth, ranking = CASES[case]
    setting = dict(setting)
    fit = {name: setting.pop(name) for name in ("val_losses", "fail_at") if name in setting}
    if existing := setting.pop("existing", None):
        (tmp_path / existing).touch()
    callback = ModelCheckpoint(dirpath=tmp_path, **arguments)
    make_trainer(**setting).fit(callback, **fit)

    def name(path):
        return os.path.relpath(path, tmp_path) if path else ""

    assert files(tmp_path) == sorted(expected_files)
    assert name(callback.best_model_path) == best
    assert name(callback.last_model_path) == last
    assert (None if callback.best_model_score is None else callback.best_model_score.item()) == score
    assert name(callback.kth_best_model_path) == kth
    assert {name(path): value.item() for path, value in callback.best_k_models.items()} == ranking


@pytest.mark.filterwarnings("ignore:The checkpoint folder")
def test_a_second_run_overwrites_nothing(make_trainer, tmp_path):
    for _ in range(2):
        callback = ModelCheckpoint(dirpath=tmp_path, save_last=True)
        make_trainer(max_epochs=1).fit(callback)
    assert files(tmp_path) == ["epoch=0-step=2-v1.ckpt", "epoch=0-step=2.ckpt", "last-v1.ckpt", "last.ckpt"]
    assert callback.last_model_path == str(tmp_path / "last-v1.ckpt")
    assert callback.find_last_checkpoints(make_trainer()) == {
        str(tmp_path / name) for name in ("last.ckpt", "last-v1.ckpt")
    }


def test_names_follow_the_class_attributes(make_trainer, tmp_path):
    class Other(ModelCheckpoint):
        CHECKPOINT_NAME_LAST = "{epoch}-last"
        CHECKPOINT_JOIN_CHAR = "_"
        CHECKPOINT_EQUALS_CHAR = "~"
        FILE_EXTENSION = ".pt"

    named = Other(dirpath=tmp_path, filename="{epoch}-{step}", save_last=True)
    unnamed = Other(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1)
    make_trainer(max_epochs=1).fit(named, unnamed)
    assert files(tmp_path) == ["epoch~0-last.pt", "epoch~0-step~2.pt", "epoch~0_step~1.pt", "epoch~0_step~2.pt"]
    assert named.find_last_checkpoints(make_trainer()) == {str(tmp_path / "epoch~0-last.pt")}


def test_the_folder_follows_the_first_logger_or_the_root(make_trainer, tmp_path):
    class Logger:
        name, version, save_dir = "logs", 3, None

        def after_save_checkpoint(self, callback):
            self.told = callback.best_model_path

    logger, callback = Logger(), ModelCheckpoint()
    make_trainer(loggers=[logger]).fit(callback)
    assert files(tmp_path) == [f"logs/version_3/checkpoints/{E2}"]
    assert logger.told == callback.best_model_path
    plain = ModelCheckpoint()
    plain.setup(make_trainer(), None, "fit")
    assert plain.dirpath == str(tmp_path / "checkpoints")


def test_the_state_in_a_file_is_that_after_saving_it(make_trainer, tmp_path):
    callback = ModelCheckpoint(dirpath=tmp_path, filename="c", monitor="val_loss")
    make_trainer(max_epochs=1).fit(callback)
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)[callback.state_key]
    path = str(tmp_path / "c.ckpt")
    assert list(saved) == [
        *("monitor", "best_model_score", "best_model_path", "current_score", "dirpath", "best_k_models"),
        *("kth_best_model_path", "kth_value", "last_model_path"),
    ]
    assert saved["best_model_path"] == path
    assert saved["best_k_models"] == {path: torch.tensor(3.0)}
    assert callback.state_key == (
        "ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min', 'every_n_train_steps': 0, 'every_n_epochs': 1,"
        " 'train_time_interval': None}"
    )


@pytest.mark.filterwarnings("ignore:The checkpoint folder")
def test_a_resumed_ranking_removes_what_it_kept_before(make_trainer, tmp_path):
    first = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss")
    make_trainer(max_epochs=1).fit(first)
    second = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss")
    second.load_state_dict(first.state_dict())
    make_trainer(max_epochs=1, current_epoch=1, global_step=2).fit(second)
    assert files(tmp_path) == [E1]


@pytest.mark.filterwarnings("ignore:The checkpoint folder")
def test_the_file_that_a_run_goes_on_from_is_never_removed(make_trainer, tmp_path):
    first = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss")
    make_trainer(max_epochs=1).fit(first)
    second = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss")
    second.load_state_dict(first.state_dict())
    make_trainer(max_epochs=1, current_epoch=1, global_step=2, ckpt_path=str(tmp_path / E0)).fit(second)
    assert files(tmp_path) == [E0, E1]


def test_another_folder_starts_another_ranking(tmp_path):
    callback = ModelCheckpoint(dirpath=tmp_path / "new", monitor="val_loss")
    old = {**callback.state_dict(), "dirpath": "old", "best_model_path": "old/b", "best_model_score": torch.tensor(1.0)}
    with pytest.warns(UserWarning, match="'old'"):
        callback.load_state_dict(old)
    assert callback.best_model_path == "old/b"
    assert callback.best_model_score is None


def test_the_old_file_is_removed_only_after_the_new_one_is_written(make_trainer, tmp_path):
    trainer = make_trainer(max_epochs=2)
    save, callback = trainer.save_checkpoint, ModelCheckpoint(dirpath=tmp_path)

    def save_or_fail(path, weights_only=False):
        if trainer.current_epoch == 1:
            raise OSError("disk full")
        save(path, weights_only)

    trainer.save_checkpoint = save_or_fail
    with pytest.raises(OSError, match="disk full"):
        trainer.fit(callback)
    assert files(tmp_path) == [E0]
    assert callback.best_model_path == str(tmp_path / E0)


def test_a_save_by_steps_waits_for_the_validation_that_follows(make_trainer, tmp_path):
    callback = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2, monitor="val_loss", filename="{val_loss:.0f}")
    make_trainer().fit(callback)
    assert callback.best_model_score == 1.0
    assert files(tmp_path) == ["val_loss=1.ckpt"]


def test_it_waits_too_where_validation_counts_batches_over_epochs(make_trainer, tmp_path):
    callback = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=3, monitor="val_loss", filename="{val_loss:.0f}")
    make_trainer(check_val_every_n_epoch=None, val_check_interval=3, val_check_batch=3).fit(callback)
    assert files(tmp_path) == ["val_loss=1.ckpt"]


def test_a_save_that_waits_in_vain_is_made_at_the_end_of_the_epoch(make_trainer, tmp_path):
    trainer = make_trainer(max_epochs=1, callback_metrics={"val_loss": torch.tensor(5.0)})
    trainer._validates_after = lambda batch_idx: False
    trainer.fit(ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2, monitor="val_loss"))
    assert files(tmp_path) == [E0]


def test_a_short_run_still_leaves_the_last_one(make_trainer, tmp_path):
    make_trainer().fit(ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=100, save_last=True))
    assert files(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("setting", [{"fast_dev_run": True}, {"sanity_checking": True}])
def test_trial_runs_save_nothing(setting, make_trainer, tmp_path):
    make_trainer(**setting).fit(ModelCheckpoint(dirpath=tmp_path, save_last=True))
    assert files(tmp_path) == []


def test_a_folder_with_files_is_mentioned(make_trainer, tmp_path):
    (tmp_path / "x").touch()
    with pytest.warns(UserWarning, match="not empty"):
        ModelCheckpoint(dirpath=tmp_path).setup(make_trainer(), None, "fit")


def test_a_monitor_that_nobody_logs_is_an_error_that_lists_those_that_are(make_trainer, tmp_path):
    with pytest.raises(MisconfigurationException, match=r"monitor='vall_loss'.*'train_loss', 'val/loss', 'val_loss'"):
        make_trainer().fit(ModelCheckpoint(dirpath=tmp_path, monitor="vall_loss"))


def test_before_validation_has_run_a_missing_monitor_only_warns(make_trainer, tmp_path):
    with pytest.warns(UserWarning, match="was not logged"):
        make_trainer(enable_validation=False).fit(ModelCheckpoint(dirpath=tmp_path, monitor="val_loss"))
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        ({"save_top_k": -2}, "save_top_k=-2"),
        ({"save_top_k": 2}, "save_top_k=2"),
        ({"every_n_train_steps": -1}, "every_n_train_steps=-1"),
        ({"every_n_epochs": -1}, "every_n_epochs=-1"),
        ({"every_n_epochs": 1, "every_n_train_steps": 1}, "every_n_train_steps and every_n_epochs"),
        ({"every_n_epochs": 1, "train_time_interval": datetime.timedelta(1)}, "every_n_epochs and train_time_interval"),
        ({"mode": "foo"}, "mode='foo'"),
        ({"save_last": "yes"}, "save_last='yes'"),
        ({"filename": "{epoch"}, "filename='{epoch'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_and_quoted(arguments, quoted):
    with pytest.raises(MisconfigurationException) as caught:
        ModelCheckpoint(**arguments)
    assert quoted in str(caught.value)


def test_the_ranking_as_yaml(make_trainer, tmp_path):
    import yaml

    callback = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss")
    make_trainer(max_epochs=1).fit(callback)
    callback.to_yaml()
    assert yaml.safe_load((tmp_path / "best_k_models.yaml").read_text()) == {str(tmp_path / E0): 3.0}
