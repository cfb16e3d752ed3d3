import os
import sys
from collections import Counter
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from fulmen.fabric.collectives.tensors import gather_uneven
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.fabric import Fabric
from fulmen.fabric.launchers.script import ScriptLauncher
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.fabric.strategies.capabilities import ShardsAtInit, SkipsGradientSync
from fulmen.fabric.strategies.ddp import _IMPORTED_BY_DDP, DDPStrategy
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


class Branches(nn.Module):
    """Uses one of two layers, as the batch says."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))
        self.norm = nn.BatchNorm1d(4)  # its buffers are sent round, too

    def forward(self, batch, which):
        return self.layers[which](self.norm(batch))


def _leaves_out_parameters():
    module = Branches()
    wrapped = _strategy(find_unused_parameters=True).setup_module(module)
    for which in (0, 1, 0):
        module.zero_grad()
        wrapped(torch.ones(2, 4) * (dist.get_rank() + 1), which).sum().backward()
        used, unused = module.layers[which], module.layers[1 - which]
        assert used.bias.grad.item() == 2.0
        assert unused.bias.grad is None or unused.bias.grad.item() == 0.0


def _has_a_static_graph():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    wrapped = _strategy(static_graph=True, gradient_as_bucket_view=True).setup_module(module)
    assert wrapped.static_graph
    for _ in range(3):
        module.zero_grad()
        wrapped(torch.full((2, 4), float(dist.get_rank()))).sum().backward()
        assert module[1].bias.grad.item() == 2.0


def _accumulates_over_a_static_graph():
    strategy = _strategy(static_graph=True)
    module = nn.Linear(1, 1, bias=False)
    wrapped = strategy.setup_module(module)
    for step in range(3):
        module.zero_grad()
        for is_last in (False, False, True):
            with strategy.no_backward_sync(wrapped, enabled=not is_last):
                wrapped(torch.full((1, 1), float(dist.get_rank()))).sum().backward()
            if step and not is_last:
                assert module.weight.grad.item() % 1 == 0.0  # not yet exchanged
        assert module.weight.grad.item() == 1.5  # the mean of 3 * 0 and 3 * 1


def _reduces_by_a_hook():
    calls = []

    def hook(state, bucket):
        calls.append(state)
        future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda done: done.value()[0] * 10)  # not the mean

    def wrapper(inner):
        assert inner is hook
        return lambda state, bucket: inner(f"wrapped {state}", bucket)

    for kwargs, seen in (({}, "state"), ({"ddp_comm_wrapper": wrapper}, "wrapped state")):
        module = nn.Linear(1, 1, bias=False)
        wrapped = _strategy(ddp_comm_state="state", ddp_comm_hook=hook, **kwargs).setup_module(module)
        wrapped(torch.tensor([[dist.get_rank() + 1.0]])).sum().backward()
        assert module.weight.grad.item() == 30.0
        assert calls.pop() == seen
        assert not calls


def _collectives(step, num_steps=3):
    """How often each collective of torch is called in some steps, wherever it is called from."""
    for _ in range(2):  # the first steps also agree on the order of parameters
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(num_steps):
            step()
    found = Counter(event.name for event in profiler.events() if event.name.startswith("c10d::"))
    assert not any(count % num_steps for count in found.values())
    return {name: count // num_steps for name, count in found.items()}


def _asks_others_no_more_often_than_by_hand():
    fabric = Fabric(accelerator="cpu", devices=2, strategy=_strategy(bucket_cap_mb=1e-5))
    fabric.launch(lambda _: None)  # the processes are there already
    samples = TensorDataset(torch.randn(64, 4))

    def net():
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def by_hand():
        module = DistributedDataParallel(net(), bucket_cap_mb=1e-5)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        sampler = DistributedSampler(samples, num_replicas=2, rank=dist.get_rank())
        batches = iter(DataLoader(samples, batch_size=4, sampler=sampler))

        def step():
            optimizer.zero_grad()
            module(next(batches)[0]).mean().backward()
            optimizer.step()

        return _collectives(step)

    def with_fabric():
        module = net()
        module, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
        batches = iter(fabric.setup_dataloaders(DataLoader(samples, batch_size=4, shuffle=True)))

        def step():
            optimizer.zero_grad()
            fabric.backward(module(next(batches)[0]).mean())
            optimizer.step()

        return _collectives(step)

    expected = by_hand()
    # The gradients in several buckets, and the buffers of the batch norm.
    assert set(expected) == {"c10d::allreduce_", "c10d::broadcast_"}
    assert expected["c10d::allreduce_"] > 1
    assert with_fabric() == expected


def _evaluates_each_sample_once():
    fabric = Fabric(accelerator="cpu", devices=2, strategy=_strategy())
    fabric.launch(lambda _: None)
    samples = torch.arange(7.0)
    lengths = []
    for loader in (
        DataLoader(samples, batch_size=2),
        DataLoader(samples, batch_size=2, shuffle=True),
        DataLoader(samples, batch_sampler=BatchSampler(range(7), 2, drop_last=False)),
    ):
        padded, exact = fabric.setup_dataloaders(loader), fabric.setup_dataloaders(loader, each_sample_once=True)
        seen = [torch.cat(gather_uneven(torch.cat(list(view)))).tolist() for view in (padded, exact)]
        assert len(seen[0]) > 7
        assert sorted(seen[1]) == samples.tolist()
        lengths.append(len(exact))
    # Four samples here and three there; or two batches of the user's own sampler each.
    assert lengths == [2, 2, 2]


def _runs_as_asked():
    strategy = _strategy()
    strategy.setup_environment()
    for case in (
        _leaves_out_parameters,
        _has_a_static_graph,
        _accumulates_over_a_static_graph,
        _reduces_by_a_hook,
        _asks_others_no_more_often_than_by_hand,
        _evaluates_each_sample_once,
    ):
        case()
        strategy.barrier(case.__name__)
    return "done"


def test_the_options_of_ddp_do_what_they_say():
    assert _strategy().launcher.launch(_runs_as_asked) == "done"


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
    with pytest.raises(ArgumentTypeError, match=r"ddp_comm_hook='fp16'"):
        DDPStrategy(ddp_comm_hook="fp16")
    with pytest.raises(ConfigurationError, match=r"ddp_comm_state=\.\.\.\) has no hook"):
        DDPStrategy(ddp_comm_state=object())
    with pytest.raises(ConfigurationError, match=r"ddp_comm_wrapper=\.\.\.\) has no hook"):
        DDPStrategy(ddp_comm_wrapper=lambda hook: hook)
    with pytest.raises(ArgumentTypeError, match="timeout=30"):
        DDPStrategy(timeout=30)


@pytest.mark.parametrize("start_method", ["popen", "spawn"])
@pytest.mark.parametrize("backend", ["gloop", "cpu:gloo,cuda:nckl"])
def test_an_unknown_backend_is_refused_before_a_process_is_started(start_method, backend):
    strategy = DDPStrategy(process_group_backend=backend, start_method=start_method)
    with pytest.raises(ConfigurationError, match=rf"process_group_backend='{backend}' cannot be used.*gloo"):
        _ = strategy.launcher


def test_processes_that_are_forked_find_imported_what_ddp_imports():
    assert "torch._dynamo" in _IMPORTED_BY_DDP
    imported = _strategy().launcher.launch(_what_making_ddp_imports)
    assert [name for name in imported if name.startswith(("torch._dynamo", "sympy"))] == []


def _what_making_ddp_imports():
    strategy = _strategy()
    strategy.setup_environment()
    before = set(sys.modules)
    strategy.setup_module(nn.Linear(1, 1))
    return sorted(set(sys.modules) - before)


def test_arguments_for_ddp_reach_it(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "fulmen.fabric.strategies.ddp.DistributedDataParallel", lambda module, **kwargs: seen.update(kwargs)
    )
    monkeypatch.setattr("fulmen.fabric.strategies.ddp._check_ddp_arguments", lambda kwargs: None)
    _strategy(find_unused_parameters=True).setup_module(nn.Linear(1, 1))
    assert seen == {"device_ids": None, "find_unused_parameters": True}
    assert not issubclass(DistributedDataParallel, DDPStrategy)
