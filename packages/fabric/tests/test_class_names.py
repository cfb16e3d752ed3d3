"""Names of classes that users wrote, of objects whose class torch has made since."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations

from fulmen.fabric.class_names import class_name


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)


class FSDPNet(Net):
    """A user may call a class so."""


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", [Net, FSDPNet])
def test_a_module_that_is_split_keeps_its_name(mesh, kind):
    net = kind()
    fully_shard(net.layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    assert type(net) is not kind
    assert (class_name(net), class_name(net.layer)) == (kind.__name__, "Linear")


def test_a_layer_that_is_parametrized_keeps_its_name():
    layer = parametrizations.weight_norm(nn.Linear(2, 2))
    assert type(layer) is not nn.Linear
    assert class_name(layer) == "Linear"


@pytest.mark.parametrize("value", [Net(), nn.Linear(2, 2), torch.zeros(1), torch.optim.Adam([torch.zeros(1)]), 3, None])
def test_all_else_has_the_name_of_its_class(value):
    assert class_name(value) == type(value).__name__
