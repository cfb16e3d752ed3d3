import copy
import json

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
import torch.distributed.fsdp
import torch.distributed.tensor.parallel
from torch import nn

from fulmen.fabric import Fabric
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.forecast import make_forecast
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.fabric.precision.half import HalfPrecision
from fulmen.fabric.strategies.ddp import DDPStrategy
from fulmen.fabric.strategies.dp import DataParallelStrategy
from fulmen.fabric.strategies.fsdp import FSDPStrategy
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy
from fulmen.fabric.strategies.sharded_tensors import local_part

SIZE = 4


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.first = nn.Linear(10, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.norm = nn.BatchNorm1d(width)
        self.frozen = nn.Linear(width, width).requires_grad_(False)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.frozen(self.norm(x))


def by_hand(module, mesh):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    for block in module.blocks:
        parallelize_module(block, mesh["tensor_parallel"], plan)
        fully_shard(block, mesh=mesh["data_parallel"])
    return fully_shard(module, mesh=mesh["data_parallel"])


PLAN = {"blocks.*.up": "column", "blocks.*.down": "row", "blocks.*": "shard"}
# Strategy, precision, and the optimizer.
CASES = {
    "ddp": (DDPStrategy, "32-true", torch.optim.AdamW),
    "ddp in half": (DDPStrategy, "bf16-true", torch.optim.AdamW),
    "full": (lambda: FSDPStrategy(auto_wrap_policy={Block}), "32-true", torch.optim.AdamW),
    "one unit, mixed": (FSDPStrategy, "bf16-mixed", torch.optim.Adam),
    "grad op": (
        lambda: FSDPStrategy(auto_wrap_policy={Block}, sharding_strategy="SHARD_GRAD_OP"),
        "32-true",
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    ),
    "hybrid": (
        lambda: FSDPStrategy(auto_wrap_policy={Block}, sharding_strategy="HYBRID_SHARD", device_mesh=(2, 2)),
        "bf16-true",
        torch.optim.AdamW,
    ),
    "tensors": (
        lambda: ModelParallelStrategy(plan=PLAN, data_parallel_size=1, tensor_parallel_size=4),
        "32-true",
        torch.optim.AdamW,
    ),
    "data and tensors": (
        lambda: ModelParallelStrategy(plan=PLAN, data_parallel_size=2, tensor_parallel_size=2),
        "32-true",
        torch.optim.AdamW,
    ),
    "replicas": (
        lambda: ModelParallelStrategy(plan={"blocks.*": "shard"}, data_parallel_size=2, replicate_size=2),
        "32-true",
        torch.optim.AdamW,
    ),
    "a function": (
        lambda: ModelParallelStrategy(by_hand, data_parallel_size=2, tensor_parallel_size=2),
        "32-true",
        torch.optim.AdamW,
    ),
}


def trained(module):
    return [one for one in module.parameters() if one.requires_grad]


def storage_bytes(tensors):
    # Gradients of a unit lie in one piece of memory.
    storages = [local_part(one.detach()).untyped_storage() for one in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def measure(folder):
    """In each process, for each case: what lies in its memory after a step."""
    torch.set_num_threads(1)
    for number, (make, precision, optimizer_of) in enumerate(CASES.values()):
        fabric = Fabric(accelerator="cpu", devices=SIZE, strategy=make(), precision=precision)
        fabric.launch()
        module = fabric.setup_module(Net())
        optimizer = fabric.setup_optimizers(optimizer_of(trained(module)))
        fabric.backward(module(torch.rand(6, 10)).float().sum())
        optimizer.step()
        found = {
            "parameters": storage_bytes(module.parameters()),
            "gradients": storage_bytes(one.grad for one in trained(module)),
            "optimizer state": storage_bytes(
                value for state in optimizer.optimizer.state.values() for value in state.values()
            ),
        }
        if dist.get_rank() == 0:
            (folder / f"{number}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    SpawnLauncher(LightningEnvironment(), SIZE, start_method="fork").launch(measure, folder)
    return {name: json.loads((folder / f"{number}.json").read_text()) for number, name in enumerate(CASES)}


@pytest.mark.parametrize("name", CASES)
def test_memory_is_foretold_within_five_percent(measured, name):
    make, precision, optimizer_of = CASES[name]
    forecast = make_forecast(
        Net(),
        strategy=make(),
        devices=SIZE,
        precision=precision,
        batch=torch.zeros(6, 10),
        optimizers=lambda module: optimizer_of(trained(module)),
    )
    for what, found in measured[name].items():
        assert forecast.memory_bytes[what] == pytest.approx(found, rel=0.05), what


def test_nothing_is_left_behind_and_nothing_is_changed():
    net, strategy = Net(), FSDPStrategy()
    before = copy.deepcopy(net.state_dict())
    make_forecast(net, strategy=strategy, devices=8, num_nodes=4, batch=torch.zeros(2, 10))
    assert not dist.is_initialized()
    assert strategy.parallel_devices is None
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(one.grad is None for one in net.parameters())


def test_a_module_without_memory_gives_the_same_forecast():
    with torch.device("meta"):
        net, batch = Net(), torch.zeros(2, 10)
    arguments = {"strategy": "fsdp", "devices": 2, "precision": "bf16-mixed"}
    assert make_forecast(net, batch=batch, **arguments) == make_forecast(Net(), batch=torch.rand(2, 10), **arguments)


def test_one_device_says_all():
    net = nn.Linear(10, 4)
    forecast = make_forecast(net, batch=torch.zeros(5, 10), num_samples=23, accumulate=2)
    assert forecast.mesh == {"data": 1}
    assert forecast.memory_bytes == {
        "parameters": 44 * 4,
        "buffers": 0,
        "gradients": 44 * 4,
        "optimizer state": (2 * 44 + 2) * 4,  # AdamW has two numbers for each, and a count for each parameter
        "activations": 4,  # of the sum of the output, only the sum is alive
        "exchange": 0,
    }
    assert forecast.traffic == []
    assert forecast.checkpoint_bytes == (3 * 44 + 2) * 4
    assert forecast.steps_per_epoch == 3
    assert forecast.warnings == []


def test_what_is_kept_for_backward_is_counted():
    net = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 30), nn.Tanh())
    forecast = make_forecast(net, batch=torch.zeros(5, 10))
    assert forecast.memory_bytes["activations"] == pytest.approx(5 * (20 + 30) * 4, abs=8)


def traffic(forecast):
    return {(one.operation, one.axis): one for one in forecast.traffic}


def test_ddp_reduces_all_gradients_once_a_step():
    net = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4))
    size = sum(one.numel() for one in net.parameters()) * 4
    found = traffic(make_forecast(net, devices=4, batch=torch.zeros(5, 10), accumulate=3))
    assert set(found) == {("all_reduce", "data"), ("broadcast", "data")}
    assert found["all_reduce", "data"].message_bytes == size
    assert found["all_reduce", "data"].sent_bytes == 2 * size * 3 // 4


def test_sharding_gathers_for_each_batch_and_reduces_once_a_step():
    net = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))
    size = sum(one.numel() for one in net.parameters()) * 4
    strategy = FSDPStrategy(auto_wrap_policy={nn.Linear})
    found = traffic(make_forecast(net, strategy=strategy, devices=8, batch=torch.zeros(5, 16), accumulate=3))
    gathered, reduced = found["all_gather", "shard"], found["reduce_scatter", "shard"]
    # For forward, and again for backward, where the last layer may still be there.
    assert size * 3 < gathered.message_bytes < 2.2 * size * 3
    assert (reduced.num_calls, reduced.message_bytes) == (3, size)
    assert reduced.sent_bytes == size * 7 // 8


def test_gradients_that_wait_for_other_batches_are_whole():
    net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    size = sum(one.numel() for one in net.parameters()) * 4

    def memory(strategy, accumulate):
        return make_forecast(net, strategy=strategy, devices=4, batch=torch.zeros(5, 16), accumulate=accumulate)

    once, three = (memory("fsdp", accumulate).memory_bytes for accumulate in (1, 3))
    assert three == {**once, "gradients that wait": size - once["gradients"]}
    assert memory("ddp", 3).memory_bytes == memory("ddp", 1).memory_bytes


def test_a_norm_over_all_processes_is_a_number_more():
    net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    arguments = {"strategy": "fsdp", "devices": 4, "batch": torch.zeros(5, 16)}
    plain, clipped = (traffic(make_forecast(net, max_norm=norm, **arguments)) for norm in (None, 1.0))
    assert clipped.pop(("all_reduce", "shard")).num_calls == 1
    assert clipped == plain


def test_tensor_parallel_layers_exchange_activations():
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    strategy = ModelParallelStrategy(plan={"0": "column", "2": "row"}, data_parallel_size=1, tensor_parallel_size=4)
    found = traffic(make_forecast(net, strategy=strategy, devices=4, batch=torch.zeros(5, 16)))
    assert found["all_reduce", "tensor_parallel"].message_bytes == 5 * 16 * 4
    assert set(found) == {("all_reduce", "tensor_parallel")}


def test_a_tensor_axis_over_machines_is_warned_of():
    def warnings(size):
        strategy = ModelParallelStrategy(plan={"0": "column"}, tensor_parallel_size=size)
        net = nn.Sequential(nn.Linear(16, 32))
        return make_forecast(net, strategy=strategy, devices=4, num_nodes=4).warnings

    assert any("the tensor axis crosses machines" in text for text in warnings(8))
    assert not any("the tensor axis" in text for text in warnings(4))


def test_other_mistakes_are_warned_of():
    net = nn.Sequential(nn.Linear(7, 7), nn.Linear(7, 5))
    found = make_forecast(net, strategy="fsdp", devices=4, num_nodes=2, num_samples=20, batch_size=4).warnings
    assert ["2 machines" in found[0], "one unit" in found[1]] == [True, True]
    assert "no multiple of the processes" in found[2]
    assert "20 samples are fewer than one batch of 4 for each of 8 processes" in found[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strategy": "dpp"}, "strategy='dpp'"),
        ({"strategy": DataParallelStrategy()}, "'DataParallelStrategy'.* cannot be forecast"),
        ({"strategy": "deepspeed_stage_3"}, "'deepspeed_stage_3'.* Plan with strategy='fsdp'"),  # it needs no package
        ({"strategy": "xla_fsdp"}, "'xla_fsdp'.* Plan with strategy='fsdp'"),
        ({"strategy": "single_device", "devices": 2}, "more devices than one"),
        ({"devices": 0}, "devices=0"),
        ({"num_nodes": True}, "num_nodes=True"),
        ({"num_samples": 10, "batch_size": 0}, "batch_size=0"),
        ({"max_norm": "1"}, "max_norm='1'"),
        ({"precision": "33"}, "precision='33'"),
        ({"strategy": ModelParallelStrategy(plan={"0": "shard"}, data_parallel_size=3), "devices": 4}, "not fit 4"),
    ],
)  # fmt: skip
def test_what_cannot_be_forecast_is_refused(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        make_forecast(nn.Linear(2, 2), **arguments)
    assert not dist.is_initialized()


def test_one_xla_device_is_one_device():
    assert make_forecast(nn.Linear(8, 8), strategy="single_xla").strategy == "SingleDeviceStrategy"


def test_what_is_no_module_is_refused():
    with pytest.raises(ArgumentTypeError, match="got a dict"):
        make_forecast({})


def test_a_precision_may_be_an_object():
    forecast = make_forecast(nn.Linear(8, 8), precision=HalfPrecision("bf16-true"))
    assert forecast.memory_bytes["parameters"] == 72 * 2
