"""Callbacks that change weights, in two real processes with gloo: as in one process with batches twice as large.

The processes do everything in one life, for their start is what takes time.
"""

import pytest
import torch
import torch._dynamo  # DDP imports it, which takes seconds; forked processes have what is there already
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer.callbacks.finetuning import BackboneFinetuning, BaseFinetuning
from fulmen.trainer.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from fulmen.trainer.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies.ddp import DDPStrategy
from fulmen.trainer.strategies.fsdp import FSDPStrategy
from fulmen.trainer.trainer import Trainer

pytestmark = pytest.mark.timeout(600)  # on a busy machine

PROCESSES, SAMPLES, EPOCHS = 2, 24, 4


class Net(LightningModule):
    def __init__(self, norm=False):
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4) if norm else nn.Tanh(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 1)
        self.double()

    def forward(self, x):
        return self.head(torch.tanh(self.backbone(x)))

    def training_step(self, batch, batch_idx):
        return (self(batch[0]) - batch[1]).pow(2).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val", (self(batch[0]) - batch[1]).pow(2).mean(), sync_dist=True)

    def configure_optimizers(self):
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, lr=0.03)


class Unfreeze(BaseFinetuning):
    """Layer after layer, the last one first, and one of them is frozen again."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone[2], optimizer, lr=0.02)
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.backbone[0], optimizer, lr=0.01)
        if epoch == 3:
            self.freeze(pl_module.backbone[2])


CALLBACKS = {
    "mean": WeightAveraging,
    "ema": lambda: EMAWeightAveraging(decay=0.7, update_every_n_steps=2),
    "swa": lambda: StochasticWeightAveraging(0.02, swa_epoch_start=2, annealing_epochs=2),
    "backbone": lambda: BackboneFinetuning(unfreeze_backbone_at_epoch=2),
    "layers": Unfreeze,
}
STRATEGIES = {"": {}, "static": {"static_graph": True}, "view": {"gradient_as_bucket_view": True}}


class SaveAt(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def data(batch_size):
    x = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return DataLoader(TensorDataset(x, x.prod(1, keepdim=True)), batch_size=batch_size)


def fitted(folder, *callbacks, size=1, norm=False, ckpt_path=None, batch_size=None, **flags):
    """A module after a fit; `size` processes share batches of 6."""
    module = Net(norm)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    given = {"max_epochs": EPOCHS, "num_sanity_val_steps": 0, "default_root_dir": folder, "devices": size, **flags}
    trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), **quiet, **given)
    trainer.fit(module, data(batch_size or 6 // size), data(batch_size or 6 // size), ckpt_path=ckpt_path)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    return {"weights": state, "val": trainer.callback_metrics.get("val")}


def run_all(folder, rank):
    seen = {}
    for name, make in CALLBACKS.items():
        path = folder / f"{name}.ckpt"
        for step in (7, 11):  # in the middle of an epoch, and before its last batch
            save = SaveAt(step, path)
            seen[name] = fitted(folder, make(), save, size=PROCESSES, strategy="ddp")
            seen[f"{name} resumed at {step}"] = fitted(folder, make(), size=PROCESSES, strategy="ddp", ckpt_path=path)
    together = {"size": PROCESSES, "strategy": "ddp", "norm": True}
    for name in ("mean", "swa"):
        seen[f"{name} norm"] = fitted(folder, CALLBACKS[name](), **together)
        seen[f"{name} norm, not validated"] = fitted(folder, CALLBACKS[name](), limit_val_batches=0, **together)
    for kind, options in STRATEGIES.items():
        seen[f"layers {kind}"] = fitted(folder, Unfreeze(), size=PROCESSES, strategy=DDPStrategy(**options))
    for name in ("ema", "swa", "backbone"):
        with pytest.raises(ConfigurationError) as caught:
            fitted(folder, CALLBACKS[name](), size=PROCESSES, strategy=FSDPStrategy())
        seen[f"{name} split"] = str(caught.value)
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory, in_processes):
    return in_processes(run_all, tmp_path_factory.mktemp("processes"), PROCESSES)


def assert_close(one, other, *names):
    for name in names or one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CALLBACKS)
def test_the_weights_are_those_of_one_process(name, seen, tmp_path):
    alone = fitted(tmp_path, CALLBACKS[name]())
    plain = fitted(tmp_path)
    for one in seen:
        assert_close(one[name]["weights"], alone["weights"])
        assert_close(one[name], alone, "val")
    assert any(not torch.equal(plain["weights"][key], value) for key, value in alone["weights"].items())


@pytest.mark.parametrize("step", [7, 11])
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_resumed_run_is_the_one_that_never_stopped(name, step, seen):
    for one in seen:
        assert_close(one[f"{name} resumed at {step}"]["weights"], one[name]["weights"])
        assert_close(one[f"{name} resumed at {step}"], one[name], "val")


@pytest.mark.parametrize("kind", STRATEGIES)
def test_parameters_may_be_unfrozen_whatever_the_wrapper_is_told(kind, seen):
    for one in seen:
        assert_close(one[f"layers {kind}"]["weights"], one["layers"]["weights"])


@pytest.mark.parametrize("name", [f"{name} norm{how}" for name in ("mean", "swa") for how in ("", ", not validated")])
def test_processes_leave_the_same_running_means(name, seen):
    first, second = (one[name]["weights"] for one in seen)
    assert_close(first, second)


def test_running_means_of_swa_are_over_the_batches_of_all_processes(seen):
    module = Net(norm=True)
    weights = seen[0]["swa norm"]["weights"]
    module.load_state_dict(weights)
    norm = module.backbone[1]
    norm.reset_running_stats()
    norm.momentum = None  # the plain mean
    [x] = [batch[0] for batch in data(SAMPLES)]
    with torch.no_grad():
        for rank in range(PROCESSES):
            for batch in x[rank::PROCESSES].split(6 // PROCESSES):
                module(batch)
    assert_close(norm.state_dict(), {name: weights[f"backbone.1.{name}"] for name in norm.state_dict()})


@pytest.mark.parametrize("name", ["ema", "swa", "backbone"])
def test_where_parameters_are_split_it_is_refused_before_the_run(name, seen):
    assert all("cannot be used with FSDPStrategy" in one[f"{name} split"] for one in seen)
