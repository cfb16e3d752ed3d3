import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric import Fabric
from fulmen.fabric.checkpoint_io import AsyncCheckpointIO, TorchCheckpointIO
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.fabric.strategies.ddp import DDPStrategy


class Place(LightningEnvironment):
    def __init__(self, node_rank, local_rank):
        super().__init__()
        self._place = node_rank, local_rank

    def node_rank(self):
        return self._place[0]

    def local_rank(self):
        return self._place[1]


@pytest.fixture(autouse=True)
def keep_rank(monkeypatch):
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    yield
    rank_zero_only.rank = None


@given(st.integers(1, 4), st.integers(1, 8))
def test_ranks_number_the_processes_of_all_nodes_without_gaps(num_nodes, num_processes):
    ranks = []
    for node_rank in range(num_nodes):
        for local_rank in range(num_processes):
            strategy = DDPStrategy(
                parallel_devices=[torch.device("cuda", index) for index in range(num_processes)],
                cluster_environment=Place(node_rank, local_rank),
            )
            strategy.num_nodes = num_nodes
            strategy.set_world_ranks()
            assert strategy.world_size == num_nodes * num_processes
            assert strategy.root_device.index == local_rank
            assert rank_zero_only.rank == strategy.global_rank
            ranks.append(strategy.global_rank)
    assert ranks == list(range(num_nodes * num_processes))


def test_without_environment_or_devices_it_is_one_process():
    strategy = DDPStrategy()
    assert (strategy.global_rank, strategy.local_rank, strategy.node_rank, strategy.world_size) == (0, 0, 0, 1)
    assert (strategy.num_processes, strategy.is_global_zero) == (0, True)
    with pytest.raises(ConfigurationError, match="leaves none for local rank 0"):
        _ = strategy.root_device
    assert strategy.reduce_boolean_decision(True)
    assert not strategy.reduce_boolean_decision(False, all=False)


def test_a_process_without_a_device_is_told_so():
    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")], cluster_environment=Place(0, 1))
    with pytest.raises(ConfigurationError, match="devices=1 leaves none for local rank 1"):
        _ = strategy.root_device


class Slow(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint, path, storage_options=None):
        time.sleep(0.5)  # the others are at their load long before
        super().save_checkpoint(checkpoint, path, storage_options)


class Broken(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint, path, storage_options=None):
        raise OSError("no space left")


def load_what_is_being_saved(fabric, folder):
    fabric.save(folder / "a.ckpt", {"a": 1})
    assert fabric.load(folder / "a.ckpt") == {"a": 1}
    fabric.strategy.checkpoint_io.checkpoint_io = Broken()
    fabric.save(folder / "b.ckpt", {"a": 1})
    with pytest.raises((OSError, RuntimeError), match="no space left"):
        fabric.load(folder / "b.ckpt")


def test_a_load_waits_for_the_process_that_still_writes(tmp_path):
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_fork", plugins=AsyncCheckpointIO(Slow()))
    fabric.launch(load_what_is_being_saved, tmp_path)
