import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.forecast import fake_world
from fulmen.fabric.rank_zero import rank_zero_only


def test_a_group_of_many_is_open_inside_and_leaves_nothing_after_errors(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "_rank", None)
    monkeypatch.setenv("RANK", "3")
    shown_by = sys.excepthook

    def fail():
        with fake_world.fake_group(1024):
            assert (dist.get_rank(), dist.get_world_size()) == (0, 1024)
            assert sys.excepthook is shown_by
            rank_zero_only.rank = 0  # as a strategy does
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not dist.is_initialized()
    assert rank_zero_only.rank == 3


def test_inside_a_real_group_there_is_no_other():
    with (
        fake_world.fake_group(2),
        pytest.raises(ConfigurationError, match="while a process group is open"),
        fake_world.fake_group(4),
    ):
        pass
    assert not dist.is_initialized()


def test_a_copy_without_memory_shares_what_was_shared_and_leaves_the_rest():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    net[1].weight = net[0].weight
    net[0].weight.requires_grad_(False)
    net.friend = friend = object()
    shell = fake_world.without_memory(net, apart=[friend])
    assert all(one.is_meta for one in [*shell.parameters(), *shell.buffers()])
    assert shell[0].weight is shell[1].weight
    assert [one.requires_grad for one in shell.parameters()] == [one.requires_grad for one in net.parameters()]
    assert not net[0].weight.is_meta
    assert shell.friend is friend
    with fake_world.mode():
        fake_world.claim_device(shell, torch.device("cpu"))
    assert shell[0].weight is shell[1].weight
    assert {one.device.type for one in [*shell.parameters(), *shell.buffers()]} == {"cpu"}
    assert [name for name, _ in shell.named_buffers()] == [name for name, _ in net.named_buffers()]


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 64])
def test_few_parts_have_the_shapes_of_all(length, dim):
    shape = (length, 3) if dim == 0 else (3, length)
    with fake_world.mode():
        tensor = torch.empty(shape)
    with fake_world.FewParts():
        found = torch.chunk(tensor, 8, dim=dim)
        real = torch.chunk(torch.arange(8), 8)
    assert [part.shape for part in found] == [part.shape for part in torch.empty(shape).chunk(8, dim)]
    assert torch.cat(real).tolist() == list(range(8)), "tensors with numbers are cut as ever"
    assert length == 0 or len({id(part) for part in found}) <= 2


def test_a_batch_keeps_shapes_and_types():
    with fake_world.mode():
        found = fake_world.claiming({"x": torch.zeros(2, 3), "y": [torch.ones(2, dtype=torch.long), "text"]}, "cpu")
    assert (found["x"].shape, found["y"][0].dtype, found["y"][1]) == ((2, 3), torch.long, "text")
