import pytest
import torch
from torch import nn
from torch.nn import DataParallel

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.fabric import Fabric
from fulmen.fabric.strategies import dp
from fulmen.fabric.strategies.base import users_module
from fulmen.fabric.strategies.dp import DataParallelStrategy
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy

CPU = torch.device("cpu")
GPUS = [torch.device("cuda", index) for index in range(2)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.seen = []

    def forward(self, batch):
        self.seen.append(len(batch))
        return self.layer(batch)

    def training_step(self, batch):
        return self(batch).square()


@pytest.fixture
def two_devices(monkeypatch):
    """Two devices that both are the CPU: torch's own functions of which the GPUs are made are the edge."""

    def replicate(wrapper, module, device_ids):
        replicas = []
        for _ in device_ids:
            replica = module._replicate_for_data_parallel()
            for name, child in module._modules.items():
                replica._modules[name] = child  # shares the parameters, as replicas on one device would
            replicas.append(replica)
        return replicas

    def scatter(wrapper, inputs, kwargs, device_ids):
        parts = [tensor.chunk(len(device_ids)) for tensor in inputs]
        return tuple(zip(*parts, strict=True)), tuple({} for _ in parts[0])

    monkeypatch.setattr(DataParallel, "replicate", replicate)
    monkeypatch.setattr(DataParallel, "scatter", scatter)
    monkeypatch.setattr(
        DataParallel,
        "parallel_apply",
        lambda self, replicas, inputs, kwargs: [one(*mine) for one, mine in zip(replicas, inputs, strict=True)],
    )
    monkeypatch.setattr(DataParallel, "gather", lambda self, outputs, device: torch.cat(outputs))
    init = DataParallel.__init__

    def on_cpu(self, module, device_ids):
        init(self, module)
        self.device_ids, self.output_device, self.src_device_obj = [0, 1], 0, CPU

    monkeypatch.setattr(DataParallel, "__init__", on_cpu)
    strategy = DataParallelStrategy(parallel_devices=list(GPUS))
    monkeypatch.setattr(DataParallelStrategy, "root_device", GPUS[0])
    return strategy


def test_it_is_one_process_on_several_devices():
    strategy = DataParallelStrategy(parallel_devices=list(GPUS))
    assert strategy.root_device == GPUS[0]
    assert (strategy.world_size, strategy.global_rank, strategy.is_global_zero) == (1, 0, True)
    assert strategy.distributed_sampler_kwargs is None
    assert strategy.launcher is None
    assert not strategy.is_distributed
    batch = {"x": torch.ones(2)}
    assert strategy.batch_to_device(batch) is batch
    assert strategy.broadcast(batch) is batch
    assert strategy.reduce_boolean_decision(True)
    assert not strategy.reduce_boolean_decision(False, all=False)
    strategy.barrier("somewhere")
    tensor = torch.ones(2)
    assert strategy.all_gather(tensor) is tensor


def test_what_comes_from_all_devices_becomes_one():
    strategy = DataParallelStrategy(parallel_devices=list(GPUS))
    values = {"loss": torch.tensor([1.0, 3.0]), "count": torch.tensor([1, 4]), "name": "x"}
    assert strategy.all_reduce(values) == {"loss": torch.tensor(2.0), "count": torch.tensor(2), "name": "x"}
    got = [strategy.all_reduce(values["loss"], reduce_op=op).item() for op in ("sum", "max", "min", "product", None)]
    assert got == [4.0, 3.0, 1.0, 3.0, 4.0]
    with pytest.raises(ConfigurationError, match="reduce_op='median'"):
        strategy.all_reduce(values, reduce_op="median")


def test_without_devices_or_with_several_of_another_kind_it_is_refused():
    with pytest.raises(ConfigurationError, match="has no devices"):
        _ = DataParallelStrategy().root_device
    with pytest.raises(ConfigurationError, match=r"\[cpu, cpu\]\) cannot split a batch"):
        DataParallelStrategy(parallel_devices=[CPU, CPU]).setup_module(nn.Linear(1, 1))


def test_a_batch_is_split_and_the_module_learns_from_all_of_it(two_devices):
    module = Net()
    wrapped = two_devices.setup_module(module)
    assert isinstance(wrapped, dp.DataParallel)
    batch = torch.randn(6, 4)
    two_devices.backward(wrapped(batch).square().mean(), wrapped)
    assert module.seen == [3, 3]
    alone = Net()
    alone(batch).square().mean().backward()
    assert torch.allclose(module.layer.weight.grad, alone.layer.weight.grad)


def test_a_method_that_is_called_through_forward_runs_on_each_replica(two_devices):
    from fulmen.fabric.wrappers import FabricModule

    module = Net()
    ran_on = []
    training_step = Net.training_step

    def watched(self, batch):
        ran_on.append(self)
        return training_step(self, batch)

    Net.training_step = watched
    try:
        wrapped = FabricModule(two_devices.setup_module(module), two_devices, original_module=module)
        output = wrapped.training_step(torch.randn(6, 4))
    finally:
        Net.training_step = training_step
    assert output.shape == (6, 1)
    assert len(ran_on) == 2
    assert module not in ran_on
    assert module.seen == [3, 3]
    assert "forward" not in module.__dict__
    assert wrapped(torch.randn(2, 4)).shape == (2, 1)


def test_the_state_is_that_of_the_users_module():
    strategy = DataParallelStrategy(parallel_devices=[CPU])
    module = Net()
    wrapped = strategy.setup_module(module)
    assert users_module(wrapped) is module
    assert set(strategy.get_module_state_dict(wrapped)) == {"layer.weight", "layer.bias"}
    state = {name: value + 1 for name, value in module.state_dict().items()}
    strategy.load_module_state_dict(wrapped, state)
    assert torch.equal(module.layer.weight, state["layer.weight"])


def test_on_one_device_fabric_trains_with_it_as_without(tmp_path):
    def train(strategy):
        fabric = Fabric(accelerator="cpu", devices=1, strategy=strategy)
        net = Net()
        model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
        for seed in range(3):
            batch = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            fabric.backward(model.training_step(batch).mean())
            optimizer.step()
        fabric.save(tmp_path / "net.ckpt", {"model": model})
        return net.state_dict()

    with_dp, without = train(DataParallelStrategy(parallel_devices=[CPU])), train(SingleDeviceStrategy())
    assert all(torch.equal(with_dp[name], value) for name, value in without.items())
