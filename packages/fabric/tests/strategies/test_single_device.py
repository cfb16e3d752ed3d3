import torch
from torch import nn

from fulmen.fabric.strategies.single_device import SingleDeviceStrategy


def test_alone_everything_is_what_it_was():
    strategy = SingleDeviceStrategy()
    tensor, thing = torch.ones(2), object()
    assert strategy.root_device == torch.device("cpu")
    assert strategy.is_global_zero
    assert strategy.all_gather(tensor) is tensor
    assert strategy.all_reduce(tensor, reduce_op="sum") is tensor
    assert strategy.broadcast(thing) is thing
    assert strategy.reduce_boolean_decision(True)
    strategy.barrier("here")
    module = nn.Linear(1, 1)
    assert strategy.setup_module(module) is module


def test_modules_move_to_the_device():
    module = nn.Linear(1, 1)
    SingleDeviceStrategy("meta").module_to_device(module)
    assert module.weight.device.type == "meta"
