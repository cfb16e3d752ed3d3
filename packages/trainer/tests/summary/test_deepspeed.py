"""A summary of parameters as DeepSpeed leaves them: empty here, with their whole size and their shard beside."""

import math
from functools import partial

import torch
from torch import nn

from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.summary.deepspeed import DeepSpeedLayerSummary, DeepSpeedSummary, deepspeed_param_size


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 1)
        self.own = nn.Parameter(torch.ones(3))


def split(module, parts):
    for parameter in module.parameters():
        parameter.ds_numel = parameter.numel()
        parameter.partition_numel = partial(math.ceil, parameter.numel() / parts)
        parameter.data = torch.empty(0)
    return module


def test_whole_sizes_and_shards():
    net = Net()
    split(net.body, 3)
    summary = DeepSpeedSummary(net, max_depth=2)
    assert summary.total_parameters == summary.trainable_parameters == 48
    assert summary.param_nums == [40, 20, 20, 5]
    assert summary.parameters_per_layer == [2 * (6 + 2), 8, 8, 5]
    assert summary.model_size == 48 * 4 / 1e6
    table = dict(summary.columns())
    assert list(table)[3:5] == ["Params", "Params per Device"]
    assert [cell.strip() for cell in table["Params per Device"]] == ["16", "8", "8", "5", "n/a"]
    assert len(set(map(len, table.values()))) == 1
    assert "n/a" in str(summary)


def test_a_layer_by_itself():
    layer = split(nn.Linear(4, 4), 2)
    assert deepspeed_param_size(layer.weight) == 16
    summary = DeepSpeedLayerSummary(layer)
    assert (summary.num_parameters, summary.average_shard_parameters) == (20, 10)
