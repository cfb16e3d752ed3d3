"""For real, on one XLA device, which with PJRT_DEVICE=CPU every machine has. Only `nox -s xla` runs it."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric import Fabric
from fulmen.fabric.strategies import SingleDeviceXLAStrategy, XLAFSDPStrategy, XLAStrategy
from fulmen.trainer import Callback, LightningModule, Trainer
from fulmen.trainer.callbacks import ModelCheckpoint

xla = pytest.importorskip("torch_xla")
metrics = pytest.importorskip("torch_xla.debug.metrics")
torch.zeros(
    1, device=xla.device()
).cpu()  # before the first backward on the CPU, which counts the devices that there are
STRATEGIES = {"single_xla": SingleDeviceXLAStrategy, "xla": XLAStrategy, "xla_fsdp": XLAFSDPStrategy}


def compiled():
    """How many graphs were compiled."""
    return (metrics.metric_data("CompileTime") or [0])[0]


def waited():
    """How many times the device was waited for: values read, tensors fetched."""
    return (metrics.counter_value("aten::_local_scalar_dense") or 0) + (
        metrics.metric_data("TransferFromDeviceTime") or [0]
    )[0]


def net():
    torch.manual_seed(1)
    layers = [torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)]
    layers[2].weight = torch.nn.Parameter(torch.randn(16, 16) / 4)
    return torch.nn.Sequential(*layers)


def samples(num=64):
    torch.manual_seed(2)
    return TensorDataset(torch.randn(num, 8), torch.randn(num, 1))


def train(strategy, *, watch=None, accelerator="tpu", epochs=2, **flags):
    """The losses of a loop with Fabric, and what was set up."""
    fabric = Fabric(accelerator=accelerator, strategy=strategy, devices=1, **flags)
    fabric.launch()
    module = net()
    if isinstance(fabric.strategy, XLAFSDPStrategy):
        model = fabric.setup_module(module)
        optimizer = fabric.setup_optimizers(torch.optim.Adam(model.parameters(), lr=0.01))
    else:
        model, optimizer = fabric.setup(module, torch.optim.Adam(module.parameters(), lr=0.01))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
    losses = []
    for _ in range(epochs):
        for x, y in fabric.setup_dataloaders(DataLoader(samples(), batch_size=8)):
            loss = (model(x) - y).square().mean()
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=0.5, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.detach())
            if watch is not None:
                watch.append((compiled(), waited()))
    return [loss.item() for loss in losses], fabric, model, optimizer


@pytest.fixture(scope="module")
def expected():
    return train("auto", accelerator="cpu")[0]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_losses_are_those_of_the_cpu(name, expected):
    losses, fabric, *_ = train(name)
    assert type(fabric.strategy) is STRATEGIES[name]
    assert fabric.device.type == "xla"
    assert losses == pytest.approx(expected, abs=1e-4)


def test_the_device_is_taken_by_name_with_the_strategy_for_one():
    assert Fabric(devices=1).device.type == "cpu"  # what torch_xla makes of a CPU is there wherever it is installed
    fabric = Fabric(accelerator="tpu")
    assert type(fabric.strategy) is SingleDeviceXLAStrategy
    assert str(fabric.device) == "xla:0"


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_graph_per_shape_and_nothing_is_waited_for(name):
    watched = []
    train(name, watch=watched)
    # The first step makes the state of the optimizer: a graph of its own. After the second, there is nothing new.
    assert watched[-1][0] - watched[1][0] == 0
    assert watched[1][0] - watched[0][0] <= 1
    assert watched[-1][1] == watched[0][1]


def test_16_bits():
    losses, _, model, _ = train("xla", precision="bf16-true")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["single_xla", "xla_fsdp"])
def test_what_was_saved_goes_on_as_it_would_have(name, tmp_path):
    _, fabric, model, optimizer = train(name, epochs=1)
    fabric.save(tmp_path / "saved", {"model": model, "optimizer": optimizer, "epoch": 3})
    _, again, other_model, other_optimizer = train(name, epochs=2)
    state = {"model": other_model, "optimizer": other_optimizer, "epoch": 0}
    assert again.load(tmp_path / "saved", state) == {}
    assert state["epoch"] == 3
    pairs = zip(model.parameters(), other_model.parameters(), strict=True)
    assert all(torch.equal(one.cpu(), other.cpu()) for one, other in pairs)
    here, there = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert all(torch.equal(here[key]["exp_avg"].cpu(), there[key]["exp_avg"].cpu()) for key in here)


def test_whole_weights_of_what_was_split_are_those_of_the_module(tmp_path):
    _, fabric, model, _ = train(XLAFSDPStrategy(state_dict_type="full"), epochs=1)
    fabric.save(tmp_path / "whole.ckpt", {"model": model})
    saved = torch.load(tmp_path / "whole.ckpt", weights_only=True)["model"]
    fresh = net()
    fresh.load_state_dict(saved)  # the names and shapes of the user's own module
    x = samples().tensors[0]
    assert torch.allclose(fresh(x), model(x.to(fabric.device)).cpu(), atol=1e-5)
    loaded = net()
    fabric.load(tmp_path / "whole.ckpt", {"model": loaded})
    assert torch.equal(loaded[0].weight, saved["0.weight"])


def test_dropout_can_be_repeated():
    fabric = Fabric(accelerator="tpu", devices=1)
    fabric.launch()
    ones = torch.ones(100, device=fabric.device)
    drawn = []
    for _ in range(2):
        fabric.seed_everything(5, verbose=False)
        drawn.append(torch.nn.functional.dropout(ones).cpu())
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], torch.nn.functional.dropout(ones).cpu())


class Tied(LightningModule):
    """Two layers that share a weight, which moves between devices must not part."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.one, self.two = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(torch.nn.functional.relu(self.one(x)))

    def training_step(self, batch, batch_idx):
        loss = self(batch[0]).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", self(batch[0]).square().mean())

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Scheduled(Tied):
    """A learning rate that is another one in each step."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Watch(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, *args):
        self.seen.append((compiled(), waited()))

    def in_batches(self):
        """How many graphs were compiled, and how many values were read, since the batch before."""
        pairs = itertools.pairwise(self.seen)
        return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


def fit(folder, module=None, *, ckpt_path=None, epochs=2, **flags):
    watch = Watch()
    asked = {"log_every_n_steps": 4, "enable_progress_bar": False, **flags}
    trainer = Trainer(
        max_epochs=epochs,
        num_sanity_val_steps=0,
        gradient_clip_val=0.5,
        default_root_dir=folder,
        enable_model_summary=False,
        **{**asked, "callbacks": [watch, *asked.get("callbacks", ())]},
    )
    module = module or Tied()
    loader = DataLoader(samples(), batch_size=8)
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
    return trainer, module, watch


def test_the_trainer_trains_as_on_the_cpu(tmp_path):
    trainer, module, watch = fit(tmp_path / "xla", accelerator="tpu", devices=1)
    other, expected, _ = fit(tmp_path / "cpu", accelerator="cpu", devices=1)
    assert module.one.weight is module.two.weight
    assert module.one.weight.device.type == "cpu"
    assert torch.allclose(module.one.weight, expected.one.weight, atol=1e-4)
    for name, value in other.callback_metrics.items():
        assert trainer.callback_metrics[name].item() == pytest.approx(value.item(), abs=1e-4), name
    # Between two logging points, once the first epoch has met every graph: nothing is compiled, or waited for.
    # Steps 4 and 8 of each epoch are logged, after the callbacks; the values are read there.
    second = watch.seen[8:]
    assert all(second[step] == second[step - 1] for step in (1, 2, 3, 5, 6, 7)), second
    assert second[-1][0] == second[0][0]


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (Tied, {"accumulate_grad_batches": 4}),
        (Tied, {"gradient_clip_algorithm": "value"}),
        (Tied, {"precision": "bf16-true"}),
        (Tied, {"enable_progress_bar": True}),
        (Scheduled, {}),
        (Scheduled, {"accumulate_grad_batches": 3}),
    ],
)
def test_after_the_first_epoch_nothing_is_compiled_or_waited_for(module, flags, tmp_path):
    *_, watch = fit(tmp_path, module(), epochs=3, accelerator="tpu", devices=1, log_every_n_steps=100, **flags)
    # Eight batches in each epoch. What validation and the ends of epochs compile comes behind the last of them.
    assert watch.in_batches()[8:15] == [(0, 0)] * 7
    assert watch.in_batches()[15:] == [(0, watch.in_batches()[15][1]), *[(0, 0)] * 7]


def test_validation_and_checkpoints_in_an_epoch_compile_nothing_again(tmp_path):
    saves = ModelCheckpoint(every_n_train_steps=3, save_top_k=-1)
    flags = {"val_check_interval": 4, "callbacks": [saves], "log_every_n_steps": 100}
    *_, watch = fit(tmp_path, epochs=3, accelerator="tpu", devices=1, **flags)
    num_compiled = [compiled for compiled, _ in watch.in_batches()]
    assert num_compiled[8:] == [0] * 15
    # Values are read only where there was a validation or a checkpoint since the batch before.
    quiet = [step for step in range(9, 24) if step % 3 and step % 4]
    assert [watch.in_batches()[step - 1][1] for step in quiet] == [0] * len(quiet)
    # A run that goes on inside an epoch, in a process that knows the graphs, compiles those of its beginning only.
    path = next(str(path) for path in tmp_path.rglob("*.ckpt") if "step=15" in path.name)
    *_, after = fit(tmp_path / "on", epochs=3, accelerator="tpu", devices=1, ckpt_path=path, log_every_n_steps=100)
    assert len(after.seen) == 9
    assert [compiled for compiled, _ in after.in_batches()][1:] == [0] * 7


def test_a_run_of_the_trainer_goes_on(tmp_path):
    trainer, *_ = fit(tmp_path, accelerator="tpu", devices=1, epochs=1)
    path = trainer.checkpoint_callback.best_model_path
    resumed, module, _ = fit(tmp_path / "on", accelerator="tpu", devices=1, epochs=2, ckpt_path=path)
    whole, expected, _ = fit(tmp_path / "whole", accelerator="tpu", devices=1, epochs=2)
    assert resumed.global_step == whole.global_step == 16
    assert torch.allclose(module.one.weight, expected.one.weight, atol=1e-6)
    answers = resumed.predict(module, DataLoader(samples(8), batch_size=8))
    assert answers[0].shape == (8, 8)


def test_a_strategy_for_replicas_says_that_there_is_only_one_device():
    from fulmen.fabric.errors import HardwareError

    with pytest.raises(HardwareError, match="devices=2"):
        Fabric(accelerator="tpu", strategy="xla", devices=2)


def test_the_profiler_serves(tmp_path):
    trainer, *_ = fit(tmp_path, accelerator="tpu", devices=1, epochs=1, profiler="xla")
    assert trainer.profiler.server is not None
