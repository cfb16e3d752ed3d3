"""Splitting strategies in two real processes with gloo: a fit that stops inside an accumulation window, and the CPU.

The processes do everything in one life, for their start is what takes time.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric.precision.base import UniformPrecision
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies.ddp import DDPStrategy
from fulmen.trainer.strategies.fsdp import FSDPStrategy
from fulmen.trainer.strategies.half_summed import MEAN, apart, mean_of, put, take
from fulmen.trainer.strategies.model_parallel import ModelParallelStrategy
from fulmen.trainer.trainer import Trainer

pytestmark = pytest.mark.timeout(600)  # on a busy machine

PROCESSES, SAMPLES, WINDOW = 2, 24, 3


class Net(LightningModule):
    def __init__(self, split=None, manual=False, compiled=False):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
        self.head = nn.Linear(4, 1)
        self.double()
        if compiled:
            self.body = torch.compile(self.body, backend="eager")
        self.split, self.automatic_optimization = split, not manual

    def configure_model(self):
        if self.split is not None:
            self.split(self)
            self.split = None

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        loss = (self(batch[0]) - batch[1]).pow(2).mean()
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        self.manual_backward(loss / WINDOW)
        if (batch_idx + 1) % WINDOW == 0:
            optimizer.step()
            optimizer.zero_grad()
        return None

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def fully(module):
    mesh = module.device_mesh["data_parallel"]
    fully_shard(module.body, mesh=mesh)
    fully_shard(module, mesh=mesh)


def in_other_types(module):
    policy = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float64)
    fully_shard(module, mesh=module.device_mesh["data_parallel"], mp_policy=policy)


def inner_only(module):
    fully_shard(module.body, mesh=module.device_mesh["data_parallel"])
    fully_shard(module.head, mesh=module.device_mesh["data_parallel"])


def tensors(module):
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(module.body, module.device_mesh["tensor_parallel"], plan)


# What makes the strategy, how the module splits itself, and over how many processes the data is split.
CASES = {
    "ddp": (DDPStrategy, None, 2),
    "fsdp": (lambda: FSDPStrategy(auto_wrap_policy={nn.Linear}), None, 2),
    "fsdp, a folder": (lambda: FSDPStrategy(state_dict_type="sharded"), None, 2),
    "fsdp_cpu_offload": (lambda: "fsdp_cpu_offload", None, 2),
    "fsdp, policy": (lambda: FSDPStrategy(cpu_offload=CPUOffloadPolicy(pin_memory=False)), None, 2),
    "data parallel": (lambda: ModelParallelStrategy(2, 1, save_distributed_checkpoint=False), fully, 2),
    "tensor parallel": (lambda: ModelParallelStrategy(1, 2), tensors, 1),
    "alone": (lambda: "auto", None, 1),
}
# Layers that configure_model has split, and a type that they did not have: in float64, nothing is rounded on the way.
CONVERTED = {"data parallel": (fully, inner_only), "tensor parallel": (tensors,)}
CONVERTED_TO = {"64-true": 1e-12, "bf16-true": 0.02}  # how near the weights are to those of one process
COMPILED = ("ddp", "fsdp", "fsdp, a folder")
BY_HAND = ("fsdp", "data parallel", "tensor parallel")


class Exchanging(UniformPrecision):
    precision = "exchanging"

    def convert_module(self, module):
        raise AssertionError("layers that are split were exchanged")


class SaveAfter(Callback):
    """Saves after the batch `index` of the first epoch."""

    def __init__(self, index, path):
        self.index, self.path = index, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (0, self.index):
            trainer.save_checkpoint(self.path)


class Where(Callback):
    """Where parameters, gradients and the optimizer's state are, between two batches."""

    def __init__(self):
        self.devices = set()

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            state = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
            self.devices |= {str(tensor.device) for tensor in (parameter, parameter.grad, *state) if tensor is not None}


def data(batch_size):
    x = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return DataLoader(TensorDataset(x, x.prod(1, keepdim=True)), batch_size=batch_size)


def fitted(folder, case, *callbacks, ckpt_path=None, manual=False, split=None, compiled=False, then=None, **how):
    """The whole weights after two epochs of six batches, of which three make a step."""
    make, own_split, parts = CASES[case]
    module = Net(split or own_split, manual, compiled)
    if converts := split is not None and "precision" in how:
        module.float()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator="cpu",
        devices=1 if case == "alone" else PROCESSES,
        strategy=make(),
        callbacks=list(callbacks),
        max_epochs=2,
        accumulate_grad_batches=1 if manual else WINDOW,
        default_root_dir=folder,
        **({"precision": "64-true"} if split is None else how),
        **quiet,
    )
    trainer.fit(module, data(4 // parts), ckpt_path=ckpt_path)
    if then is not None:
        trainer = Trainer(accelerator="cpu", devices=PROCESSES, strategy=make(), max_epochs=1, precision=then, **quiet)
        trainer.fit(module, data(4 // parts))
    if converts:
        dtypes = {parameter.dtype for parameter in module.parameters()}
        assert dtypes == {trainer.strategy.precision_plugin.compute_dtype}
        # Split, also after the run.
        assert case == "alone" or all(hasattr(one, "full_tensor") for one in module.body.parameters())
    state = module.state_dict()
    return {name: getattr(value, "full_tensor", value.clone)().detach().clone() for name, value in state.items()}


def run_all(folder, rank):
    seen = {}
    for case in CASES:
        if case == "alone":
            continue
        for manual in (False, True) if case in BY_HAND else (False,):
            name = f"{case}{' by hand' * manual}"
            path = folder / f"{name}.ckpt"
            # In the middle of the second window of the first epoch.
            where = Where()
            seen[name] = fitted(folder, case, SaveAfter(4, path), where, manual=manual)
            seen[f"{name} is on"] = sorted(where.devices)
            seen[f"{name} resumed"] = fitted(folder, case, ckpt_path=path, manual=manual)
    for one, other in (("fsdp", "data parallel"), ("fsdp", "ddp"), ("ddp", "fsdp")):
        seen[f"{one} to {other}"] = fitted(folder, other, ckpt_path=folder / f"{one}.ckpt")
    for case in COMPILED:
        path = folder / f"{case} compiled.ckpt"
        seen[f"{case} compiled"] = fitted(folder, case, SaveAfter(4, path), compiled=True)
        for compiled in (True, False):
            seen[f"{case} compiled, then {compiled}"] = fitted(folder, case, ckpt_path=path, compiled=compiled)
        seen[f"{case} compiled later"] = fitted(folder, case, ckpt_path=folder / f"{case}.ckpt", compiled=True)
    for case, splits in CONVERTED.items():
        for split in splits:
            for precision in CONVERTED_TO:
                name = f"{case} {split.__name__} {precision}"
                seen[name] = fitted(folder, case, split=split, precision=precision)
    with pytest.raises(ConfigurationError) as refused:
        fitted(folder, "data parallel", split=fully, plugins=[Exchanging(torch.float64)])
    seen["exchanged"] = str(refused.value)
    fitted(folder, "data parallel", then="64-true")  # split in the first of two runs
    with pytest.raises(ConfigurationError) as refused:
        fitted(folder, "data parallel", then="bf16-true")
    seen["another type"] = str(refused.value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(folder, "data parallel", SaveAfter(4, folder / "other.ckpt"), split=in_other_types)
    seen["other types"] = [str(one.message) for one in caught if "cannot reach" in str(one.message)]
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory, in_processes):
    folder = tmp_path_factory.mktemp("sharded")
    found = in_processes(run_all, folder, PROCESSES)
    return [*found, {"single": torch.load(folder / "fsdp.ckpt")}]


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=0, atol=1e-12)


NAMES = [case for case in CASES if case != "alone"] + [f"{case} by hand" for case in BY_HAND]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return {manual: fitted(folder, "alone", manual=manual) for manual in (False, True)}


@pytest.mark.parametrize("name", NAMES)
def test_windows_are_summed_as_in_one_process_and_go_on_where_they_were_left(name, seen, alone):
    for one in seen[:PROCESSES]:
        assert_close(one[name], alone["by hand" in name])
        assert_close(one[f"{name} resumed"], one[name])


@pytest.mark.parametrize("name", ["fsdp to data parallel", "fsdp to ddp", "ddp to fsdp"])
def test_another_strategy_goes_on_inside_the_window(name, seen, alone):
    for one in seen[:PROCESSES]:
        assert_close(one[name], alone[False])


@pytest.mark.parametrize("case", COMPILED)
@pytest.mark.parametrize("which", ["compiled", "compiled, then True", "compiled, then False", "compiled later"])
def test_a_compiled_part_saves_and_loads_the_names_of_a_plain_one(case, which, seen, alone):
    for one in seen[:PROCESSES]:
        assert_close(one[f"{case} {which}"], alone[False])


@pytest.mark.parametrize("precision", CONVERTED_TO)
def test_layers_that_configure_model_has_split_get_the_type_of_the_precision(precision, seen, tmp_path):
    plain = fitted(tmp_path, "alone", split=lambda module: None, precision=precision)
    for one in seen[:PROCESSES]:
        for case, splits in CONVERTED.items():
            for split in splits:
                weights = one[f"{case} {split.__name__} {precision}"]
                assert weights.keys() == plain.keys()
                for name, value in plain.items():
                    torch.testing.assert_close(weights[name], value, rtol=0, atol=CONVERTED_TO[precision])


def test_a_precision_that_exchanges_layers_comes_before_the_split(seen):
    for one in seen[:PROCESSES]:
        assert "Trainer(precision='exchanging') exchanges layers, and Net has split its own" in one["exchanged"]


def test_what_a_run_has_split_keeps_its_type(seen):
    for one in seen[:PROCESSES]:
        assert "Trainer(precision='bf16-true') got Net, which was split before this run" in one["another type"]
        assert "has parameters in torch.float64. What is split goes on" in one["another type"]


def test_one_process_keeps_the_means_of_all(seen):
    first, second = seen[-1]["single"]["fulmen"]["gradients"]
    assert set(first) == {f"{MEAN}{name}" for name, _ in Net().named_parameters()}
    assert second == {}


def test_what_waits_on_the_cpu_is_on_the_cpu(seen):
    for name in ("fsdp_cpu_offload", "fsdp, policy"):
        assert all(one[f"{name} is on"] == ["cpu"] for one in seen[:PROCESSES])


def test_sums_that_are_out_of_reach_are_told_of(seen):
    first, second = (one["other types"] for one in seen[:PROCESSES])
    assert len(first) == 1
    assert "Save where a window ends" in first[0]
    assert second == []


def test_gradients_are_put_back_only_where_all_fit():
    module = Net()
    module(torch.ones(2, 3, dtype=torch.float64)).sum().backward()
    taken = take(module)
    other = Net()
    parameters = dict(other.named_parameters())
    for wrong in ({"nobody": torch.ones(1)}, {"head.bias": torch.ones(7)}):
        assert not put(parameters, taken | wrong)
        assert all(parameter.grad is None for parameter in parameters.values())
    assert put(parameters, taken)
    assert all(torch.equal(parameters[name].grad, grad) for name, grad in taken.items())


def test_the_mean_counts_who_has_none():
    one = {"a": torch.tensor([2.0]), "b": torch.tensor([4.0])}
    assert {name: grad.item() for name, grad in mean_of([one, {"a": torch.tensor([4.0])}]).items()} == {"a": 3, "b": 2}
    means, own = apart([{MEAN + "a": one["a"], "b": one["b"]}, {"b": one["a"]}])
    assert (set(means), [set(grads) for grads in own]) == ({"a"}, [{"b"}, {"b"}])
