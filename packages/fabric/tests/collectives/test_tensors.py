import pytest
import torch
from torch.distributed import ReduceOp

from fulmen.fabric.collectives.process_group import init_distributed
from fulmen.fabric.collectives.tensors import (
    gather_even,
    gather_uneven,
    parse_reduce_op,
    reduce_tensor,
    reduce_tensors,
)
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.launchers.spawn import SpawnLauncher


def test_alone_everything_is_what_it_was():
    tensor = torch.ones(2, requires_grad=True)
    assert reduce_tensor(tensor) is tensor
    assert gather_even(tensor) is tensor
    assert gather_uneven(tensor)[0] is tensor
    assert reduce_tensors([tensor])[0] is tensor


@pytest.mark.parametrize("op", ["average", "", "Mean value"])
def test_unknown_operations_are_refused_also_alone(op):
    with pytest.raises(ConfigurationError, match=f"reduce_op={op!r}"):
        reduce_tensor(torch.ones(1), op=op)


def test_the_mean_is_a_sum_to_be_divided():
    for op in ("mean", "avg", "MEAN", ReduceOp.AVG):
        assert parse_reduce_op(op) == (ReduceOp.SUM, True)
    assert parse_reduce_op(ReduceOp.MAX) == (ReduceOp.MAX, False)
    assert parse_reduce_op(None) == (ReduceOp.SUM, False)


def _everything_between_two_processes():
    environment = LightningEnvironment()
    init_distributed(environment, "gloo")
    rank = environment.global_rank()
    mine = torch.full((2, 2), float(rank + 1))

    reduced = {op: reduce_tensor(mine, op=op)[0, 0].item() for op in ("mean", "sum", "min", "max", "product")}
    assert reduced == {"mean": 1.5, "sum": 3.0, "min": 1.0, "max": 2.0, "product": 2.0}
    assert torch.equal(mine, torch.full((2, 2), float(rank + 1)))  # not changed
    assert reduce_tensor(torch.tensor(rank)).item() == 0.5
    assert reduce_tensor(torch.tensor(rank == 1), op="sum").item() == 1
    assert torch.equal(reduce_tensor((mine * torch.tensor([1.0, 2.0])).T), torch.tensor([[1.5, 1.5], [3.0, 3.0]]))
    assert reduce_tensor(torch.tensor(float(rank), requires_grad=True)).item() == 0.5

    several = reduce_tensors([mine, torch.tensor(rank), torch.tensor(2.0 * rank), torch.empty(0)], op="sum")
    assert [tensor.shape for tensor in several] == [(2, 2), (), (), (0,)]
    assert [tensor.dtype for tensor in several][:2] == [torch.float32, torch.int64]
    assert [several[0][1, 1].item(), several[1].item(), several[2].item()] == [3.0, 1, 2.0]

    gathered = gather_even(mine)
    assert gathered.shape == (2, 2, 2)
    assert gathered[:, 0, 0].tolist() == [1.0, 2.0]
    assert gather_even(torch.tensor(rank == 0)).tolist() == [True, False]

    shapes = [tuple(part.shape) for part in gather_uneven(torch.ones(rank, 3 - rank))]
    assert shapes == [(0, 3), (1, 2)]
    assert [part.item() for part in gather_uneven(torch.tensor(rank))] == [0, 1]

    weight = torch.ones(1, requires_grad=True)
    (gather_even(weight * (rank + 1), sync_grads=True).sum() * (rank + 1)).backward()
    assert weight.grad.item() == 3.0 * (rank + 1)  # both losses reach it
    return "done"


def test_between_two_processes():
    launcher = SpawnLauncher(LightningEnvironment(), 2, start_method="fork")
    assert launcher.launch(_everything_between_two_processes) == "done"
