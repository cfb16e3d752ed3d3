import pytest
import torch
from torch.utils.data import DataLoader

from fulmen.trainer.callbacks.early_stopping import EarlyStopping
from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.demos import BoringDataModule, BoringModel, RandomDataset
from fulmen.trainer.loggers.base import DummyLogger
from fulmen.trainer.properties import TrainerProperties
from fulmen.trainer.stages import EntryPoint, Stage

NAMES = [name for name, it in vars(TrainerProperties).items() if isinstance(it, property)]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "estimated_stepping_batches"])
def test_everything_can_be_asked_before_a_run(name, quick):
    getattr(quick(), name)


def test_during_a_run_it_says_where_it_stands(quick):
    said = {}

    class Asking(Callback):
        def note(self, trainer, moment):
            flags = ("training", "validating", "testing", "predicting", "sanity_checking", "evaluating")
            said[moment] = ({flag for flag in flags if getattr(trainer, flag)}, trainer.state.fn)

        def on_sanity_check_start(self, trainer, pl_module):
            self.note(trainer, "sanity")

        def on_train_batch_start(self, trainer, *_):
            self.note(trainer, "train")

        def on_validation_start(self, trainer, pl_module):
            if not trainer.sanity_checking:
                self.note(trainer, "validation")

        def on_test_start(self, trainer, pl_module):
            self.note(trainer, "test")

        def on_predict_start(self, trainer, pl_module):
            self.note(trainer, "predict")

    module = BoringModel()
    trainer = quick(
        callbacks=[Asking()], num_sanity_val_steps=1, limit_train_batches=2, limit_val_batches=1, limit_test_batches=1
    )
    trainer.fit(module)
    trainer.test(verbose=False)
    trainer.predict(dataloaders=DataLoader(RandomDataset(32, 1)))
    assert said == {
        "sanity": ({"sanity_checking", "evaluating"}, EntryPoint.FIT),
        "train": ({"training"}, EntryPoint.FIT),
        "validation": ({"validating", "evaluating"}, EntryPoint.FIT),
        "test": ({"testing", "evaluating"}, EntryPoint.TEST),
        "predict": ({"predicting"}, EntryPoint.PREDICT),
    }
    assert trainer.state.stage is None


def test_after_a_run_its_parts_can_be_read(quick):
    module, datamodule = BoringModel(), BoringDataModule()
    stopping, checkpoint = EarlyStopping("x", strict=False), ModelCheckpoint()
    trainer = quick(
        callbacks=[checkpoint, stopping], enable_checkpointing=True, limit_train_batches=3, limit_val_batches=2
    )
    trainer.fit(module, datamodule=datamodule)
    assert trainer.lightning_module is trainer.model is module
    assert trainer.datamodule is datamodule
    assert [type(one).__name__ for one in trainer.optimizers] == ["SGD"]
    assert len(trainer.lr_scheduler_configs) == 1
    assert (trainer.num_training_batches, trainer.num_val_batches, trainer.val_check_batch) == (3, [2], 3)
    assert trainer.checkpoint_callback is checkpoint
    assert trainer.early_stopping_callback is stopping
    assert trainer.callbacks == [stopping, checkpoint]
    assert trainer.progress_bar_callback is None
    assert isinstance(trainer.train_dataloader, DataLoader)
    assert isinstance(trainer.val_dataloaders, DataLoader)
    assert trainer.test_dataloaders is None


def test_the_device_and_the_processes(quick):
    trainer = quick()
    assert (trainer.num_devices, trainer.num_nodes, trainer.world_size, trainer.device_ids) == (1, 1, 1, [0])
    assert (trainer.global_rank, trainer.local_rank, trainer.node_rank, trainer.is_global_zero) == (0, 0, 0, True)
    assert trainer.root_device == torch.device("cpu")
    assert (trainer.precision, trainer.scaler, trainer.distributed_sampler_kwargs) == ("32-true", None, None)


def test_flags_and_lists_can_be_changed(quick):
    trainer = quick()
    trainer.limit_val_batches, trainer.accumulate_grad_batches = 3, 2
    assert (trainer.settings.limit_val_batches, trainer.settings.accumulate_grad_batches) == (3, 2)
    logger = DummyLogger()
    trainer.logger = logger
    assert (trainer.logger, trainer.loggers) == (logger, [logger])
    trainer.loggers = None
    assert trainer.logger is None
    callback = Callback()
    trainer.callbacks = [callback]
    assert trainer.context.hooks.callbacks == [callback]
    trainer.should_stop = True
    assert trainer.context.state.should_stop


def test_where_files_go(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = quick(default_root_dir="there")
    assert trainer.default_root_dir == trainer.log_dir == str(tmp_path / "there")
    assert quick(default_root_dir="memory://there").default_root_dir == "memory://there"
    assert quick(default_root_dir=None).default_root_dir == str(tmp_path)


def test_print_is_heard_once_and_past_the_bar(quick, capsys):
    quick().print("a", "b", sep="-")
    assert capsys.readouterr().out == "a-b\n"
    assert Stage.TRAIN in Stage


@pytest.mark.parametrize("name", ["training", "validating", "testing", "predicting", "sanity_checking"])
def test_what_runs_now_can_be_set(name, quick):
    trainer = quick()
    setattr(trainer, name, True)
    assert getattr(trainer, name)
    assert trainer.state.stage is not None
    assert trainer.evaluating == (name in ("validating", "testing", "sanity_checking"))
    other = "testing" if name != "testing" else "training"
    setattr(trainer, other, False)  # it does not run
    assert getattr(trainer, name)
    setattr(trainer, name, False)
    assert trainer.state.stage is None
