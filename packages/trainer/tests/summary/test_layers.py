import pytest
import torch
from torch import nn

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.summary.layers import LayerSummary, ModelSummary, parse_batch_shape, summarize


class Net(LightningModule):
    def __init__(self, example=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2))
        self.norm = nn.BatchNorm1d(2)
        self.unused = nn.Linear(1, 1, bias=False)
        self.scale = nn.Parameter(torch.ones(5))
        self.norm.requires_grad_(False)
        self.example_input_array = example

    def forward(self, x):
        return self.norm(self.body(x)) * self.scale.mean()


def test_totals_are_those_of_the_parameters():
    net = Net()
    summary = ModelSummary(net)
    assert summary.layer_names == ["body", "norm", "unused"]
    assert summary.layer_types == ["Sequential", "BatchNorm1d", "Linear"]
    assert summary.param_nums == [23, 4, 1]
    assert summary.total_parameters == 33
    assert summary.trainable_parameters == 29
    assert summary.total_layer_params == 28
    assert summary.model_size == pytest.approx(33 * 4e-6)
    assert summary.in_sizes == ["?"] * 3
    assert summary.total_training_modes == {"train": 6, "eval": 0}
    assert summary.total_flops == 0


@pytest.mark.parametrize(
    ("max_depth", "names"),
    [
        (0, []),
        (1, ["body", "norm", "unused"]),
        (2, ["body", "body.0", "body.1", "body.2", "norm", "unused"]),
        (-1, ["body", "body.0", "body.1", "body.2", "norm", "unused"]),
    ],
)
def test_depth(max_depth, names):
    assert summarize(Net(), max_depth).layer_names == names


def test_an_example_gives_sizes_and_flops_and_leaves_no_trace():
    net = Net(torch.ones(7, 4))
    net.norm.eval()
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    summary = ModelSummary(net, max_depth=2)
    assert torch.equal(torch.rand(2), expected)
    sizes = dict(zip(summary.layer_names, zip(summary.in_sizes, summary.out_sizes, strict=True), strict=True))
    assert sizes["body.0"] == ([7, 4], [7, 3])
    assert sizes["norm"] == ([7, 2], [7, 2])
    assert sizes["unused"] == ("?", "?")
    assert summary.total_flops == 2 * 7 * (4 * 3 + 3 * 2)
    assert net.training
    assert not net.norm.training
    assert not any(module._forward_hooks for module in net.modules())
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())


@pytest.mark.parametrize("form", [tuple, list, dict])
def test_several_inputs(form):
    class Two(LightningModule):
        def __init__(self):
            super().__init__()
            self.add = Add()
            one, two = torch.ones(2, 3), torch.ones(1, 3)
            self.example_input_array = {"a": one, "b": two} if form is dict else form([one, two])

        def forward(self, a, b=None):
            return self.add(*a) if b is None else self.add(a, b)

    class Add(nn.Module):
        def forward(self, a, b):
            return a + b

    summary = ModelSummary(Two())
    assert summary.in_sizes == [[[2, 3], [1, 3]]]
    assert summary.out_sizes == [[2, 3]]


def test_the_table():
    text = str(ModelSummary(Net(torch.ones(7, 4))))
    lines = text.splitlines()
    titles, body = ([cell.strip() for cell in line.split("|")] for line in (lines[0], lines[2]))
    assert titles == ["", "Name", "Type", "Params", "Mode", "FLOPs", "In sizes", "Out sizes"]
    assert body == ["0", "body", "Sequential", "23", "train", "252", "[7, 4]", "[7, 2]"]
    assert [cell.strip() for cell in lines[5].split("|")] == ["", "other params", "n/a", "5", *["n/a"] * 4]
    assert len({len(line) for line in lines[:6]}) == 1
    totals = dict(reversed(line.split(maxsplit=1)) for line in lines[7:])
    assert totals["Trainable params"] == "29"
    assert totals["Non-trainable params"] == "4"
    assert totals["Total params"] == "33"


def test_shared_parameters_count_once():
    net = Net()
    net.twin = net.body
    assert ModelSummary(net).total_parameters == 33


def test_lazy_layers_count_as_nothing_and_are_mentioned():
    class Lazy(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.LazyLinear(3)

    from fulmen.trainer.summary.sizes import warning_cache

    warning_cache.clear()
    with pytest.warns(UserWarning, match="lazy"):
        assert ModelSummary(Lazy()).total_parameters == 0


def test_an_example_gives_lazy_layers_their_parameters():
    class Lazy(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.LazyLinear(3)
            self.example_input_array = torch.ones(2, 4)

        def forward(self, x):
            return self.layer(x)

    summary = ModelSummary(Lazy())
    assert (summary.total_parameters, summary.total_flops, summary.in_sizes) == (15, 48, [[2, 4]])
    assert summary.layer_types == ["Linear"]


def test_a_layer_is_watched_once():
    layer = nn.Linear(4, 3)
    summary = LayerSummary(layer)
    layer(torch.ones(2, 4))
    assert (summary.in_size, summary.out_size) == ([2, 4], [2, 3])
    assert not layer._forward_hooks
    unused = LayerSummary(layer)
    del unused
    assert not layer._forward_hooks


def test_shapes():
    assert parse_batch_shape(torch.ones(2, 3)) == [2, 3]
    assert parse_batch_shape([torch.ones(1), (torch.ones(2), "x")]) == [[1], [[2], "?"]]
    assert parse_batch_shape(3) == "?"


@pytest.mark.parametrize("max_depth", [-2, "x"])
def test_a_depth_that_is_none_is_refused(max_depth):
    with pytest.raises(ConfigurationError, match="max_depth=") as caught:
        ModelSummary(Net(), max_depth=max_depth)
    assert isinstance(caught.value, ValueError)
