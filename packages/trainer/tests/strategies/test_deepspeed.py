"""The Trainer on engines of DeepSpeed, in real processes on the CPU: the same run as one plain process makes.

Runs where the package is installed (`nox -s deepspeed`). One group of processes per size does all cases.
"""

import os
import traceback
import warnings
from functools import partial

import pytest

pytest.importorskip("deepspeed", exc_type=ImportError)

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric.checkpoint_io.consolidate import consolidate
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.trainer.callbacks.finetuning import BackboneFinetuning
from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.strategies.catalog import STRATEGY_REGISTRY, build
from fulmen.trainer.strategies.deepspeed import DeepSpeedStrategy, remove_module_hooks
from fulmen.trainer.trainer import Trainer

pytestmark = pytest.mark.timeout(900)  # on a busy machine, the first import of the package takes its time

TOLERANCE = 5e-6  # 32 bits: sums depend on their order
SAMPLES, WINDOW = 20, 3


class Net(LightningModule):
    """Three batches to a step, so that the last window of an epoch is shorter."""

    def __init__(self, manual=False, late=False, scheduler=True):
        super().__init__()
        self.automatic_optimization = not manual
        self.net, self.has_scheduler = None, scheduler
        if not late:
            self.configure_model()

    def configure_model(self):
        if self.net is None:
            torch.manual_seed(3)
            self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = (self(batch[0]) - batch[1]).pow(2).mean()
        if self.automatic_optimization:
            self.log("loss", loss)
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def validation_step(self, batch, batch_idx):
        self.log("val", (self(batch[0]) - batch[1]).pow(2).mean(), sync_dist=True)

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        if not self.has_scheduler:
            return optimizer
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class WithoutOptimizer(Net):
    def configure_optimizers(self):
        return None


class WithOptimizer(Net):
    def configure_optimizers(self):
        pytest.fail("the configuration has an optimizer")


def loader(batch_size=2):
    torch.manual_seed(1)
    inputs = torch.randn(SAMPLES, 3)
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True).sin()), batch_size=batch_size)


def trainer(n, folder, strategy=None, **kwargs):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    if "callbacks" not in kwargs:
        quiet["enable_checkpointing"] = False
    flags = quiet | {"accelerator": "cpu", "devices": n, "default_root_dir": folder, "max_epochs": 2} | kwargs
    return Trainer(strategy=strategy or DeepSpeedStrategy(), **flags)


def whole(run):
    strategy = run.strategy
    return strategy.fabric_strategy.whole_weights(strategy.deepspeed_engine, keep=True)


def assert_same(one, other, tolerance=TOLERANCE):
    assert set(one) == set(other)
    for name, value in other.items():
        difference = (one[name].float() - value.float()).abs().max().item()
        assert difference <= tolerance, f"{name} differs by {difference}"


# What each run is compared with: DDP in the same processes, the two by two samples in the same order.
VARIANTS = {
    "plain": ({}, {}),
    "clipped windows": ({"gradient_clip_val": 0.05, "accumulate_grad_batches": WINDOW}, {}),
    "manual": ({}, {"manual": True, "scheduler": False}),
}


def trained_by_ddp(n, folder):
    found = {}
    for name, (flags, how) in VARIANTS.items():
        run, module = trainer(n, folder, "ddp", **flags), Net(**how)
        run.fit(module, loader(), loader())
        found[name] = ({key: value.clone() for key, value in module.state_dict().items()}, run.global_step)
        metrics = run.validate(module, loader(), verbose=False)
        found[name] += (metrics[0]["val"],)
    return found


def same_as_ddp(n, folder):
    expected = trained_by_ddp(n, folder)
    for stage in (0, 1, 2, 3):
        for name, (flags, how) in VARIANTS.items():
            run = trainer(n, folder, DeepSpeedStrategy(stage=stage), **flags)
            module = Net(late=stage == 3, **how)
            run.fit(module, loader(), loader())
            weights, steps, metric = expected[name]
            assert_same(whole(run), weights)
            assert run.global_step == steps
            assert run.validate(module, loader(), verbose=False)[0]["val"] == pytest.approx(metric, abs=1e-5)
            predictions = run.predict(module, loader())
            assert predictions[0].shape == (2, 1)


def sixteen_bits(n, folder):
    for stage, precision in ((2, "16-mixed"), (3, "bf16-mixed"), (3, "bf16-true")):
        run = trainer(n, folder, DeepSpeedStrategy(stage=stage, initial_scale_power=4), precision=precision)
        module = Net(late=True)
        run.fit(module, loader(), loader())
        assert run.strategy.precision == precision
        plain = trainer(n, folder, "ddp")
        other = Net()
        plain.fit(other, loader(), loader())
        assert_same(whole(run), other.state_dict(), 0.1)


class Keep(Callback):
    """Saves in the middle, by the ways that a user has."""

    def __init__(self, folder, step):
        self.folder, self.step = folder, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and not os.path.isdir(self.folder / "middle"):
            trainer.save_checkpoint(self.folder / "middle")
            trainer.save_checkpoint(self.folder / "weights.ckpt", weights_only=True)


def goes_on_exactly(n, folder):
    for stage, precision in ((0, None), (1, None), (2, "16-mixed"), (3, None), (3, "bf16-mixed")):
        place = folder / f"{n}-{stage}-{precision}"
        strategy = partial(DeepSpeedStrategy, stage=stage, offload_optimizer=precision == "bf16-mixed")
        run = trainer(n, folder, strategy(), precision=precision, callbacks=[Keep(place, 3)])
        run.fit(Net(late=True), loader(), loader())
        again = trainer(n, folder, strategy(), precision=precision)
        again.fit(Net(late=True), loader(), loader(), ckpt_path=place / "middle")
        assert again.global_step == run.global_step
        assert_same(whole(again), whole(run), 0.0)
        lr = [one.optimizers[0].param_groups[0]["lr"] for one in (again, run)]
        assert lr[0] == lr[1]
        # One file of weights is loaded by anybody, and by an engine.
        plain = Net()
        plain.load_state_dict(torch.load(place / "weights.ckpt", weights_only=True)["state_dict"])
        other = trainer(n, folder, strategy(), precision=precision)
        metric = other.validate(Net(late=True), loader(), ckpt_path=place / "weights.ckpt", verbose=False)
        middle = trainer(n, folder, strategy(), precision=precision)
        same = middle.validate(Net(late=True), loader(), ckpt_path=place / "middle", verbose=False)
        assert metric[0]["val"] == pytest.approx(same[0]["val"], abs=1e-2 if precision else 1e-6)


class KeepInside(Callback):
    """Saves after a batch, wherever in a window that is."""

    def __init__(self, path, batch):
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 0 and batch_idx == self.batch:
            trainer.save_checkpoint(self.path)


def goes_on_exactly_inside_a_window(n, folder):
    for stage, precision in ((1, None), (2, None), (3, "bf16-mixed")):
        path = folder / f"window-{stage}"
        flags = {"precision": precision, "accumulate_grad_batches": WINDOW}
        run = trainer(n, folder, DeepSpeedStrategy(stage=stage), callbacks=[KeepInside(path, 1)], **flags)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*accumulation window")
            run.fit(Net(late=True, scheduler=False), loader())
        again = trainer(n, folder, DeepSpeedStrategy(stage=stage), **flags)
        again.fit(Net(late=True, scheduler=False), loader(), ckpt_path=path)
        assert again.global_step == run.global_step
        assert_same(whole(again), whole(run), 0.0)


def the_last_one_is_found(n, folder):
    place = folder / f"last-{n}"
    kept = ModelCheckpoint(place, save_last=True, every_n_train_steps=2, save_top_k=-1)
    run = trainer(n, folder, DeepSpeedStrategy(stage=2), callbacks=[kept])
    run.fit(Net(), loader())
    names = sorted(os.listdir(place))
    assert "last.ckpt" in names
    assert all(os.path.isdir(place / name) for name in names)
    damaged = next((place / "last.ckpt" / "checkpoint").glob("*optim_states.pt"))
    dist.barrier()
    if dist.get_rank() == 0:
        damaged.write_bytes(damaged.read_bytes()[:-100])
    dist.barrier()
    again = trainer(n, folder, DeepSpeedStrategy(stage=2), callbacks=[ModelCheckpoint(place, save_last=True)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one was passed over
        again.fit(Net(), loader(), ckpt_path="last")
    assert_same(whole(again), whole(run), 0.0)


def other_processes_and_strategies_go_on(n, folder):
    """In one process: from what two wrote; and DDP from one file of it."""
    place = folder / "2-3-None" / "middle"
    run = trainer(n, folder, DeepSpeedStrategy(stage=2), max_steps=4, max_epochs=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another number of processes
        run.fit(Net(), loader(4), ckpt_path=place)
    assert run.global_step == 4
    output = folder / "one.ckpt"
    consolidate(place, output)
    checkpoint = torch.load(output, weights_only=True)
    assert checkpoint["global_step"] == 3
    module = Net.load_from_checkpoint(output, map_location="cpu")
    assert_same(module.state_dict(), checkpoint["state_dict"], 0.0)
    plain = trainer(n, folder, "auto", callbacks=[Keep(folder / "plainly", 3)])
    plain.fit(Net(), loader())
    again = trainer(n, folder, DeepSpeedStrategy(stage=3))
    again.fit(Net(late=True), loader(), ckpt_path=folder / "plainly" / "middle")
    assert_same(whole(again), plain.lightning_module.state_dict())


def the_configuration_names_the_optimizer(n, folder):
    config = {
        "zero_optimization": {"stage": 2},
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10, "warmup_max_lr": 0.1}},
    }
    run = trainer(n, folder, DeepSpeedStrategy(config=config))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(WithOptimizer(), loader())
    told = [str(one.message) for one in caught if "configure_optimizers" in str(one.message)]
    assert len(told) == (run.global_rank == 0)
    assert all("WithOptimizer.configure_optimizers() is not called" in one and "whose SGD steps" in one for one in told)
    assert run.lr_scheduler_configs == []
    assert len(run.optimizers) == 1
    before = Net().state_dict()
    assert not torch.equal(whole(run)["net.0.weight"], before["net.0.weight"])
    assert run.global_step == 2 * -(-SAMPLES // (2 * n))
    assert run.strategy.deepspeed_engine.train_micro_batch_size_per_gpu() == 2
    scheduled = {name: config[name] for name in ("zero_optimization", "scheduler")}
    with pytest.raises(ConfigurationError, match=r"Net\.configure_optimizers\(\) contradicts.*section 'scheduler'"):
        trainer(n, folder, DeepSpeedStrategy(config=scheduled)).fit(Net(), loader())
    with pytest.raises(ConfigurationError, match=r"returned no optimizer"):
        trainer(n, folder).fit(WithoutOptimizer(), loader())


def one_engine_at_a_time(n, folder):
    module = Net(late=True)
    run = trainer(n, folder, DeepSpeedStrategy(stage=3), max_epochs=1)
    run.fit(module, loader())
    first, weights = run.strategy.deepspeed_engine, whole(run)
    assert all(parameter.ds_tensor.numel() < parameter.ds_numel for parameter in module.net[0].parameters())
    again = trainer(n, folder, DeepSpeedStrategy(stage=3), max_epochs=1)
    again.fit(module, loader())
    assert again.strategy.deepspeed_engine is not first
    assert not torch.equal(whole(again)["net.0.weight"], weights["net.0.weight"])


class Two(Net):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[0].parameters(), lr=1), torch.optim.SGD(self.net[2].parameters(), lr=1)]


def misuse(n, folder):
    with pytest.raises(ConfigurationError, match="returned 2 optimizers"):
        trainer(n, folder).fit(Two(manual=True), loader())
    backbone = Net()
    backbone.backbone = backbone.net[0]
    with pytest.raises(ConfigurationError, match="BackboneFinetuning"):
        trainer(n, folder, callbacks=[BackboneFinetuning()]).fit(backbone, loader())
    run = trainer(n, folder, DeepSpeedStrategy(load_full_weights=True))
    with pytest.raises(ConfigurationError, match="load_full_weights=True"):
        run.validate(Net(), loader(), ckpt_path=folder / "2-1-None" / "middle")
    run = trainer(n, folder)
    run.fit(Net(), loader())
    with pytest.raises(ConfigurationError, match="gradient_clip_val=3"):
        run.strategy.clip_gradients(run.optimizers[0], 3.0)
    with pytest.raises(ArgumentTypeError, match="storage_options"):
        run.save_checkpoint(folder / "x", storage_options={})


CASES = {
    same_as_ddp: (2,),
    sixteen_bits: (2,),
    goes_on_exactly: (2,),
    goes_on_exactly_inside_a_window: (2,),
    the_last_one_is_found: (2,),
    the_configuration_names_the_optimizer: (1, 2),
    one_engine_at_a_time: (2,),
    other_processes_and_strategies_go_on: (1,),
    misuse: (1,),
}
PLACES = [(case.__name__, size) for case, sizes in CASES.items() for size in sizes]


def work(size, folder, results):
    torch.set_num_threads(1)
    for case, sizes in CASES.items():
        if size not in sizes:
            continue
        try:
            case(size, folder)
            found = ""
        except Exception:
            found = traceback.format_exc()
        rank = dist.get_rank() if dist.is_initialized() else 0
        (results / f"{case.__name__}-{size}.{rank}").write_text(found)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    import deepspeed  # noqa: F401 (once, and not in each process)

    folder, results = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("results")
    lost = ""
    for size in (2, 1):
        try:
            SpawnLauncher(LightningEnvironment(), size, 1, "fork").launch(work, size, folder, results)
        except Exception as error:
            lost += repr(error)
    return results, lost


@pytest.mark.parametrize(("name", "size"), PLACES)
def test_in_processes(outcome, name, size):
    results, lost = outcome
    files = sorted(results.glob(f"{name}-{size}.*"))
    assert len(files) == size, f"did not finish: {lost}"
    failures = "".join(file.read_text() for file in files)
    assert failures == "", failures


# --- what is refused before a process starts


class Clips(Net):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None): ...


class Derives(Net):
    def backward(self, loss, *args, **kwargs): ...


@pytest.mark.parametrize(
    ("config", "flags", "module", "message"),
    [
        ({}, {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, Net, "gradient_clip_algorithm='value'"),
        (
            {"gradient_clipping": 1.0},
            {"gradient_clip_val": 0.5},
            Net,
            r"Trainer\(gradient_clip_val=0\.5\).*gradient_clipping is 1\.0",
        ),
        (
            {"gradient_accumulation_steps": 4},
            {"accumulate_grad_batches": 2},
            Net,
            r"Trainer\(accumulate_grad_batches=2\).*gradient_accumulation_steps is 4",
        ),
        ({"gradient_accumulation_steps": 4}, {}, Net, r"Trainer\(accumulate_grad_batches=1\)"),
        ({"train_micro_batch_size_per_gpu": 4}, {}, Net, r"DataLoader\(batch_size=2\).*micro_batch_size_per_gpu is 4"),
        ({"train_batch_size": 7}, {"accumulate_grad_batches": 3}, Net, "train_batch_size=7, and a step takes 12 "),
        (
            {"activation_checkpointing": {"contiguous_memory_optimization": True}},
            {},
            Net,
            "contiguous_memory_optimization",
        ),
        ({}, {}, Clips, r"Clips\.configure_gradient_clipping\(\)"),
        ({}, {}, Derives, r"Derives\.backward\(\)"),
    ],
)
def test_contradictions_are_refused_before_a_process_starts(tmp_path, monkeypatch, config, flags, module, message):
    monkeypatch.setattr("fulmen.fabric.launchers.script.ScriptLauncher.launch", lambda *_, **__: pytest.fail("began"))
    config = {"zero_optimization": {"stage": 2}, **config}
    run = trainer(2, tmp_path, DeepSpeedStrategy(config=config), **flags)
    with pytest.raises(ConfigurationError, match=message):
        run.fit(module(), loader())


def test_precision_and_configuration_agree(tmp_path):
    with pytest.raises(ConfigurationError, match=r"Trainer\(precision='16-mixed'\).*bf16\.enabled is True"):
        trainer(2, tmp_path, DeepSpeedStrategy(config={"bf16": {"enabled": True}}), precision="16-mixed")
    assert trainer(2, tmp_path, DeepSpeedStrategy(config={"bf16": {"enabled": True}})).precision == "bf16-mixed"


def test_its_names_build_it():
    names = [name for name in STRATEGY_REGISTRY.names() if name.startswith("deepspeed")]
    assert names == DeepSpeedStrategy.get_registered_strategies()
    for name in names:
        built = build(name)
        assert isinstance(built, DeepSpeedStrategy)
        assert built.zero_stage_3 == ("stage_3" in name)
        assert built.evaluates_in_step == built.zero_stage_3
    with pytest.raises(ArgumentTypeError, match=r"logging_batch_size_per_gpu=2\.5"):
        DeepSpeedStrategy(logging_batch_size_per_gpu=2.5)


def test_hooks_are_removed():
    module = nn.Sequential(nn.Linear(1, 1))
    module.register_forward_hook(lambda *_: pytest.fail("called"))
    module[0].register_forward_pre_hook(lambda *_: pytest.fail("called"))
    remove_module_hooks(module)
    module(torch.ones(1, 1))
