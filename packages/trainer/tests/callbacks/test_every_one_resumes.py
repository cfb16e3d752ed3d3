"""A run with a callback that is saved in the middle and goes on, against the same run that was never stopped."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fulmen.trainer.callbacks as ours
from fulmen.fabric.seeding import seed_everything
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.loggers.base import Logger
from fulmen.trainer.trainer import Trainer

BATCHES, EPOCHS = 5, 4
# In the middle of an epoch, before its last batch, and after it.
SAVED_AT = (8, 9, 10)


class Rows(Logger):
    """Keeps what is logged."""

    name, version = "rows", 0

    def __init__(self, root):
        self.rows, self._root = [], str(root)

    @property
    def save_dir(self):
        return self._root

    def log_hyperparams(self, params, *args, **kwargs): ...

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


class Net(LightningModule):
    """Draws random numbers in its layers and in the order of its data; has statistics, momentum and a schedule."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 6))
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.backbone(x)))

    def training_step(self, batch, batch_idx):
        loss = (self(batch[0]) - batch[1]).pow(2).mean()
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", (self(batch[0]) - batch[1]).pow(2).mean())

    def configure_optimizers(self):
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=0.03)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Unfreeze(ours.BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch in (1, 2):
            self.unfreeze_and_add_param_group(pl_module.backbone[3 * (2 - epoch)], optimizer, lr=0.02)


class Writer(ours.BasePredictionWriter):
    """Nothing to do in a fit."""


class Counts(Callback):
    """A callback of the user's with a state."""

    def __init__(self):
        self.num_batches = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.num_batches += 1
        pl_module.log("counted", float(self.num_batches))

    def state_dict(self):
        return {"num_batches": self.num_batches}

    def load_state_dict(self, state_dict):
        self.num_batches = state_dict["num_batches"]


def doubled(trainer, pl_module, optimizer):
    for parameter in pl_module.parameters():
        if parameter.grad is not None:
            parameter.grad *= 2


def pruning(**options):
    return ours.ModelPruning("l1_unstructured", amount=0.2, verbose=0, **options)


# Each gives its callbacks, for a folder.
CASES: dict[str, Any] = {
    "ModelCheckpoint": lambda folder: [
        ours.ModelCheckpoint(folder, "{epoch}-{step}-{val_loss:.3f}", monitor="val_loss", save_top_k=2, save_last=True)
    ],
    "ModelCheckpoint by steps": lambda folder: [
        ours.ModelCheckpoint(folder, "{step}", monitor="train_loss_step", every_n_train_steps=3, save_top_k=2)
    ],
    "OnExceptionCheckpoint": lambda folder: [ours.OnExceptionCheckpoint(folder)],
    "EarlyStopping": lambda _: [ours.EarlyStopping("val_loss", patience=4, min_delta=10.0)],
    "LearningRateMonitor": lambda _: [ours.LearningRateMonitor(log_momentum=True, log_weight_decay=True)],
    "DeviceStatsMonitor": lambda _: [ours.DeviceStatsMonitor(cpu_stats=True)],
    "Timer": lambda _: [ours.Timer("00:01:00:00")],
    "LambdaCallback": lambda _: [ours.LambdaCallback(on_before_optimizer_step=doubled)],
    "GradientAccumulationScheduler": lambda _: [ours.GradientAccumulationScheduler({0: 1, 1: 2, 2: 3})],
    "BackboneFinetuning": lambda _: [ours.BackboneFinetuning(unfreeze_backbone_at_epoch=1)],
    "BaseFinetuning": lambda _: [Unfreeze()],
    "ModelPruning": lambda _: [pruning()],
    "ModelPruning, lottery ticket": lambda _: [pruning(use_lottery_ticket_hypothesis=True, resample_parameters=False)],
    "StochasticWeightAveraging": lambda _: [ours.StochasticWeightAveraging(0.02, 1, annealing_epochs=2)],
    "WeightAveraging": lambda _: [ours.WeightAveraging()],
    "EMAWeightAveraging": lambda _: [ours.EMAWeightAveraging(decay=0.8, update_every_n_steps=2)],
    "BasePredictionWriter": lambda _: [Writer("batch")],
    "ModelSummary": lambda _: [ours.ModelSummary(max_depth=2)],
    "RichModelSummary": lambda _: [ours.RichModelSummary()],
    "TQDMProgressBar": lambda _: [ours.TQDMProgressBar()],
    "RichProgressBar": lambda _: [ours.RichProgressBar()],
    "ThroughputMonitor": lambda _: [ours.ThroughputMonitor(lambda batch: len(batch[0]), window_size=3)],
    "SpikeDetection": lambda _: [ours.SpikeDetection(window=3, warmup=2, atol=100.0, rtol=None)],
    "of the user's": lambda _: [Counts()],
    "a mean of all and pruning": lambda _: [ours.WeightAveraging(use_buffers=False), pruning()],
    "a moving average and pruning": lambda _: [ours.EMAWeightAveraging(decay=0.8), pruning()],
    "an average of the last epochs and pruning": lambda _: [
        ours.StochasticWeightAveraging(0.02, 1),
        pruning(use_lottery_ticket_hypothesis=False),
    ],
    "finetuning and rates": lambda _: [
        ours.BackboneFinetuning(unfreeze_backbone_at_epoch=1),
        ours.LearningRateMonitor(),
    ],
    "accumulation, stopping and rates": lambda _: [
        ours.GradientAccumulationScheduler({1: 2}),
        ours.EarlyStopping("val_loss", patience=5, min_delta=10.0),
        ours.LearningRateMonitor(),
    ],
}
# What these say of time and of the machine is another thing each time.
OF_THE_MACHINE = ("DeviceStatsMonitor", "ThroughputMonitor", "Timer")
NEEDS = {"RichModelSummary": "rich", "RichProgressBar": "rich", "DeviceStatsMonitor": "psutil"}


class SaveAt(Callback):
    """Saves after so many batches, and keeps what the callbacks had in their folder by then."""

    def __init__(self, step, folder):
        self.step, self.path, self.num_rows = step, folder / f"saved-{step}.ckpt", None
        self.kept = folder / f"kept-{step}"

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch * BATCHES + batch_idx + 1 == self.step:
            trainer.save_checkpoint(self.path)
            self.num_rows = len(trainer.logger.rows)
            self.kept.mkdir()
            if (self.path.parent / "kept").exists():
                shutil.copytree(self.path.parent / "kept", self.kept, dirs_exist_ok=True)


def data():
    x = torch.randn(2 * BATCHES, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x.prod(1, keepdim=True))


def fitted(case, folder, *more, seed, ckpt_path=None):
    """The trainer and its module after a fit."""
    seed_everything(seed, verbose=False)
    module = Net()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        val_check_interval=2,
        log_every_n_steps=1,
        logger=Rows(folder),
        callbacks=[*CASES[case](folder / "kept"), *more],
        enable_checkpointing="Checkpoint" in case,
        enable_progress_bar="Bar" in case,
        enable_model_summary="Summary" in case,
        default_root_dir=folder,
    )
    loaders = DataLoader(data(), batch_size=2, shuffle=True), DataLoader(data(), batch_size=5)
    trainer.fit(module, *loaders, ckpt_path=ckpt_path)
    return trainer, module


def same(one, other):
    """Bit by bit, however deep."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def told(trainer, case):
    """The state of its callbacks, without folders and clocks."""
    states = {}
    for callback in trainer.callbacks:
        if isinstance(callback, SaveAt):
            continue
        state = dict(callback.state_dict())
        state.pop("dirpath", None)
        for name in ("best_model_path", "last_model_path", "kth_best_model_path"):
            if name in state:
                state[name] = Path(state[name]).name
        if "pruning" in case and case.startswith("a m"):  # what is under a mask there is an average's, and not kept
            state["masks"] = {name: saved["mask"] for name, saved in state.get("masks", {}).items()}
        if "best_k_models" in state:
            state["best_k_models"] = {Path(path).name: score for path, score in state["best_k_models"].items()}
        states[callback.state_key] = state
    return states if case not in OF_THE_MACHINE else sorted(states)


def without_the_machine(rows):
    """Of what is measured only the counts; of the rest that it is there. A rate needs a window that is full."""
    counts = ("train/batches", "train/samples", "validate/batches", "epoch")
    return [
        (step, {name: value if name in counts else None for name, value in row.items() if "per_sec" not in name})
        for step, row in rows
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that were never stopped, each with its checkpoints."""
    made: dict[str, Any] = {}

    def run(case):
        if case not in made:
            folder = tmp_path_factory.mktemp("whole")
            saves = [SaveAt(step, folder) for step in SAVED_AT]
            trainer, module = fitted(case, folder, *saves, seed=7)
            files = sorted(path.name for path in (folder / "kept").glob("*"))
            made[case] = (folder, saves, trainer, module, files)
        return made[case]

    return run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_what_comes_after_a_resume_is_what_would_have_come(case, whole):
    if case in NEEDS:
        pytest.importorskip(NEEDS[case])
    folder, saves, trainer, module, files = whole(case)
    kept = folder / "kept"
    for save in saves:
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(save.kept, kept)
        again, its_module = fitted(case, folder, seed=1, ckpt_path=save.path)
        assert sorted(path.name for path in kept.glob("*")) == files
        expected, found = trainer.logger.rows[save.num_rows :], again.logger.rows
        if case in OF_THE_MACHINE:
            expected, found = map(without_the_machine, (expected, found))
        assert same(expected, found)
        assert expected or case == "EarlyStopping"
        assert same(module.state_dict(), its_module.state_dict())
        assert same(trainer.optimizers[0].state_dict(), again.optimizers[0].state_dict())
        assert same(told(trainer, case), told(again, case))
        assert (trainer.global_step, trainer.current_epoch) == (again.global_step, again.current_epoch)
        assert math.isfinite(float(again.callback_metrics["val_loss"]))


def test_every_callback_has_a_case():
    of_ours = {name for name in ours.__all__ if isinstance(getattr(ours, name), type)}
    of_ours = {name for name in of_ours if issubclass(getattr(ours, name), Callback)}
    assert of_ours - {"Callback", "Checkpoint", "ProgressBar"} <= set(CASES)
