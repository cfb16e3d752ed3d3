"""What is wrong is answered at once: an error of ours in three sentences. One row for each case.

The keys begin with the row of the reference's list of misconfigurations, where there is one. What comes from
`Trainer(...)` is raised when the Trainer is built; of the rest, no weight has changed when it is raised.
"""

import itertools
import logging
import re
import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from fulmen.fabric.plugins import LightningEnvironment, MixedPrecision, Precision, SLURMEnvironment, TorchCheckpointIO
from fulmen.fabric.rank_zero import LightningDeprecationWarning, PossibleUserWarning
from fulmen.trainer import Callback, LightningDataModule, LightningModule, Trainer
from fulmen.trainer.accelerators import CPUAccelerator
from fulmen.trainer.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    SpikeDetection,
    StochasticWeightAveraging,
    Timer,
    TQDMProgressBar,
)
from fulmen.trainer.demos import BoringModel, RandomDataset, RandomIterableDataset
from fulmen.trainer.errors import CheckpointError, MisconfigurationException
from fulmen.trainer.loggers import CSVLogger
from fulmen.trainer.plugins import LayerSync
from fulmen.trainer.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from fulmen.trainer.utilities import CombinedLoader

QUIET = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def loader(samples=4):
    return DataLoader(RandomDataset(32, samples))


def stream():
    return DataLoader(RandomIterableDataset(32, 4))


def generator():
    return (torch.randn(2, 32) for _ in range(3))


def build(**flags):
    """Building the Trainer is wrong already."""
    return lambda folder: Trainer(**{**QUIET, "default_root_dir": folder, **flags})


def run(entry, model=BoringModel, *loaders, flags=None, **arguments):
    """The entry point is; loaders are made when it runs."""

    def act(folder):
        trainer = build(**(flags or {}))(folder)
        getattr(trainer, entry)(model(), *(make() for make in loaders), **arguments)

    return act


def fit(model=BoringModel, *loaders, **arguments):
    return run("fit", model, *loaders, **arguments)


def model(**methods):
    """A module that works but for these methods."""
    return lambda: type("Model", (BoringModel,), methods)()


def lacking(*names, **methods):
    """A module without some methods."""
    kept = {name: value for name, value in vars(BoringModel).items() if name[0] != "_" and name not in names}

    def build_layer(self):
        LightningModule.__init__(self)
        self.layer = nn.Linear(32, 2)

    return lambda: type("Model", (LightningModule,), {**kept, "__init__": build_layer, **methods})()


def optimizers(make):
    return model(configure_optimizers=make)


def scheduled(make_scheduler):
    """One optimizer, and what `make_scheduler` makes for it as its scheduler."""

    def configure_optimizers(self):
        optimizer = sgd(self)
        return {"optimizer": optimizer, "lr_scheduler": make_scheduler(optimizer)}

    return model(configure_optimizers=configure_optimizers)


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.1)


def manual(step):
    def make():
        module = model(training_step=step)()
        module.automatic_optimization = False
        return module

    return make


def step(make):
    """A module whose training step is `make(module, batch)`."""
    return model(training_step=lambda self, batch, batch_idx: make(self, batch))


def logs(*arguments, hook="training_step", **options):
    def log(self, *given):
        self.log(*arguments, **options)
        return self.step(given[0]) if hook == "training_step" else None

    return model(**{hook: log})


def frozen():
    module = BoringModel()
    module.freeze()
    return module


class Data(LightningDataModule):
    def train_dataloader(self):
        return loader()


class Misspelt(Callback):
    def on_train_epoch_strat(self, trainer, pl_module): ...


class OfOld(Callback):
    def on_epoch_start(self, trainer, pl_module): ...


class TakesLess(Callback):
    def on_train_start(self, trainer): ...


class NoStateDict:
    """A scheduler that could not be resumed."""


class Custom:
    """A scheduler that torch does not know."""

    def state_dict(self): ...

    def load_state_dict(self, state): ...


class Late(BoringModel):
    """Makes a layer when the optimizer has been made."""

    def on_train_start(self):
        self.late = nn.Linear(32, 2)

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch) + self.late(batch))


class WithoutSuper(BoringModel):
    def __init__(self): ...


class Wider(BoringModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 3)


def saved(folder, epochs=1, weights_only=False):
    trainer = build(max_epochs=epochs, limit_train_batches=1, limit_val_batches=0)(folder)
    trainer.fit(BoringModel())
    trainer.save_checkpoint(folder / "saved.ckpt", weights_only=weights_only)
    return folder / "saved.ckpt"


def resumed(model=BoringModel, **how):
    return lambda folder: build()(folder).fit(model(), ckpt_path=saved(folder, **how))


def by_hand(**methods):
    def make():
        module = model(**methods)()
        module.automatic_optimization = False
        return module

    return make


class HasLayer(BoringModel):
    def __init__(self, layer):
        super().__init__()
        self.save_hyperparameters()


class HasBackbone(BoringModel):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(32, 32)

    def forward(self, x):
        return self.layer(self.backbone(x))


class Empty(LightningModule):
    def training_step(self, batch, batch_idx): ...

    def configure_optimizers(self): ...


class Transfers(Data):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


def went_on(folder):
    trainer = build(callbacks=[Timer()], limit_train_batches=1, limit_val_batches=0)(folder)
    trainer.fit(BoringModel())
    trainer.save_checkpoint(folder / "timed.ckpt")
    build(max_epochs=2, limit_train_batches=1, limit_val_batches=0)(folder).fit(
        BoringModel(), ckpt_path=folder / "timed.ckpt"
    )


def measured_without_a_model(folder):
    trainer = build(enable_checkpointing=True, limit_train_batches=1, limit_val_batches=0, limit_test_batches=1)(folder)
    trainer.fit(BoringModel())
    trainer.test()


def logged_twice(folder):
    for _ in range(2):
        logger = CSVLogger(folder, name="same", version=0)
        build(logger=logger, log_every_n_steps=1)(folder).fit(logs("a", 1.0)())


def loaded_without_weights(folder):
    trainer = build(limit_train_batches=1)(folder)
    trainer.fit(Empty(), loader())
    trainer.save_checkpoint(folder / "empty.ckpt")
    Empty.load_from_checkpoint(folder / "empty.ckpt")


class OwnSync(LayerSync):
    def apply(self, model):
        return model

    def revert(self, model):
        return model


class OtherLayers(BoringModel):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(1, 1)


def hurried(folder):
    """A Trainer that has made a quick run, which keeps nothing."""
    trainer = build(fast_dev_run=True, enable_checkpointing=True)(folder)
    trainer.fit(BoringModel())
    return trainer


def told_by_environment(name, text):
    def act(folder):
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv(f"FULMEN_TRAINER_{name}", text)
            Trainer(default_root_dir=folder)

    return act


def text_file(folder):
    path = folder / "text.ckpt"
    path.write_text("hello")
    return path


def change(name, value):
    def act(folder):
        trainer = build()(folder)
        with pytest.raises(MisconfigurationException) as caught:
            setattr(trainer, name, value)
        assert getattr(trainer, name) != value  # the old value stays
        raise caught.value

    return act


def on_many_cores(act):
    def act_there(folder):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
            act(folder)

    return act_there


NOWHERE = nn.Linear(3, 3)
STEP_WITH_INDEX = {"validation_step": lambda self, batch, batch_idx, dataloader_idx: None}
HEARS_NO_LOADER = {
    "validation_step": lambda self, batch, batch_idx, dataloader_idx=0: None,
    "on_validation_batch_start": lambda self, batch, batch_idx: None,
}
INDEX_OF_OPTIMIZER = {"training_step": lambda self, batch, batch_idx, optimizer_idx: None}

# What barebones mode excludes, in the order of the rows T089 to T097.
BAREBONES = {
    "enable_checkpointing": True,
    "logger": True,
    "enable_progress_bar": True,
    "log_every_n_steps": 1,
    "enable_model_summary": True,
    "num_sanity_val_steps": 1,
    "fast_dev_run": True,
    "detect_anomaly": True,
    "profiler": "simple",
}

# What is done with the folder of the test, the builtin type that the error also is, and how it begins.
CASES = {
    # Flags
    "T000 accelerator": (build(accelerator="foo"), ValueError, "Trainer(accelerator='foo')"),
    "T001 accelerator": (build(accelerator=3), ValueError, "Trainer(accelerator=3)"),
    "T002 no gpu": (build(accelerator="gpu", devices=64), Exception, "Trainer(accelerator='gpu'"),
    "T003 cuda": (build(accelerator="cuda", devices=64), Exception, "Trainer(accelerator='cuda'"),
    "T004 mps": (build(accelerator="mps", devices=64), Exception, "Trainer(accelerator='mps'"),
    "T005 tpu": (build(accelerator="tpu"), ModuleNotFoundError, "Trainer(accelerator='tpu')"),
    "T006 hpu": (build(accelerator="hpu"), ValueError, "Trainer(accelerator='hpu')"),
    "T007 accelerator": (build(accelerator=None), ValueError, "Trainer(accelerator=None)"),
    "T008 strategy": (build(strategy="foo"), ValueError, "Trainer(strategy='foo')"),
    "T009 strategy": (build(strategy=3), ValueError, "Trainer(strategy=3)"),
    "T012 dp": (build(strategy="dp"), ValueError, "Trainer(strategy='dp')"),
    "T013 accelerator twice": (
        build(strategy=DDPStrategy(accelerator=CPUAccelerator())),
        ValueError,
        "Trainer got the accelerator twice",
    ),
    "T014 precision twice": (
        lambda folder: Trainer(strategy=SingleDeviceStrategy(precision_plugin=Precision()), plugins=[Precision()]),
        ValueError,
        "Trainer got the precision twice",
    ),
    "T015 checkpoint IO twice": (
        lambda folder: Trainer(
            strategy=SingleDeviceStrategy(checkpoint_io=TorchCheckpointIO()), plugins=[TorchCheckpointIO()]
        ),
        ValueError,
        "Trainer got the checkpoint IO twice",
    ),
    "T016 environment twice": (
        lambda folder: Trainer(
            strategy=DDPStrategy(cluster_environment=LightningEnvironment()),
            plugins=[LightningEnvironment()],
            accelerator="cpu",
        ),
        ValueError,
        "Trainer got the cluster environment twice",
    ),
    "T017 devices of another kind": (
        lambda folder: Trainer(strategy=DDPStrategy(parallel_devices=[torch.device("cpu")]), accelerator="gpu"),
        Exception,
        "Trainer(accelerator='gpu'",
    ),
    "T018 precision of FSDP": (
        lambda folder: Trainer(strategy=FSDPStrategy(precision_plugin=Precision())),
        TypeError,
        "FSDPStrategy(precision=",
    ),
    "T019 devices": (build(devices=0), Exception, "Trainer(devices=0)"),
    "T020 devices": (build(devices=-1), TypeError, "Trainer(devices=-1)"),
    "T021 devices": (build(devices="x"), TypeError, "Trainer(devices='x')"),
    "T022 devices": (build(devices=[0, 1]), TypeError, "Trainer(devices=[0, 1])"),
    "T023 devices": (build(devices=None), TypeError, "Trainer(devices=None)"),
    "T024 devices": (build(devices=[]), Exception, "Trainer(devices=[])"),
    "T025 devices": (build(devices=1.5), TypeError, "Trainer(devices=1.5)"),
    "T026 nodes": (build(num_nodes=0), ValueError, "Trainer(num_nodes=0)"),
    "T027 nodes": (build(num_nodes="2"), ValueError, "Trainer(num_nodes='2')"),
    "T028 precision": (build(precision="foo"), ValueError, "Trainer(precision='foo')"),
    "T029 precision": (build(precision=8), ValueError, "Trainer(precision=8)"),
    "T030 precision twice": (
        build(precision="16-mixed", plugins=[MixedPrecision("bf16-mixed", "cpu")]),
        ValueError,
        "Trainer got the precision twice",
    ),
    "T031 package": (
        build(precision="transformer-engine"),
        ModuleNotFoundError,
        "Trainer(precision='transformer-engine')",
    ),
    "T032 plugins": (build(plugins=["foo"]), Exception, "Trainer(plugins=...) got 'foo'"),
    "T033 plugins": (build(plugins=[Precision(), Precision()]), Exception, "Trainer(plugins=...) got two Precision"),
    "T034 environments": (
        build(plugins=[LightningEnvironment(), SLURMEnvironment()]),
        Exception,
        "Trainer(plugins=...) got two ClusterEnvironment plugins",
    ),
    "T035 layer sync": (
        build(plugins=[OwnSync()], sync_batchnorm=True),
        Exception,
        "Trainer(sync_batchnorm=True",
    ),
    "T036 logger": (build(logger=3), TypeError, "Trainer(logger=3)"),
    "logger by name": (build(logger="tensorboard"), TypeError, "Trainer(logger='tensorboard')"),
    "T037 callbacks": (build(callbacks="foo"), TypeError, "Trainer(callbacks=...) holds 'foo'"),
    "T038 callbacks": (build(callbacks=[3]), TypeError, "Trainer(callbacks=...) holds 3"),
    "callback by name": (build(callbacks=["x"]), TypeError, "Trainer(callbacks=...) holds 'x'"),
    "strategy class": (build(strategy=DDPStrategy), Exception, "Trainer(strategy=DDPStrategy) is a class"),
    "accelerator class": (
        build(accelerator=CPUAccelerator),
        Exception,
        "Trainer(accelerator=CPUAccelerator) is a class",
    ),
    "callback class": (build(callbacks=[EarlyStopping]), TypeError, "Trainer(callbacks=...) holds <class"),
    "T039 same state": (
        lambda folder: build(callbacks=[EarlyStopping("a"), EarlyStopping("a")])(folder),
        RuntimeError,
        "Trainer(callbacks=...) has two callbacks",
    ),
    "T040 same state": (build(callbacks=[Timer(), Timer()]), RuntimeError, "Trainer(callbacks=...) has two callbacks"),
    "T041 two bars": (
        build(callbacks=[TQDMProgressBar(), TQDMProgressBar()], enable_progress_bar=True),
        Exception,
        "Trainer(callbacks=...) has 2 progress bars",
    ),
    "T042 bar": (build(callbacks=[TQDMProgressBar()]), Exception, "Trainer(callbacks=[TQDMProgressBar(...)])"),
    "T043 checkpoint": (build(callbacks=[ModelCheckpoint()]), Exception, "Trainer(callbacks=[ModelCheckpoint(...)])"),
    "T045 fast_dev_run": (build(fast_dev_run=-1), Exception, "Trainer(fast_dev_run=-1)"),
    "T046 fast_dev_run": (build(fast_dev_run="x"), TypeError, "Trainer(fast_dev_run='x')"),
    "T047 max_epochs": (build(max_epochs=-2), Exception, "Trainer(max_epochs=-2)"),
    "T048 max_epochs": (build(max_epochs="3"), TypeError, "Trainer(max_epochs='3')"),
    "T049 min above max": (build(min_epochs=5, max_epochs=3), ValueError, "Trainer(min_epochs=5, max_epochs=3)"),
    "T050 max_steps": (build(max_steps=-2), Exception, "Trainer(max_steps=-2)"),
    "T051 max_steps": (build(max_steps=None), TypeError, "Trainer(max_steps=None)"),
    "T052 max_time": (build(max_time="x"), Exception, "Trainer(max_time='x')"),
    "T053 max_time": (build(max_time={"foo": 1}), Exception, "Trainer(max_time={'foo': 1})"),
    "T054 max_time": (build(max_time="12:00:00"), Exception, "Trainer(max_time='12:00:00')"),
    "T055 limit": (build(limit_train_batches=-1), Exception, "Trainer(limit_train_batches=-1)"),
    "T056 limit": (build(limit_train_batches=1.5), Exception, "Trainer(limit_train_batches=1.5)"),
    "T057 limit": (build(limit_val_batches=-0.1), Exception, "Trainer(limit_val_batches=-0.1)"),
    "T058 limit": (build(limit_test_batches=1.2), Exception, "Trainer(limit_test_batches=1.2)"),
    "T059 limit": (build(limit_predict_batches=-2), Exception, "Trainer(limit_predict_batches=-2)"),
    "T060 limit": (build(limit_train_batches="0.5"), TypeError, "Trainer(limit_train_batches='0.5')"),
    "T061 overfit": (build(overfit_batches=1.5), Exception, "Trainer(overfit_batches=1.5)"),
    "T062 overfit": (build(overfit_batches=-1), Exception, "Trainer(overfit_batches=-1)"),
    "T063 interval": (build(val_check_interval=1.5), Exception, "Trainer(val_check_interval=1.5)"),
    "T064 interval": (build(val_check_interval=-1), Exception, "Trainer(val_check_interval=-1)"),
    "T065 interval": (build(val_check_interval="x"), Exception, "Trainer(val_check_interval='x')"),
    "T066 interval": (build(val_check_interval="1:2:3:x"), Exception, "Trainer(val_check_interval='1:2:3:x')"),
    "T067 interval": (build(val_check_interval=[1]), TypeError, "Trainer(val_check_interval=[1])"),
    "T068 interval": (build(val_check_interval={"minutes": -1}), Exception, "Trainer(val_check_interval="),
    "T069 interval": (build(val_check_interval=0), Exception, "Trainer(val_check_interval=0)"),
    "T070 every n epochs": (build(check_val_every_n_epoch=1.5), Exception, "Trainer(check_val_every_n_epoch=1.5)"),
    "T071 interval": (
        build(check_val_every_n_epoch=None, val_check_interval=0.5),
        Exception,
        "Trainer(check_val_every_n_epoch=None, val_check_interval=0.5)",
    ),
    "T072 every n epochs": (build(check_val_every_n_epoch=0), ValueError, "Trainer(check_val_every_n_epoch=0)"),
    "T073 sanity": (build(num_sanity_val_steps=-2), ValueError, "Trainer(num_sanity_val_steps=-2)"),
    "T074 log every": (build(log_every_n_steps=-1), ValueError, "Trainer(log_every_n_steps=-1)"),
    "T076 accumulate": (build(accumulate_grad_batches=0), ValueError, "Trainer(accumulate_grad_batches=0)"),
    "T077 accumulate": (build(accumulate_grad_batches={0: 2}), TypeError, "Trainer(accumulate_grad_batches={0: 2})"),
    "T078 clip": (build(gradient_clip_val="x"), TypeError, "Trainer(gradient_clip_val='x')"),
    "T079 clip": (build(gradient_clip_val=-1), ValueError, "Trainer(gradient_clip_val=-1)"),
    "T080 clip": (build(gradient_clip_algorithm="foo"), Exception, "Trainer(gradient_clip_algorithm='foo')"),
    "T081 deterministic": (build(deterministic="foo"), ValueError, "Trainer(deterministic='foo')"),
    "benchmark": (build(benchmark="yes"), TypeError, "Trainer(benchmark='yes')"),
    "T082 reload": (build(reload_dataloaders_every_n_epochs=-1), Exception, "Trainer(reload_dataloaders_every_n"),
    "T083 reload": (build(reload_dataloaders_every_n_epochs=1.5), Exception, "Trainer(reload_dataloaders_every_n"),
    "T084 profiler": (build(profiler="foo"), Exception, "Trainer(profiler='foo')"),
    "T085 profiler": (build(profiler=3), TypeError, "Trainer(profiler=3)"),
    "T086 inference_mode": (build(inference_mode="no"), TypeError, "Trainer(inference_mode='no')"),
    "T087 unknown": (build(foo=1), TypeError, "Trainer(foo=1) is no argument of Trainer"),
    "misspelt": (build(max_epoch=3), TypeError, "Trainer(max_epoch=3) is no argument of Trainer"),
    "of an older version": (build(gpus=2), TypeError, "Trainer(gpus=2) is no argument of Trainer"),
    "T088 without a name": (lambda folder: Trainer("cpu"), TypeError, "Trainer('cpu') was given a value without"),
    "T098 barebones and a callback": (
        lambda folder: Trainer(barebones=True, accelerator="cpu", callbacks=[ModelCheckpoint()]),
        Exception,
        "Trainer(callbacks=[ModelCheckpoint(...)])",
    ),
    "T099 barebones and a bar": (
        lambda folder: Trainer(barebones=True, accelerator="cpu", callbacks=[TQDMProgressBar()]),
        Exception,
        "Trainer(callbacks=[TQDMProgressBar(...)])",
    ),
    "T100 environment": (told_by_environment("MAX_EPOCHS", "-5"), Exception, "Trainer(max_epochs=-5)"),
    "T101 registry": (build(model_registry=" "), ValueError, "Trainer(model_registry=' ')"),
    "registry": (build(model_registry=3), TypeError, "Trainer(model_registry=3)"),
    "registry in a registry": (
        build(model_registry="registry:net"),
        ValueError,
        "Trainer(model_registry='registry:net')",
    ),
    "enable_checkpointing": (build(enable_checkpointing="no"), TypeError, "Trainer(enable_checkpointing='no')"),
    "enable_progress_bar": (build(enable_progress_bar=2), TypeError, "Trainer(enable_progress_bar=2)"),
    "autolog": (build(enable_autolog_hparams="x"), TypeError, "Trainer(enable_autolog_hparams='x')"),
    "root folder": (lambda folder: Trainer(default_root_dir=5), TypeError, "Trainer(default_root_dir=5)"),
    **{
        f"T{number:03} barebones and {name}": (
            lambda folder, name=name, value=value: Trainer(barebones=True, accelerator="cpu", **{name: value}),
            ValueError,
            f"Trainer(barebones=True, {name}={value!r})",
        )
        for number, (name, value) in enumerate(BAREBONES.items(), 89)
    },
    "a flag set later": (
        change("accumulate_grad_batches", 0),
        ValueError,
        "Trainer(accumulate_grad_batches=0)",
    ),
    "a limit set later": (change("limit_val_batches", "2"), TypeError, "Trainer(limit_val_batches='2')"),
    "an interval set later": (change("val_check_interval", "x"), ValueError, "Trainer(val_check_interval='x')"),
    # Entry points
    "E102 model": (fit(lambda: 3), TypeError, "Trainer.fit(model=...) got a int"),
    "E103 model": (fit(lambda: nn.Linear(1, 1)), TypeError, "Trainer.fit(model=...) got a Linear"),
    "a class as model": (fit(lambda: BoringModel), TypeError, "Trainer.fit(model=...) got a class"),
    "super().__init__()": (fit(WithoutSuper), Exception, "Trainer.fit(model=WithoutSuper(...))"),
    "E105 data twice": (
        lambda folder: build()(folder).fit(BoringModel(), loader(), datamodule=Data()),
        Exception,
        "Trainer.fit(train_dataloaders=..., datamodule=...)",
    ),
    "E106 data twice": (
        lambda folder: build()(folder).fit(BoringModel(), val_dataloaders=loader(), datamodule=Data()),
        Exception,
        "Trainer.fit(val_dataloaders=..., datamodule=...)",
    ),
    "E108 data twice": (
        lambda folder: build()(folder).validate(BoringModel(), loader(), datamodule=Data()),
        Exception,
        "Trainer.validate(dataloaders=..., datamodule=...)",
    ),
    "E109 data twice": (
        lambda folder: build()(folder).test(BoringModel(), loader(), datamodule=Data()),
        Exception,
        "Trainer.test(dataloaders=..., datamodule=...)",
    ),
    "E110 data twice": (
        lambda folder: build()(folder).predict(BoringModel(), loader(), datamodule=Data()),
        Exception,
        "Trainer.predict(dataloaders=..., datamodule=...)",
    ),
    "E111 no model": (lambda folder: build()(folder).validate(), Exception, "Trainer.validate() was called without"),
    "E112 no model": (lambda folder: build()(folder).test(), Exception, "Trainer.test() was called without"),
    "E113 no model": (lambda folder: build()(folder).predict(), Exception, "Trainer.predict() was called without"),
    "E114 no step": (fit(lacking("training_step")), Exception, "Trainer.fit(Model) cannot run: Model has no training"),
    "E115 no optimizer": (fit(lacking("configure_optimizers")), Exception, "Trainer.fit(Model) cannot run"),
    "E116 no loader": (fit(lacking("train_dataloader")), Exception, "Trainer.fit(Model) has no training data"),
    "E117 loader is None": (
        fit(model(train_dataloader=lambda self: None)),
        TypeError,
        "Model.train_dataloader() gave None",
    ),
    "E118 loader": (fit(BoringModel, lambda: 3), TypeError, "Trainer.fit(train_dataloaders=...) gave 3"),
    "E119 no step": (run("validate", lacking("validation_step")), Exception, "Trainer.validate(Model) cannot run"),
    "E120 no step": (run("test", lacking("test_step")), Exception, "Trainer.test(Model) cannot run"),
    "E121 no forward": (run("predict", lacking("forward")), Exception, "Trainer.predict(Model) cannot run"),
    "E122 step is None": (run("predict", model(predict_step=None)), Exception, "Trainer.predict(Model) cannot run"),
    "E123 no loader": (run("test", lacking("test_dataloader")), Exception, "Trainer.test(Model) has no data"),
    "E124 best": (run("validate", ckpt_path="best"), ValueError, "Trainer.validate(ckpt_path='best')"),
    "E125 best": (
        run("test", ckpt_path="best", flags={"enable_checkpointing": True}),
        ValueError,
        "Trainer.test(ckpt_path='best')",
    ),
    "E126 best": (
        lambda folder: hurried(folder).test(BoringModel(), ckpt_path="best"),
        ValueError,
        "Trainer.test(ckpt",
    ),
    "E127 best": (lambda folder: hurried(folder).test(), ValueError, "Trainer.test("),
    "E131 registry": (fit(ckpt_path="registry"), FileNotFoundError, "ckpt_path='registry' names no model"),
    "E130 hpc": (fit(ckpt_path="hpc"), ValueError, "Trainer.fit(ckpt_path='hpc')"),
    "E132 no file": (fit(ckpt_path="nofile"), FileNotFoundError, "Trainer.fit(ckpt_path='nofile')"),
    "E133 text file": (
        lambda folder: build()(folder).fit(BoringModel(), ckpt_path=text_file(folder)),
        RuntimeError,
        "The checkpoint",
    ),
    "no path": (fit(ckpt_path=3), TypeError, "Trainer.fit(ckpt_path=3)"),
    "E134 weights only": (resumed(weights_only=True), RuntimeError, "The checkpoint of `ckpt_path` holds no state"),
    "E135 beyond the end": (resumed(epochs=3), ValueError, "Trainer(max_epochs=1) is less than the 3 epochs"),
    "E136 nothing to save": (lambda folder: build()(folder).save_checkpoint("x"), Exception, "Trainer.save_checkpoint"),
    "E137 other shape": (resumed(Wider), RuntimeError, "The weights of `ckpt_path` do not fit Wider"),
    "E138 other parameters": (
        resumed(lambda: OtherLayers()),
        RuntimeError,
        "The weights of `ckpt_path` do not fit OtherLayers",
    ),
    "E139 optimizer_idx": (fit(model(**INDEX_OF_OPTIMIZER)), RuntimeError, "Model.training_step(batch, batch_idx, opt"),
    "E140 no dataloader_idx": (
        run("validate", model(validation_step=lambda self, batch, batch_idx: None), lambda: [loader(), loader()]),
        RuntimeError,
        "Model.validation_step(batch, batch_idx) takes no dataloader_idx",
    ),
    "E141 dataloader_idx": (run("validate", model(**STEP_WITH_INDEX)), RuntimeError, "Model.validation_step(batch"),
    "E142 hook": (
        run("validate", model(**HEARS_NO_LOADER), lambda: [loader(), loader()]),
        RuntimeError,
        "Model.on_validation_batch_start(batch, batch_idx) takes no dataloader_idx",
    ),
    "a step that takes more": (
        fit(model(training_step=lambda self, batch, batch_idx, more: None)),
        RuntimeError,
        "Model.training_step(batch, batch_idx, more) cannot be called as a step",
    ),
    "a hook that takes more": (
        fit(model(on_train_epoch_end=lambda self, outputs: None)),
        TypeError,
        "Model.on_train_epoch_end(outputs) cannot be called as a hook",
    ),
    "a callback that takes less": (build(callbacks=[TakesLess()]), TypeError, "TakesLess.on_train_start(trainer)"),
    "E143 removed hook": (
        fit(model(training_epoch_end=lambda self, outputs: None)),
        NotImplementedError,
        "Model.training_epoch_end() is a hook of PyTorch Lightning 1",
    ),
    "E144 removed hook": (
        fit(model(validation_epoch_end=lambda self, outputs: None)),
        NotImplementedError,
        "Model.validation_epoch_end()",
    ),
    "E145 removed hook": (
        run("test", model(test_epoch_end=lambda self, outputs: None)),
        NotImplementedError,
        "Model.test_epoch_end()",
    ),
    "E146 removed hook": (
        fit(model(on_epoch_start=lambda self: None)),
        Exception,
        "Model.on_epoch_start() is a hook of PyTorch Lightning 1",
    ),
    "removed hook of a callback": (build(callbacks=[OfOld()]), Exception, "OfOld.on_epoch_start()"),
    "misspelt hook": (
        fit(model(on_train_epoch_ends=lambda self: None)),
        Exception,
        "Model.on_train_epoch_ends() is no hook, and nothing in Model calls it. The nearest hook is on_train_epoch_end",
    ),
    "misspelt hook of a callback": (build(callbacks=[Misspelt()]), Exception, "Misspelt.on_train_epoch_strat() is no"),
    "misspelt step": (
        fit(lacking("training_step", training_setp=lambda self, batch, batch_idx: None)),
        Exception,
        "Trainer.fit(Model) cannot run: Model has no training_step(), but it has training_setp().",
    ),
    "E147 both hooks": (
        fit(model(configure_model=lambda self: None, configure_sharded_model=lambda self: None)),
        RuntimeError,
        "Model defines both configure_model() and configure_sharded_model()",
    ),
    "dataloader_iter and accumulation": (
        fit(model(training_step=lambda self, dataloader_iter: None), flags={"accumulate_grad_batches": 2}),
        Exception,
        "Trainer(accumulate_grad_batches=2) cannot be used with Model.training_step(dataloader_iter)",
    ),
    "dataloader_iter and no batch": (
        fit(model(training_step=lambda self, dataloader_iter: self.layer.weight.sum())),
        Exception,
        "Model.training_step(dataloader_iter) took no batch",
    ),
    # Data
    "E151 mode": (
        fit(BoringModel, lambda: CombinedLoader([loader()], "sequential")),
        ValueError,
        "Trainer.fit(train_dataloaders=...) gave CombinedLoader(mode='sequential')",
    ),
    "E152 mode": (
        run("predict", BoringModel, lambda: CombinedLoader([loader()], "min_size")),
        ValueError,
        "Trainer.predict(dataloaders=...) gave CombinedLoader(mode='min_size')",
    ),
    "E154 mode": (lambda folder: CombinedLoader([], "foo"), ValueError, "CombinedLoader(mode='foo')"),
    "E155 next": (lambda folder: next(CombinedLoader([loader()])), Exception, "next() was called on a CombinedLoader"),
    "E157 limits": (
        lambda folder: setattr(CombinedLoader([loader()]), "limits", [1, 2]),
        ValueError,
        "CombinedLoader.limits",
    ),
    "E158 interval": (
        fit(BoringModel, loader, flags={"val_check_interval": 10}),
        ValueError,
        "Trainer(val_check_interval=10)",
    ),
    "E160 limit": (fit(BoringModel, loader, flags={"limit_train_batches": 0.1}), Exception, "limit_train_batches=0.1"),
    "E161 limit": (
        fit(BoringModel, loader, loader, flags={"limit_val_batches": 0.1}),
        Exception,
        "limit_val_batches=0.1 of 4 batches",
    ),
    "E162 limit": (fit(BoringModel, stream, flags={"limit_train_batches": 0.5}), Exception, "limit_train_batches=0.5"),
    "E163 interval": (
        fit(BoringModel, stream, flags={"val_check_interval": 0.5}),
        Exception,
        "Trainer(val_check_interval=0.5)",
    ),
    "E164 overfit": (fit(BoringModel, stream, flags={"overfit_batches": 0.5}), Exception, "limit_train_batches=0.5"),
    "an empty dataset": (fit(BoringModel, lambda: loader(0)), ValueError, "Trainer.fit(train_dataloaders=...) gave"),
    "a generator": (
        fit(BoringModel, generator, flags={"max_epochs": 2}),
        TypeError,
        "Trainer.fit(train_dataloaders=...) gave a generator",
    ),
    "a generator that ends": (
        fit(BoringModel, generator, flags={"max_epochs": -1, "max_steps": 9, "limit_val_batches": 0}),
        ValueError,
        "Epoch 1 of Trainer.fit had no batch",
    ),
    "a generator for validation": (
        fit(BoringModel, loader, generator),
        TypeError,
        "Trainer.fit(val_dataloaders=...) gave a generator",
    ),
    "a tensor": (
        fit(BoringModel, lambda: torch.zeros(4, 32)),
        TypeError,
        "Trainer.fit(train_dataloaders=...) gave a t",
    ),
    "a string": (fit(BoringModel, lambda: "abc"), TypeError, "Trainer.fit(train_dataloaders=...) gave 'abc'"),
    "E166 monitor": (
        fit(
            optimizers(
                lambda self: {
                    "optimizer": (made := sgd(self)),
                    "lr_scheduler": ReduceLROnPlateau(made),
                    "monitor": "nothing",
                }
            )
        ),
        Exception,
        "The scheduler ReduceLROnPlateau watches 'nothing'",
    ),
    "E165 steps before a fit": (
        lambda folder: build()(folder).estimated_stepping_batches,
        Exception,
        "Trainer.estimated_stepping_batches was read outside of a fit",
    ),
    # Optimizers
    "O169 returned": (fit(optimizers(lambda self: "x")), Exception, "Model.configure_optimizers() returned 'x'"),
    "O170 returned": (fit(optimizers(lambda self: {})), Exception, "Model.configure_optimizers() returned the dict {}"),
    "O171 returned": (fit(optimizers(lambda self: [])), Exception, "Model.configure_optimizers() returned []"),
    "a class returned": (
        fit(optimizers(lambda self: torch.optim.SGD)),
        Exception,
        "Model.configure_optimizers() return",
    ),
    "O172 two": (fit(optimizers(lambda self: [sgd(self), sgd(self)])), RuntimeError, "Model.configure_optimizers() re"),
    "O173 scheduler": (
        fit(scheduled(lambda made: {"interval": "step"})),
        Exception,
        "Model.configure_optimizers() ret",
    ),
    "O174 interval": (
        fit(scheduled(lambda made: {"scheduler": StepLR(made, 1), "interval": "foo"})),
        Exception,
        "The scheduler dict of Model.configure_optimizers() says interval='foo'",
    ),
    "frequency": (
        fit(scheduled(lambda made: {"scheduler": StepLR(made, 1), "frequency": 0})),
        Exception,
        "The scheduler dict of Model.configure_optimizers() says frequency=0",
    ),
    "O175 plateau": (fit(scheduled(ReduceLROnPlateau)), Exception, "Model.configure_optimizers() returned ReduceLROn"),
    "O176 plateau": (
        fit(scheduled(lambda made: {"scheduler": ReduceLROnPlateau(made)})),
        Exception,
        "Model.configure_optimizers() returned ReduceLROn",
    ),
    "O177 other optimizer": (
        fit(optimizers(lambda self: ([sgd(self)], [StepLR(sgd(self), 1)]))),
        Exception,
        "Model.configure_optimizers() returned a StepLR over an optimizer",
    ),
    "O178 no state": (fit(scheduled(lambda made: NoStateDict())), TypeError, "Model.configure_optimizers() returned a"),
    "O179 custom": (fit(scheduled(lambda made: Custom())), Exception, "Model.configure_optimizers() returned a Custom"),
    "O180 manual": (
        fit(manual(lambda self, batch, batch_idx: None), flags={"gradient_clip_val": 1}),
        Exception,
        "Trainer(gradient_clip_val=1) has no effect on Model",
    ),
    "O181 manual": (
        fit(manual(lambda self, batch, batch_idx: None), flags={"accumulate_grad_batches": 2}),
        Exception,
        "Trainer(accumulate_grad_batches=2) has no effect on Model",
    ),
    "O182 manual_backward": (
        fit(step(lambda self, batch: self.manual_backward(self.step(batch)))),
        Exception,
        "manual_backward was called in Model",
    ),
    "O183 closure": (
        fit(manual(lambda self, batch, batch_idx: self.optimizers().step(closure=3))),
        Exception,
        "optimizer.step(closure=3)",
    ),
    "O184 returned": (fit(manual(lambda *_: "x")), Exception, "Model.training_step() returned a str"),
    "O185 returned": (fit(step(lambda self, batch: "x")), Exception, "Model.training_step() returned a str"),
    "O186 returned": (fit(step(lambda self, batch: {"a": 1})), Exception, "Model.training_step() returned a dict"),
    "O187 detached": (
        fit(step(lambda self, batch: self.step(batch).detach())),
        RuntimeError,
        "Model.training_step() gave a loss that is not connected",
    ),
    "a number": (fit(step(lambda self, batch: {"loss": 3.0})), Exception, "Model.training_step() gave a float as the"),
    "not a scalar": (fit(step(lambda self, batch: self(batch))), RuntimeError, "Model.training_step() gave a loss of"),
    "detached in manual": (
        fit(manual(lambda self, batch, batch_idx: self.manual_backward(self.step(batch).detach()))),
        RuntimeError,
        "Model.training_step() gave a loss that is not connected",
    ),
    "all frozen": (fit(frozen), RuntimeError, "BoringModel.training_step() gave a loss without gradients: every"),
    "O188 NaN": (
        fit(step(lambda self, batch: self.step(batch) * float("nan")), flags={"detect_anomaly": True}),
        RuntimeError,
        "The loss of Model.training_step() is nan at step 0 (epoch 0, batch 0)",
    ),
    "infinite in manual": (
        fit(
            manual(lambda self, batch, batch_idx: self.manual_backward(self.step(batch) / 0)),
            flags={"detect_anomaly": True},
        ),
        RuntimeError,
        "The loss of Model.training_step() is inf at step 0 (epoch 0, batch 0)",
    ),
    "parameters of another": (
        fit(optimizers(lambda self: sgd(NOWHERE))),
        Exception,
        "Model.configure_optimizers() returned SGD over parameters none of which is Model's",
    ),
    "layers that come late": (fit(Late), Exception, "Late has parameters that were made after configure_optimizers()"),
    "steps that never come": (
        fit(manual(lambda *_: None), flags={"max_steps": 5, "max_epochs": -1}),
        Exception,
        "Trainer(max_steps=5) would never be reached",
    ),
    "O189 clip": (
        fit(
            model(configure_gradient_clipping=lambda self, made, **_: self.clip_gradients(made, gradient_clip_val=2)),
            flags={"gradient_clip_val": 1},
        ),
        Exception,
        "clip_gradients(gradient_clip_val=2) contradicts Trainer(gradient_clip_val=1)",
    ),
    "O190 clip": (
        fit(
            model(configure_gradient_clipping=lambda self, made, **_: self.clip_gradients(made, 1, "value")),
            flags={"gradient_clip_val": 1, "gradient_clip_algorithm": "norm"},
        ),
        Exception,
        "clip_gradients(gradient_clip_algorithm='value') contradicts",
    ),
    "O191 clip": (
        fit(model(configure_gradient_clipping=lambda self, made, **_: self.clip_gradients(made, 1, "foo"))),
        Exception,
        "clip_gradients(gradient_clip_algorithm='foo')",
    ),
    "O192 clip": (
        fit(model(configure_gradient_clipping=lambda self, made, **_: self.clip_gradients(made, "x"))),
        TypeError,
        "clip_gradients(gradient_clip_val='x')",
    ),
    "O193 LBFGS": (
        lambda folder: fit(
            optimizers(lambda self: torch.optim.LBFGS(self.parameters())),
            flags={"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))]},
        )(folder),
        Exception,
        "precision='16-mixed' cannot step LBFGS",
    ),
    "O194 precision": (lambda folder: MixedPrecision("32", "cpu"), ValueError, "MixedPrecision(precision='32')"),
    "O195 scaler": (
        lambda folder: MixedPrecision("bf16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu")),
        Exception,
        "MixedPrecision(precision='bf16-mixed'",
    ),
    # Logging
    "L196 name": (fit(logs(3, 1.0)), TypeError, "self.log(3, ...)"),
    "L197 value": (fit(logs("a", "x")), ValueError, "self.log('a', 'x')"),
    "L198 value": (fit(logs("a", {"b": 1})), ValueError, "self.log('a', ...) was given a dict"),
    "L199 value": (fit(logs("a", {"b": {"c": 1}})), ValueError, "self.log('a', ...) was given a nested dict"),
    "L200 value": (fit(logs("a", torch.zeros(2))), ValueError, "self.log('a', ...) was given a tensor of shape (2,)"),
    "L201 neither": (fit(logs("a", 1.0, on_step=False, on_epoch=False)), Exception, "self.log('a', ..., on_step=False"),
    "L202 reduce_fx": (fit(logs("a", 1.0, reduce_fx="foo")), Exception, "self.log('a', ..., reduce_fx='foo')"),
    "L203 reduce_fx": (fit(logs("a", 1.0, reduce_fx=torch.std)), Exception, "self.log('a', ..., reduce_fx="),
    "L204 suffix": (fit(logs("a/dataloader_idx_0", 1.0)), Exception, "self.log('a/dataloader_idx_0', ...)"),
    "L205 value": (
        fit(step(lambda self, batch: self.log_dict({"a": {"b": 1}}))),
        ValueError,
        "self.log('a', ...) was given a dict",
    ),
    "L206 hook": (
        fit(logs("a", 1.0, hook="on_train_end")),
        Exception,
        "self.log('a', ...) was called in `on_train_end",
    ),
    "L207 hook": (fit(logs("a", 1.0, hook="configure_optimizers")), Exception, "self.log('a', ...) was called in `con"),
    "L208 hook": (
        fit(logs("a", 1.0, hook="on_validation_epoch_end", on_step=True)),
        Exception,
        "self.log('a', ..., on_step=True) was called in `on_validation_epoch_end`",
    ),
    "L209 predict": (
        run("predict", logs("a", 1.0, hook="predict_step")),
        Exception,
        "self.log('a', ...) was called in",
    ),
    "L210 twice": (
        fit(step(lambda self, batch: (self.log("a", 1.0), self.log("a", 1.0, on_epoch=True)))),
        Exception,
        "self.log('a', ...) was called again in `training_step`",
    ),
    "batch size": (
        fit(
            step(lambda self, batch: self.log("a", 1.0, on_epoch=True)),
            lambda: DataLoader(["x", "y"], batch_size=2, collate_fn=list),
        ),
        Exception,
        "self.log(..., on_epoch=True) needs the size of the batch",
    ),
    "L212 hyperparameters": (
        lambda folder: BoringModel().save_hyperparameters(3),
        ValueError,
        "save_hyperparameters(3)",
    ),
    # Callbacks
    "C213 top k": (lambda folder: ModelCheckpoint(save_top_k=-2), Exception, "ModelCheckpoint(save_top_k=-2)"),
    "C218 mode": (lambda folder: ModelCheckpoint(mode="foo"), Exception, "ModelCheckpoint(mode='foo')"),
    "C221 mode": (lambda folder: EarlyStopping("a", mode="foo"), Exception, "EarlyStopping(mode='foo')"),
    "C222 monitor": (
        fit(flags={"callbacks": [EarlyStopping("nothing")]}),
        RuntimeError,
        "EarlyStopping(monitor='nothing')",
    ),
    "C263 two of a kind": (
        fit(model(configure_callbacks=lambda self: [Timer(), Timer()])),
        RuntimeError,
        "Trainer(callbacks=...) has two callbacks",
    ),
    "C223 interval": (
        lambda folder: LearningRateMonitor(logging_interval="foo"),
        Exception,
        "LearningRateMonitor(logging_interval='foo')",
    ),
    "C224 no logger": (fit(flags={"callbacks": [LearningRateMonitor()]}), Exception, "LearningRateMonitor"),
    "C243 duration": (lambda folder: Timer(duration="x"), Exception, "Timer(duration='x')"),
    "C244 interval": (lambda folder: Timer(interval="foo"), Exception, "Timer(interval='foo')"),
}


def sentences(text):
    return len(re.findall(r"[.:;](?=\s|$)", text))


@pytest.mark.parametrize("what", CASES)
def test_bad_input_is_answered_at_once_in_three_sentences(what, tmp_path, monkeypatch):
    act, kind, begins = CASES[what]
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((MisconfigurationException, CheckpointError)) as caught:
            act(tmp_path)
    text = str(caught.value)
    assert text.startswith(begins)
    assert isinstance(caught.value, kind)
    assert sentences(text) >= 3, text
    assert len(text) < 900, text


def test_a_missing_model_is_told_by_python(tmp_path):  # E104
    with pytest.raises(TypeError, match="model"):
        build()(tmp_path).fit()


# What is done, the category of the warning, and how it begins.
WARNINGS = {
    "W00 no bound": (
        fit(flags={"max_epochs": None, "limit_train_batches": 0}),
        PossibleUserWarning,
        "Trainer(...) was",
    ),
    "W01 half on a CPU": (build(precision="16-mixed"), UserWarning, "Trainer(precision='16-mixed') uses bfloat16"),
    "W02 cudnn": (build(benchmark=True, deterministic=True), UserWarning, "Trainer(benchmark=True, deterministic=...)"),
    "W04 overfit": (
        fit(BoringModel, lambda: DataLoader(RandomDataset(32, 4), shuffle=True), flags={"overfit_batches": 1}),
        UserWarning,
        "Trainer(overfit_batches=...) switches off the shuffling",
    ),
    "W08 no step": (fit(lacking("validation_step")), UserWarning, "Trainer.fit(Model) has validation data"),
    "W09 no data": (fit(lacking("val_dataloader")), PossibleUserWarning, "Trainer.fit(Model) has a validation_step"),
    "W10 no optimizer": (fit(optimizers(lambda self: None)), UserWarning, "Model.configure_optimizers() returned None"),
    "W11 key": (
        fit(scheduled(lambda made: {"scheduler": StepLR(made, 1), "foo": 1})),
        RuntimeWarning,
        "The scheduler dict of Model.configure_optimizers() has unknown keys ['foo']",
    ),
    "W12 key": (
        fit(optimizers(lambda self: {"optimizer": sgd(self), "foo": 1})),
        RuntimeWarning,
        "Model.configure_optimizers() returned a dict with unknown keys ['foo']",
    ),
    "W13 one cycle": (
        fit(
            scheduled(lambda made: {"scheduler": torch.optim.lr_scheduler.OneCycleLR(made, 1, 9), "interval": "epoch"})
        ),
        RuntimeWarning,
        "Model.configure_optimizers() steps OneCycleLR once per epoch",
    ),
    "W14 by hand": (
        fit(
            by_hand(
                training_step=lambda self, batch, batch_idx: None,
                configure_optimizers=lambda self: {
                    "optimizer": (made := sgd(self)),
                    "lr_scheduler": {"scheduler": StepLR(made, 1), "interval": "step"},
                },
            )
        ),
        RuntimeWarning,
        "The scheduler dict of Model.configure_optimizers() has the keys ['interval'], and optimization is manual",
    ),
    "W15 None": (fit(step(lambda self, batch: None)), UserWarning, "Model.training_step() returned None"),
    "W16 None": (
        run("predict", model(predict_step=lambda self, batch, batch_idx: None)),
        UserWarning,
        "Model.predict_step() returned None",
    ),
    "W17 not strict": (
        fit(scheduled(lambda made: {"scheduler": ReduceLROnPlateau(made), "monitor": "nothing", "strict": False})),
        RuntimeWarning,
        "The scheduler ReduceLROnPlateau watches 'nothing'",
    ),
    "W18 short epoch": (
        lambda folder: build(logger=True)(folder).fit(BoringModel(), loader()),
        PossibleUserWarning,
        "Trainer(log_every_n_steps=50) is more than an epoch has batches (4)",
    ),
    "W19 no workers": (
        on_many_cores(run("validate")),
        PossibleUserWarning,
        "The val_dataloader has no workers",
    ),
    "W20 shuffled": (
        run("validate", BoringModel, lambda: DataLoader(RandomDataset(32, 4), shuffle=True)),
        PossibleUserWarning,
        "The val_dataloader shuffles",
    ),
    "W23 eval mode": (
        lambda folder: build()(folder).fit(BoringModel().eval().train(False), loader()),
        PossibleUserWarning,
        "Trainer.fit(BoringModel) begins with 1 of its modules in eval mode: layer",
    ),
    "W24 iterator": (
        fit(
            step(lambda self, batch: None)
            and model(training_step=lambda self, dataloader_iter: self.step(next(dataloader_iter)[0]))
        ),
        PossibleUserWarning,
        "Model.training_step(dataloader_iter) fetches its batches itself",
    ),
    "W26 old name": (
        fit(model(configure_sharded_model=lambda self: None)),
        LightningDeprecationWarning,
        "Model.configure_sharded_model() is the older name",
    ),
    "W27 int tensor": (fit(logs("a", torch.tensor(1))), UserWarning, "self.log('a', ...) was given a tensor of torch."),
    "W28 no logger": (fit(logs("a", 1.0, logger=True)), UserWarning, "self.log('a', ..., logger=True) was called"),
    "W29 no trainer": (lambda folder: BoringModel().log("a", 1.0), UserWarning, "BoringModel.log was called while"),
    "W30 barebones": (
        lambda folder: Trainer(barebones=True, accelerator="cpu", max_epochs=1).fit(logs("a", 1.0)(), loader()),
        UserWarning,
        "self.log('a', ...) was called and records nothing",
    ),
    "W31 batch size": (
        fit(
            step(lambda self, batch: self.log("a", 1.0, on_epoch=True)),
            lambda: DataLoader([1], collate_fn=lambda _: [torch.zeros(3), torch.zeros(2)]),
        ),
        UserWarning,
        "The tensors of a batch have different lengths",
    ),
    "W33 a module": (
        lambda folder: HasLayer(nn.Linear(1, 1)),
        UserWarning,
        "The hyperparameter 'layer' is a torch.nn.Module",
    ),
    "W41 hooks of steps": (
        fit(
            model(optimizer_zero_grad=lambda self, epoch, batch_idx, optimizer: optimizer.zero_grad()),
            flags={"callbacks": [GradientAccumulationScheduler({0: 2})]},
        ),
        UserWarning,
        "Model overrides optimizer_zero_grad, and a GradientAccumulationScheduler accumulates",
    ),
    "W42 a scheduler of steps": (
        fit(
            scheduled(lambda made: {"scheduler": StepLR(made, 1), "interval": "step"}),
            flags={"callbacks": [StochasticWeightAveraging(0.1)]},
        ),
        UserWarning,
        "StochasticWeightAveraging replaces the schedulers of Model",
    ),
    "W43 trained already": (
        fit(HasBackbone, flags={"callbacks": [BackboneFinetuning(0)]}),
        UserWarning,
        "2 parameters that were unfrozen are in SGD already",
    ),
    "W46 no such callback": (went_on, UserWarning, "The checkpoint holds the state of callbacks that this Trainer"),
    "W47 no model": (measured_without_a_model, UserWarning, "Trainer.test() was called without a model, so the best"),
    "W49 last": (fit(ckpt_path="last"), UserWarning, "Trainer.fit(ckpt_path='last') found no last checkpoint"),
    "C264 no loss": (
        fit(by_hand(training_step=lambda self, batch, batch_idx: {"a": 1}), flags={"callbacks": [SpikeDetection()]}),
        UserWarning,
        "SpikeDetection found no loss in what Model.training_step() returned",
    ),
    "W52 no weights": (loaded_without_weights, UserWarning, "The checkpoint holds no weights for Empty"),
    "W59 two that transfer": (
        lambda folder: build()(folder).fit(
            model(on_after_batch_transfer=lambda self, batch, dataloader_idx: batch)(), datamodule=Transfers()
        ),
        UserWarning,
        "Both Transfers and Model override `on_after_batch_transfer`",
    ),
    "all parameters of an optimizer frozen": (
        fit(optimizers(lambda self: (self.layer.bias.requires_grad_(False), torch.optim.SGD([self.layer.bias]))[1])),
        PossibleUserWarning,
        "Model.configure_optimizers() returned SGD over parameters that are all frozen",
    ),
    "misspelt method": (
        fit(model(optimizer_stp=lambda self: None)),
        PossibleUserWarning,
        "Model.optimizer_stp() is no hook, and nothing in Model calls it. The nearest hook is optimizer_step().",
    ),
    "W60 a folder with files": (logged_twice, UserWarning, "The folder '"),
}


@pytest.mark.parametrize("what", WARNINGS)
def test_what_may_not_be_meant_is_warned_of_once(what, tmp_path, monkeypatch):
    act, category, begins = WARNINGS[what]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fulmen.fabric.rank_zero.warned", type(__import__("fulmen").fabric.rank_zero.warned)())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act(tmp_path)
    told = [warning for warning in caught if str(warning.message).startswith(begins)]
    assert [warning.category for warning in told] == [category], [str(warning.message) for warning in caught]
    assert sentences(str(told[0].message)) >= 2


@pytest.mark.parametrize("flags", [{"fast_dev_run": True}, {"barebones": True}])
def test_what_a_mode_switches_off_is_told(flags, tmp_path, caplog):
    [(name, _)] = flags.items()
    with caplog.at_level(logging.INFO, logger="fulmen"):
        Trainer(accelerator="cpu", default_root_dir=tmp_path, **flags)
    assert f"Trainer({name}=True)" in caplog.text


class Stops(Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = True


# What is done, and what the log says of it.
LOGGED = {
    "W63 epochs": (fit(), "The fit ends: `max_epochs` was reached"),
    "W64 steps": (fit(flags={"max_epochs": -1, "max_steps": 2}), "The fit ends: `max_steps` was reached"),
    "W66 replaced": (
        fit(model(configure_callbacks=lambda self: [Timer()]), flags={"callbacks": [Timer()]}),
        "Model.configure_callbacks() replaces callbacks of the Trainer: Timer",
    ),
    "W67 not yet": (
        fit(flags={"max_epochs": 3, "min_epochs": 2, "callbacks": [Stops()]}),
        "A stop was asked for, and training goes on: 1 epochs and",
    ),
}


@pytest.mark.parametrize("what", LOGGED)
@pytest.mark.filterwarnings("ignore")
def test_what_a_run_does_by_itself_is_logged(what, tmp_path, caplog):
    act, said = LOGGED[what]
    with caplog.at_level(logging.INFO, logger="fulmen"):
        act(tmp_path)
    assert [record.getMessage() for record in caplog.records if said in record.getMessage()]


class Breaks(BoringModel):
    """Its loss is no number from batch `at` on."""

    def __init__(self, at, value):
        super().__init__()
        self.at, self.value = at, value

    def training_step(self, batch, batch_idx):
        loss = self.step(batch)
        return loss * self.value if batch_idx >= self.at else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("every", "seen"), [(1, 5), (4, 7), (50, 9)])
def test_a_loss_that_is_no_number_is_told_once_with_step_and_batch(every, seen, value, quick, rows):
    with pytest.warns(UserWarning, match=f"is (nan|inf) at step {seen} \\(epoch 0, batch {seen}") as caught:
        quick(logger=rows, log_every_n_steps=every, limit_val_batches=0, max_epochs=2).fit(Breaks(5, value), loader(10))
    assert sum("The loss of Breaks.training_step()" in str(warning.message) for warning in caught) == 1


def test_a_loss_that_is_a_number_is_not_spoken_of(quick):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The loss of")
        quick(log_every_n_steps=1, limit_val_batches=0).fit(BoringModel(), loader())


def test_with_detect_anomaly_the_run_ends_before_the_weights_are_lost(quick):
    module = Breaks(3, float("nan"))
    with pytest.raises(MisconfigurationException, match=r"is nan at step 3 \(epoch 0, batch 3\)"):
        quick(detect_anomaly=True, limit_val_batches=0).fit(module, loader(10))
    assert torch.isfinite(module.layer.weight).all()


# Right, although it looks like a mistake that is refused.
RIGHT = {
    "a generator for one epoch": fit(BoringModel, generator, flags={"limit_val_batches": 0}),
    "a generator without end": fit(
        BoringModel,
        lambda: (torch.randn(2, 32) for _ in itertools.count()),
        flags={"limit_val_batches": 0, "max_epochs": -1, "max_steps": 5},
    ),
    "a generator to predict on": run("predict", BoringModel, generator),
    "a loader method that gives a generator each time": fit(
        model(train_dataloader=lambda self: generator()),
        flags={"max_epochs": 2, "limit_val_batches": 0, "reload_dataloaders_every_n_epochs": 1},
    ),
    "a method of one's own that is called": fit(
        model(on_text_end=lambda self: None, on_train_epoch_end=lambda self: self.on_text_end())
    ),
    "an old hook beside the new one": fit(
        model(on_epoch_start=lambda self: None, on_train_epoch_start=lambda self: None)
    ),
    "an old hook that the new one calls": fit(
        model(validation_epoch_end=lambda self, outputs: None,
              on_validation_epoch_end=lambda self: self.validation_epoch_end([])),
    ),
    "a scalar in a vector": fit(step(lambda self, batch: self.step(batch).reshape(1))),
    "T044 a summary that is switched off": build(callbacks=[ModelSummary()], enable_model_summary=False),
    "E107 a datamodule in the place of loaders": lambda folder: build()(folder).fit(BoringModel(), Data()),
    "E128 no last checkpoint": run("test", ckpt_path="last"),
    "E153 any mode in evaluation": run("validate", model(validation_step=lambda self, batch, batch_idx: None),
                                       lambda: CombinedLoader([loader(), loader()], "max_size_cycle")),
    "E129 no last checkpoint": fit(ckpt_path="last"),
    "E148 batch hooks beside dataloader_iter": fit(
        model(
            training_step=lambda self, dataloader_iter: self.step(next(dataloader_iter)[0]),
            on_train_batch_start=lambda self, batch, batch_idx: None,
        )
    ),
    "E149 transfer hooks beside dataloader_iter": fit(
        model(
            training_step=lambda self, dataloader_iter: self.step(next(dataloader_iter)[0]),
            on_before_batch_transfer=lambda self, batch, dataloader_idx: batch,
        )
    ),
    "E156 length before iter": lambda folder: len(CombinedLoader([loader()])),
    "T075 no rows of steps": fit(flags={"log_every_n_steps": 0}),
    "L211 a module without a Trainer": lambda folder: BoringModel().log("a", 1.0),
    "E159 a small part of an epoch": fit(BoringModel, loader, flags={"val_check_interval": 0.1}),
    "manual steps that come late": fit(
        manual(lambda self, batch, batch_idx: self.optimizers().step() if batch_idx == 40 else None),
        flags={"max_epochs": -1, "max_steps": 2, "limit_val_batches": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", RIGHT)
@pytest.mark.filterwarnings("ignore")
def test_what_only_looks_like_a_mistake_runs(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RIGHT[what](tmp_path)
