import torch

from fulmen.fabric.collectives.single_device import SingleDeviceCollective


def test_alone_every_operation_gives_back_what_it_got():
    alone = SingleDeviceCollective()
    assert alone.is_available()
    assert alone.is_initialized()
    assert (alone.rank, alone.world_size) == (0, 1)
    tensor, other = torch.tensor([1.0, 2.0]), torch.zeros(2)
    assert alone.broadcast(tensor, 0) is tensor
    assert alone.all_reduce(tensor, "sum") is tensor
    assert alone.reduce(tensor, 0, "mean") is tensor
    assert alone.recv(tensor, 0) is tensor
    alone.send(tensor, 0)
    alone.barrier()
    filled = [other]
    assert alone.all_gather(filled, tensor)[0] is filled[0] is tensor
    filled = [other]
    assert alone.gather(tensor, filled, dst=0)[0] is filled[0] is tensor
    assert alone.gather(tensor)[0] is tensor
    filled = [other]
    assert alone.all_to_all(filled, [tensor])[0] is filled[0] is tensor
    assert torch.equal(alone.scatter(other, [tensor]), tensor)
    assert torch.equal(alone.reduce_scatter(torch.zeros(2), [tensor], "sum"), tensor)
    assert torch.equal(other, tensor)
