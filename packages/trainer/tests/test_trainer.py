import inspect

import pytest
import torch
from torch.utils.data import DataLoader

from fulmen.trainer.demos import BoringDataModule, BoringModel, RandomDataset
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.run.settings import Settings
from fulmen.trainer.trainer import Trainer


def loader(samples=2):
    return DataLoader(RandomDataset(32, samples))


def test_every_setting_is_a_flag_with_the_same_default():
    flags = inspect.signature(Trainer).parameters
    settings = inspect.signature(Settings).parameters
    assert set(settings) <= set(flags)
    for name, setting in settings.items():
        if name != "default_root_dir":  # None is the current folder
            assert flags[name].default == setting.default, name
    assert all(flag.kind is inspect.Parameter.KEYWORD_ONLY for flag in flags.values())


def test_the_module_of_the_last_run_need_not_be_passed_again(quick):
    trainer, module = quick(limit_train_batches=1, limit_val_batches=1), BoringModel()
    for call in (trainer.validate, trainer.test, trainer.predict):
        with pytest.raises(ConfigurationError, match="was called without a model, and this Trainer has run none yet"):
            call()
    trainer.fit(module)
    assert trainer.test(dataloaders=loader(), verbose=False) == [{}]
    assert trainer.validate(verbose=False) == [{}]
    assert len(trainer.predict(dataloaders=loader())) == 2


def test_a_datamodule_may_stand_in_the_place_of_loaders(quick):
    for given in ({"datamodule": BoringDataModule()}, {"train_dataloaders": BoringDataModule()}):
        trainer = quick(limit_train_batches=1, limit_val_batches=1)
        trainer.fit(BoringModel(), **given)
        assert trainer.global_step == 1


def test_results_are_printed_unless_that_is_switched_off(quick, capsys):
    class Measuring(BoringModel):
        def test_step(self, batch, batch_idx):
            self.log("accuracy", 0.5)

    quick().test(Measuring(), loader(), verbose=False)
    assert capsys.readouterr().out == ""
    quick().test(Measuring(), loader())
    assert "accuracy" in capsys.readouterr().out


def test_best_loads_what_was_kept(quick, tmp_path):
    class Counting(BoringModel):
        def __init__(self):
            super().__init__()
            self.register_buffer("epoch", torch.tensor(-1))

        def on_train_epoch_start(self):
            self.epoch.fill_(self.current_epoch)

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", abs(1.0 - self.current_epoch))

    from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint

    module = Counting()
    trainer = quick(
        max_epochs=3,
        enable_checkpointing=True,
        callbacks=[ModelCheckpoint(tmp_path, "best", monitor="val_loss")],
        limit_train_batches=1,
        limit_val_batches=1,
    )
    trainer.fit(module)
    assert module.epoch == 2
    trainer.test(ckpt_path="best", dataloaders=loader(), verbose=False)
    assert module.epoch == 1
    assert trainer.ckpt_path == str(tmp_path / "best.ckpt")


def test_there_must_be_something_to_save(quick, tmp_path):
    with pytest.raises(ConfigurationError, match="has nothing to save"):
        quick().save_checkpoint(tmp_path / "x.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_module_can_be_built_in_the_precision_of_the_run(quick):
    with quick(precision="64-true").init_module():
        assert torch.nn.Linear(1, 1).weight.dtype is torch.float64
    assert torch.nn.Linear(1, 1).weight.dtype is torch.float32


def test_a_folder_must_be_a_path(quick):
    with pytest.raises(ArgumentTypeError, match=r"Trainer\(default_root_dir=5\) is a int, not a path"):
        quick(default_root_dir=5)


def test_a_bare_run_does_nothing_beside_the_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(barebones=True, max_epochs=2, accelerator="cpu", limit_train_batches=3, limit_val_batches=0)
    trainer.fit(BoringModel())
    assert (trainer.global_step, trainer.callbacks, trainer.loggers) == (6, [], [])
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_quick_run_runs_everything_once_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(fast_dev_run=2, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(BoringModel())
    assert (trainer.global_step, trainer.num_val_batches) == (2, [2])
    assert list(tmp_path.rglob("*.*")) == []
