import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.launchers.script import ScriptLauncher
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.fabric.strategies.capabilities import ShardsAtInit, SkipsGradientSync
from fulmen.fabric.strategies.ddp import DDPStrategy
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy


def _strategy(**kwargs) -> DDPStrategy:
    return DDPStrategy(
        parallel_devices=[torch.device("cpu")] * 2,
        cluster_environment=LightningEnvironment(),
        start_method="fork",
        timeout=timedelta(seconds=60),
        **kwargs,
    )


def _train(strategy, batches):
    torch.manual_seed(0)
    module = nn.Linear(4, 1)
    strategy.module_to_device(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    wrapped = strategy.setup_module(module)
    for batch in batches:
        optimizer.zero_grad()
        strategy.backward(wrapped(batch).square().mean(), wrapped)
        strategy.optimizer_step(optimizer)
    return strategy.get_module_state_dict(wrapped)


def _data():
    return torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(1))


def _accumulates_without_exchange(strategy):
    module = nn.Linear(1, 1, bias=False)
    wrapped = strategy.setup_module(module)
    rank = strategy.global_rank
    batch = torch.full((1, 1), float(rank))
    with strategy.no_backward_sync(wrapped, enabled=True):
        wrapped(batch).sum().backward()
    assert module.weight.grad.item() == rank
    with strategy.no_backward_sync(wrapped, enabled=False):
        wrapped(batch).sum().backward()
    assert module.weight.grad.item() == 1.0  # the mean of 0 + 0 and 1 + 1


def _work_of_a_process(strategy, folder):
    strategy.setup_environment()
    strategy.setup_environment()
    rank = strategy.global_rank
    assert (rank, strategy.local_rank, strategy.world_size) == (int(os.environ["RANK"]), rank, 2)
    assert rank_zero_only.rank == rank
    assert strategy.is_global_zero == (rank == 0)
    assert strategy.distributed_sampler_kwargs == {"num_replicas": 2, "rank": rank}
    assert dist.get_backend() == strategy.process_group_backend == "gloo"

    assert strategy.broadcast({"rank": rank}, src=1) == {"rank": 1}
    assert strategy.reduce_boolean_decision(rank == 0, all=False)
    assert not strategy.reduce_boolean_decision(rank == 0)
    assert strategy.all_reduce(torch.tensor(float(rank)), reduce_op="max").item() == 1.0
    assert strategy.all_reduce("no tensor") == "no tensor"
    assert strategy.all_gather(torch.tensor(rank)).tolist() == [0, 1]
    strategy.barrier("somewhere")

    frozen = nn.Linear(1, 1).requires_grad_(False)
    assert strategy.setup_module(frozen) is frozen
    with strategy.no_backward_sync(frozen, enabled=True):
        pass
    with pytest.raises(ArgumentTypeError, match="was not set up"):
        strategy.no_backward_sync(nn.Linear(1, 1), enabled=True)
    _accumulates_without_exchange(strategy)

    state = _train(strategy, [batch[rank::2] for batch in _data()])
    wrapped = strategy.setup_module(nn.Linear(4, 1))
    strategy.load_module_state_dict(wrapped, state)
    strategy.save_checkpoint(folder / "model.ckpt", {"model": wrapped})
    strategy.barrier()
    assert [path.name for path in folder.iterdir()] == ["model.ckpt"]
    strategy.teardown()
    return state


def test_two_replicas_on_halves_train_as_one_on_all(tmp_path):
    strategy = _strategy()
    state = strategy.launcher.launch(_work_of_a_process, strategy, tmp_path)
    alone = _train(SingleDeviceStrategy(), _data())
    assert set(state) == set(alone) == {"weight", "bias"}
    for name, value in alone.items():
        assert torch.allclose(state[name], value, atol=1e-6)
    loaded = nn.Linear(4, 1)
    SingleDeviceStrategy().load_checkpoint(tmp_path / "model.ckpt", {"model": loaded})
    assert torch.equal(loaded.weight, state["weight"])


def test_it_can_skip_gradient_sync_and_does_not_shard():
    assert isinstance(_strategy(), SkipsGradientSync)
    assert not isinstance(_strategy(), ShardsAtInit)
    assert not isinstance(SingleDeviceStrategy(), SkipsGradientSync)


def test_without_exchange_disabled_nothing_is_asked_of_the_module():
    with _strategy().no_backward_sync(nn.Linear(1, 1), enabled=False):
        pass


@pytest.mark.parametrize(("start_method", "kind"), [("popen", ScriptLauncher), ("spawn", SpawnLauncher)])
def test_the_start_method_chooses_the_launcher(start_method, kind):
    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")] * 2, start_method=start_method)
    assert isinstance(strategy.launcher, kind)
    assert strategy.launcher is strategy.launcher


def test_wrong_arguments_are_refused_when_it_is_made():
    with pytest.raises(ConfigurationError, match="start_method='thread'"):
        DDPStrategy(start_method="thread")
    with pytest.raises(ArgumentTypeError, match=r"find_unused_params=True.*find_unused_parameters"):
        DDPStrategy(find_unused_params=True)


def test_arguments_for_ddp_reach_it(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "fulmen.fabric.strategies.ddp.DistributedDataParallel", lambda module, **kwargs: seen.update(kwargs)
    )
    monkeypatch.setattr("fulmen.fabric.strategies.ddp._check_ddp_arguments", lambda kwargs: None)
    _strategy(find_unused_parameters=True).setup_module(nn.Linear(1, 1))
    assert seen == {"device_ids": None, "find_unused_parameters": True}
    assert not issubclass(DistributedDataParallel, DDPStrategy)
