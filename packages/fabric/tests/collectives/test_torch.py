import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from fulmen.fabric.collectives.process_group import init_distributed
from fulmen.fabric.collectives.torch import TorchCollective
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, NotLaunchedError
from fulmen.fabric.launchers.spawn import SpawnLauncher


def test_without_a_connection_it_says_what_to_do():
    collective = TorchCollective()
    assert not collective.is_initialized()
    for use in (lambda: collective.rank, lambda: collective.world_size, collective.barrier):
        with pytest.raises(NotLaunchedError, match=r"Call `setup\(\)` first"):
            use()
    assert collective.teardown() is collective


def test_without_distributed_it_cannot_be_made(monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="SingleDeviceCollective"):
        TorchCollective()


def test_it_connects_by_itself_and_closes_what_it_opened(monkeypatch):
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    collective = TorchCollective()
    collective.setup(main_address="127.0.0.1", main_port="0", backend="gloo", rank=0, world_size=1)
    assert collective.manages_default_group
    assert (collective.rank, collective.world_size) == (0, 1)
    assert (os.environ["MASTER_ADDR"], os.environ.get("MASTER_PORT")) == ("elsewhere", None)
    with pytest.raises(NotLaunchedError, match="is open"):
        TorchCollective.init_group(backend="gloo")
    guest = TorchCollective().setup()
    guest.teardown()
    assert dist.is_initialized()
    collective.teardown()
    assert not dist.is_initialized()


def _work_of_a_process():
    init_distributed(LightningEnvironment(), "gloo", timedelta(seconds=60))
    world = TorchCollective()
    rank = world.rank
    assert (world.world_size, world.group) == (3, dist.group.WORLD)

    def mine(offset=0.0):
        return torch.tensor([rank + 1.0 + offset])

    def empty():
        return [torch.zeros(1) for _ in range(3)]

    def values(tensors):
        return [tensor.item() for tensor in tensors]

    assert world.broadcast(mine(), src=2).item() == 3.0
    assert [world.all_reduce(mine(), op).item() for op in ("sum", "mean", "avg", "max", "product")] == [6, 2, 2, 3, 6]
    tensor = mine()
    assert world.all_reduce(tensor) is tensor
    reduced = world.reduce(mine(), dst=1, op="mean").item()
    assert rank != 1 or reduced == 2.0
    assert values(world.all_gather(empty(), mine())) == [1, 2, 3]
    assert values(world.gather(mine(), empty(), dst=2)) == ([1, 2, 3] if rank == 2 else [0, 0, 0])
    assert world.scatter(torch.zeros(1), [mine(10.0 * place) for place in range(3)], src=1).item() == 2 + 10 * rank
    assert world.reduce_scatter(torch.zeros(1), [mine(10.0 * place) for place in range(3)], "mean") == 2 + 10 * rank
    assert values(world.all_to_all(empty(), [mine(10.0 * place) for place in range(3)])) == [
        sender + 1 + 10 * rank for sender in range(3)
    ]
    if rank == 0:
        world.send(mine(), dst=1, tag=7)
    elif rank == 1:
        assert world.recv(torch.zeros(1), src=0, tag=7).item() == 1.0
    world.barrier()
    world.monitored_barrier(timedelta(seconds=60), wait_all_ranks=True)

    assert world.all_gather_object([None] * 3, {"rank": rank}) == [{"rank": place} for place in range(3)]
    assert world.broadcast_object_list([rank, "x"], src=1) == [1, "x"]
    assert world.gather_object(rank, [None] * 3, dst=1) == ([0, 1, 2] if rank == 1 else [None] * 3)
    assert world.scatter_object_list([None], ["a", "b", "c"], src=0) == ["abc"[rank]]

    with pytest.raises(ArgumentTypeError, match=r"torch\.int64"):
        world.all_reduce(torch.tensor(rank), "mean")
    with pytest.raises(ConfigurationError, match="reduce_op='median'"):
        world.all_reduce(mine(), "median")

    pair = TorchCollective().create_group(ranks=[1, 2])
    assert (pair.rank, pair.world_size) == ((-1, -1) if rank == 0 else (rank - 1, 2))
    if rank > 0:
        assert pair.all_reduce(mine(), "sum").item() == 5.0
        assert pair.broadcast(mine(), src=2).item() == 3.0  # a rank of all processes
    pair.teardown()
    world.teardown()
    assert dist.is_initialized()  # `init_distributed` opened it
    return "done"


def test_between_three_processes():
    launcher = SpawnLauncher(LightningEnvironment(), 3, start_method="fork")
    assert launcher.launch(_work_of_a_process) == "done"
