"""Folders of shards, written by several processes: whole or not at all. Threads stand for the processes."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.errors import CheckpointError
from fulmen.fabric.strategies.xla.shards import read_shards, write_shards, write_whole


class Wrapped:
    def get_shard_metadata(self):
        return {"shapes": {"w": torch.Size([2, 3])}}


class Failing(TorchCheckpointIO):
    """Writes so many files, and then fails."""

    def __init__(self, count):
        self.count = count

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        if self.count == 0:
            raise OSError("the disk is full")
        self.count -= 1
        super().save_checkpoint(checkpoint, path, storage_options)


class Process:
    def __init__(self, rank, world, checkpoint_io):
        self.global_rank, self.world_size, self.checkpoint_io = rank, world["size"], checkpoint_io
        self._world = world

    def barrier(self, name=None):
        self._world["barrier"].wait(timeout=60)

    def gather_objects(self, obj):
        self._world["said"][self.global_rank] = obj
        self.barrier()
        said = [self._world["said"][rank] for rank in range(self.world_size)]
        self.barrier()
        return said

    def broadcast(self, obj, src=0):
        return self.gather_objects(obj)[src]


def in_processes(work, size=2, ios=None):
    """What `work` gave in each process, or its error."""
    world = {"size": size, "barrier": threading.Barrier(size), "said": {}}
    processes = [Process(rank, world, (ios or {}).get(rank, TorchCheckpointIO())) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(work, process) for process in processes]
    return [future.exception() or future.result() for future in futures]


def writing(path, value, one_by_one=False):
    def work(process):
        state = {"model": {"w": torch.full((3,), value + process.global_rank)}, "step": value}
        write_shards(process, path, state, Wrapped(), one_by_one=one_by_one, options=None)

    return work


def reading(path):
    return lambda process: read_shards(process, path, None, strict=True, weights_only=None)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_each_process_reads_what_it_wrote(tmp_path, one_by_one):
    path = tmp_path / "shards"
    assert in_processes(writing(path, 1.0, one_by_one)) == [None, None]
    found = in_processes(reading(path))
    assert [one["model"]["w"].tolist() for one in found] == [[1.0] * 3, [2.0] * 3]
    # Fewer processes write in its place: nothing of the others is left.
    assert in_processes(writing(path, 5.0), size=1) == [None]
    assert sorted(os.listdir(path)) == ["checkpoint_rank-00000000-of-00000001.pth", "complete.ckpt"]
    assert "written by 1 processes" in str(in_processes(reading(path))[0])


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize(("rank", "count"), [(0, 0), (0, 1), (1, 0)])
def test_a_process_that_fails_leaves_what_was_there(tmp_path, rank, count, one_by_one):
    path = tmp_path / "shards"
    in_processes(writing(path, 1.0))
    errors = in_processes(writing(path, 7.0, one_by_one), ios={rank: Failing(count)})
    assert all(isinstance(error, (CheckpointError, OSError)) for error in errors)
    assert f"process {rank} failed" in str(errors[1 - rank])
    assert [one["step"] for one in in_processes(reading(path))] == [1.0, 1.0]
    assert os.listdir(tmp_path) == ["shards"]


def test_one_file_that_cannot_be_written_fails_every_process(tmp_path):
    path = tmp_path / "whole.ckpt"
    errors = in_processes(lambda process: write_whole(process, path, {"step": 1}, options=None), ios={0: Failing(0)})
    assert isinstance(errors[0], OSError)
    assert isinstance(errors[1], CheckpointError)


def test_a_folder_that_lacks_its_end_is_not_read(tmp_path):
    path = tmp_path / "shards"
    in_processes(writing(path, 1.0))
    (path / "complete.ckpt").unlink()
    assert all("is not complete" in str(error) for error in in_processes(reading(path)))


def test_remote_folders_have_their_end_written_last(tmp_path):
    path = "memory://shards-of-xla"
    in_processes(writing(path, 1.0))
    assert [one["step"] for one in in_processes(reading(path))] == [1.0, 1.0]
    in_processes(writing(path, 2.0), ios={1: Failing(0)})
    assert all("is not complete" in str(error) for error in in_processes(reading(path)))
