"""A LightningModule in the stages of a pipeline, in two real processes: it trains, logs and goes on as in one."""

import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric.strategies.pipeline.cuts import Pipeline
from fulmen.trainer.callbacks.pruning import ModelPruning
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies.model_parallel import ModelParallelStrategy
from fulmen.trainer.trainer import Trainer

pytestmark = pytest.mark.timeout(300)  # on a busy machine

PROCESSES, SAMPLES, WINDOW = 2, 44, 2  # the last batch is shorter
PIPELINES = {
    "1F1B": Pipeline(["body.2"], 4),
    "Interleaved1F1B": Pipeline(["body.1", "body.2", "head"], 2, "Interleaved1F1B"),
    "LoopedBFS": Pipeline(["body.1", "body.2", "head"], 4, "LoopedBFS"),
    "ZBVZeroBubble": Pipeline(["body.1", "body.2", "head"], 4, "ZBVZeroBubble"),  # the first process has the last stage
}
RESUMED_IN_A_V = ("ZBVZeroBubble", "1F1B")


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.criterion = nn.MSELoss()
        self.start = nn.Linear(3, 6)
        self.body = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)))
        self.head = nn.Linear(6, 1)
        self.count = torchmetrics.SumMetric()
        self.double()

    def forward(self, x):
        return self.head(self.body(self.start(x)))

    def training_step(self, batch, batch_idx):
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True, prog_bar=True)
        # Of all micro-batches together, as of the batch.
        self.log_dict({"seen": len(batch[0]) * 1.0, "squares": batch[1].pow(2).sum()}, on_epoch=True, reduce_fx="sum")
        self.count(float(len(batch[0])))  # each sample once, in whatever stage it is
        self.log("count", self.count, on_step=False, on_epoch=True)
        self.log("largest", batch[0].max(), reduce_fx="max", on_epoch=True)
        return {"loss": loss, "size": len(batch[0]) * 1.0}

    def validation_step(self, batch, batch_idx):
        out = self(batch[0])
        self.log("squares", (out - batch[1]).pow(2).mean(), sync_dist=True, batch_size=len(out))
        return out

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class Watch(Callback):
    """Saves in the middle of a window of the second epoch, and keeps what was logged and heard."""

    def __init__(self, path=None):
        self.path, self.logged, self.steps, self.heard, self.norms = path, [], [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(sum(float(grad.pow(2).sum()) for grad in grads))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.heard.append((float(outputs["loss"]), float(trainer.callback_metrics["loss_step"])))
        if self.path is not None and (trainer.current_epoch, batch_idx) == (1, 2):  # in the middle of a window
            trainer.save_checkpoint(self.path)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.heard.append(tuple(outputs.shape))

    def on_train_epoch_end(self, trainer, pl_module):
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.steps.append(trainer.global_step)


def data(batch_size=12):
    x = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return DataLoader(TensorDataset(x, x.prod(1, keepdim=True)), batch_size=batch_size)


def fitted(folder, pipeline, *, save=None, ckpt_path=None, one_file=False):
    strategy = "auto"
    if pipeline is not None:
        strategy = ModelParallelStrategy(pipeline=pipeline, save_distributed_checkpoint=not one_file)
    watch, module = Watch(save), Net()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(
        accelerator="cpu",
        devices=PROCESSES if pipeline is not None else 1,
        strategy=strategy,
        callbacks=[watch],
        max_epochs=2,
        accumulate_grad_batches=WINDOW,
        gradient_clip_val=0.1,
        num_sanity_val_steps=1,
        default_root_dir=folder,
        precision="64-true",
        **quiet,
    )
    trainer.fit(module, data(), data(), ckpt_path=ckpt_path)
    found = {"logged": watch.logged, "steps": watch.steps, "heard": watch.heard}
    fabric = trainer.strategy.fabric_strategy
    state = {name: value for name, value in module.state_dict().items() if not value.is_meta}
    assert pipeline is None or set(state) == {name for name in module.state_dict() if fabric.holds(module, name)}
    found["weights"] = {name: value.detach().clone() for name, value in state.items()}
    found["validated"] = trainer.validate(module, data(), verbose=False)
    found["predicted"] = torch.cat(trainer.predict(module, data()))
    return found


def run_all(folder, rank):
    seen = {}
    for name, pipeline in PIPELINES.items():
        seen[name] = fitted(folder, pipeline, save=folder / f"{name}.ckpt", one_file=name == "LoopedBFS")
    for name, saved in (("1F1B", "1F1B"), ("Interleaved1F1B", "1F1B"), ("1F1B", "LoopedBFS"), RESUMED_IN_A_V):
        seen[name, saved] = fitted(folder, PIPELINES[name], ckpt_path=folder / f"{saved}.ckpt")
    strategy = ModelParallelStrategy(pipeline=PIPELINES["1F1B"])
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    net = Net()
    pruning = ModelPruning("l1_unstructured", [(net.start, "weight")])  # in the first stage
    trainer = Trainer(accelerator="cpu", devices=PROCESSES, strategy=strategy, callbacks=[pruning], **quiet)
    with pytest.raises(ConfigurationError, match="ModelPruning cannot prune Net, of which"):
        trainer.fit(net, data())
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory, in_processes):
    import torch.distributed.pipelining  # noqa: F401  # once, before the fork

    folder = tmp_path_factory.mktemp("stages")
    found = in_processes(run_all, folder, PROCESSES)
    return [*found, fitted(folder, None), fitted(folder, None, ckpt_path=folder / "LoopedBFS.ckpt")]


def assert_same_weights(found, plain):
    assert {name for one in found for name in one["weights"]} == set(plain["weights"])
    for one in found:
        for name, value in one["weights"].items():
            torch.testing.assert_close(value, plain["weights"][name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PIPELINES)
def test_it_trains_logs_and_evaluates_as_in_one_process(seen, name):
    *found, plain, _ = seen
    assert_same_weights([one[name] for one in found], plain)
    for one in found:
        assert one[name]["steps"] == plain["steps"] == [2, 4]
        for key in ("logged", "validated"):
            for values, expected in zip(one[name][key], plain[key], strict=True):
                assert values == pytest.approx(expected, abs=1e-6)
        for heard, expected in zip(one[name]["heard"], plain["heard"], strict=True):
            assert heard == pytest.approx(expected, abs=1e-6)
        torch.testing.assert_close(one[name]["predicted"], plain["predicted"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [("1F1B", "1F1B"), ("Interleaved1F1B", "1F1B"), ("1F1B", "LoopedBFS"), RESUMED_IN_A_V])
def test_it_goes_on_inside_an_epoch_on_the_same_and_on_other_pipelines(seen, name):
    *found, plain, _ = seen
    assert_same_weights([one[name] for one in found], plain)
    for one in found:
        assert one[name]["steps"] == [4]
        assert one[name]["logged"][-1]["count"] == plain["logged"][-1]["count"] == SAMPLES
        assert one[name]["logged"][-1]["loss_epoch"] == pytest.approx(plain["logged"][-1]["loss_epoch"], abs=1e-6)


def test_one_process_goes_on_from_a_pipeline(seen):
    *_, plain, resumed = seen
    assert_same_weights([resumed], plain)
    assert resumed["steps"] == [4]


# --- without processes


class ByHand(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class OwnBackward(Net):
    def backward(self, loss):
        loss.backward()


@pytest.mark.parametrize(
    ("module", "points", "says"),
    [
        (ByHand, ["head"], r"ByHand optimizes by hand .* Return the loss from training_step"),
        (OwnBackward, ["head"], r"OwnBackward overrides backward\(\)"),
        (Net, ["blocks"], r"names 'blocks', which Net does not have"),
    ],
)
def test_what_a_pipeline_cannot_do_is_said_before_a_process_starts(module, points, says):
    with pytest.raises(ConfigurationError, match=says):
        ModelParallelStrategy(pipeline=Pipeline(points, 4)).connect(module())
