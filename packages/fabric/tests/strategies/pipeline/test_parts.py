"""The code of a module from one cut to the next, in one process: stages one after the other are the whole."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.strategies.pipeline.cuts import Pipeline, cut_module
from fulmen.fabric.strategies.pipeline.parts import StagedModule


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, mask, *, memory=None, twice=False):
        x = x + torch.tanh(self.linear(x)) * mask * (2 if twice else 1)
        return x if memory is None else x + memory.sum()


class Net(nn.Module):
    """Glue between its modules: positions, a mask from the batch, and a tensor that all blocks get."""

    def __init__(self, depth=4, passes_memory=True):
        super().__init__()
        self.passes_memory = passes_memory
        self.embed = nn.Embedding(9, 4)
        self.places = nn.Parameter(torch.randn(5, 4))
        self.register_buffer("scale", torch.tensor(0.5))
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(4, 9)

    def forward(self, batch):
        tokens = batch["tokens"]
        mask = (tokens > 2).unsqueeze(-1) * self.scale
        x = self.embed(tokens) + self.places[: tokens.shape[1]]
        memory = x * 2 if self.passes_memory else None
        for place, block in enumerate(self.blocks):
            x = block(x, mask, memory=memory, twice=place == 1)
        return functional.log_softmax(self.head(x), -1) * self.scale


def staged(module, *points, micro_batches=1):
    pipeline = Pipeline(points, micro_batches)
    cut = cut_module(module, pipeline)
    return StagedModule(module, pipeline, cut, range(pipeline.num_stages), torch.device("cpu"))


def by_stages(parts, call):
    """What the stages give, one after the other."""
    with parts.cut_open():
        crossings = parts.rehearse(call)
        arrived = ()
        for stage in range(parts.num_stages):
            arrived = parts.run(stage, arrived, crossings, call, {})
    return arrived


def make_batch(length=5):
    return {"tokens": torch.randint(9, (3, length), generator=torch.Generator().manual_seed(0))}


@settings(deadline=None, max_examples=8)
@given(st.sets(st.integers(0, 4), min_size=1), st.booleans())
def test_stages_one_after_the_other_are_the_module(places, passes_memory):
    torch.manual_seed(1)
    module, batch = Net(passes_memory=passes_memory), make_batch()
    names = ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"]
    parts = staged(module, *(names[place] for place in sorted(places)))
    found = by_stages(parts, lambda: module(batch))
    expected = module(batch)
    assert torch.equal(found, expected)
    gradients = torch.autograd.grad(found.sum(), [*module.parameters()])
    for one, other in zip(gradients, torch.autograd.grad(expected.sum(), [*module.parameters()]), strict=True):
        torch.testing.assert_close(one, other)


def test_only_what_depends_on_parameters_is_sent():
    module = Net(passes_memory=False)
    parts = staged(module, "blocks.2")
    with parts.cut_open():
        crossing = parts.rehearse(lambda: module(make_batch()))[1]
    assert crossing.is_sent == (True, False)  # the stream, and not the mask
    assert [tuple(one.shape) for one in crossing.shapes] == [(3, 5, 4)]
    assert crossing.shapes[0].requires_grad


def test_the_module_is_as_it_was_after_a_step_and_after_an_error():
    module = Net()
    before = [part for _, part in module.named_modules()], [*module.parameters()]
    parts = staged(module, "blocks.2")
    by_stages(parts, lambda: module(make_batch()))
    with pytest.raises(KeyError), parts.cut_open():
        parts.rehearse(lambda: {}["nothing"])
    for one, other in zip([*before[0], *before[1]], [*module.modules(), *module.parameters()], strict=True):
        assert one is other


def test_other_stages_leave_names_and_no_memory():
    module = Net()
    pipeline = Pipeline(["blocks.2"], 1)
    parts = StagedModule(module, pipeline, cut_module(module, pipeline), [1], torch.device("cpu"))
    names = list(module.state_dict())
    parts.drop_others()
    assert list(module.state_dict()) == names
    here = {name for name, value in module.state_dict().items() if not value.is_meta}
    assert here == {name for name in names if parts.holds(name)}
    assert "blocks.1.linear.bias" not in here
    assert {"scale", "blocks.2.linear.bias", "head.weight"} <= here  # buffers of the module itself are everywhere
    assert "places" not in here


class HasALoss(Net):
    """What has no parameters is used in every stage, wherever it is defined."""

    def __init__(self):
        super().__init__()
        blocks, head = self.blocks, self.head
        del self.blocks, self.head
        self.loss, self.act, self.norm = nn.CrossEntropyLoss(torch.rand(9)), nn.Tanh(), nn.BatchNorm1d(5, affine=False)
        self.blocks, self.head = blocks, head

    def forward(self, batch):
        x = self.act(self.embed(batch["tokens"]))
        for block in self.blocks:
            x = self.act(block(x, 1))
        return self.loss(self.head(self.norm(x)).flatten(0, 1), batch["tokens"].flatten())


def test_modules_without_parameters_are_in_every_stage():
    module, other = HasALoss(), make_batch()
    other["tokens"] = (other["tokens"] + 1) % 9
    parts = staged(module, "blocks.2")
    for batch in (make_batch(), other):
        assert torch.equal(by_stages(parts, lambda batch=batch: module(batch)), copy.deepcopy(module)(batch))
    assert module.norm.num_batches_tracked == 2
    pipeline = Pipeline(["blocks.2"], 1)
    last = StagedModule(module, pipeline, cut_module(module, pipeline), [1], torch.device("cpu"))
    last.drop_others()
    assert not module.loss.weight.is_meta
    assert (last.holds("norm.running_mean"), last.has("norm.running_mean"), last.has("embed.weight")) == (0, 1, 0)


class Skips(Net):
    def forward(self, batch):
        x = start = self.embed(batch["tokens"])
        for block in self.blocks:
            x = block(x, 1)
        return self.head(x + start)


class BorrowsWeights(Net):
    def forward(self, batch):
        x = self.embed(batch["tokens"])
        for block in self.blocks:
            x = block(x, 1)
        return functional.linear(x, self.embed.weight)


class AddsUpParameters(Net):
    def forward(self, batch):
        return super().forward(batch) + sum(parameter.sum() for parameter in self.parameters())


class LooksAtValues(Net):
    def forward(self, batch):
        x = self.embed(batch["tokens"])
        if x.sum() > 0:
            x = -x
        for block in self.blocks:
            x = block(x, 1)
        return self.head(x)


class DrawsNumbers(Net):
    def forward(self, batch):
        x = self.embed(batch["tokens"])
        x = self.blocks[0](x, torch.rand(1))
        for block in self.blocks[1:]:
            x = block(x, 1)
        return self.head(x)


class RunsTwice(Net):
    def forward(self, batch):
        return super().forward(batch) + super().forward(batch)


class OutOfOrder(Net):
    def forward(self, batch):
        x = self.embed(batch["tokens"])
        for block in reversed(self.blocks):
            x = block(x, 1)
        return self.head(x)


class SkipsBlocks(Net):
    def forward(self, batch):
        return self.head(self.embed(batch["tokens"]))


class BeginsWithTheBatch(Net):
    def forward(self, batch):
        other = self.embed(batch["tokens"])
        return self.blocks[2](torch.ones(3, 5, 4), 1) + other


class Counted(nn.Module):
    """As a metric of torchmetrics counts."""

    _update_count: int

    def __init__(self):
        super().__init__()
        self._update_count = 0

    def forward(self, x):
        self._update_count += 1


class CountsFirst(Net):
    def __init__(self):
        super().__init__()
        self.seen = Counted()

    def forward(self, batch):
        self.seen(batch["tokens"])
        return super().forward(batch)


@pytest.mark.parametrize(
    ("kind", "points", "says"),
    [
        (CountsFirst, ["blocks.2"], r"CountsFirst updates the metric 'seen' before its last stage begins"),
        (Skips, ["blocks.2"], r"Skips uses in 'head' what another stage .* Pass it to 'blocks.2' as an argument"),
        (BorrowsWeights, ["blocks.2"], r"BorrowsWeights asked 'embed' for 'weight'.* it is in stage 0"),
        (AddsUpParameters, ["blocks.2"], r"asked 'embed' for 'parameters\(\)'"),
        (LooksAtValues, ["blocks.2"], r"LooksAtValues uses in code outside of its modules what another stage"),
        (DrawsNumbers, ["blocks.2"], r"DrawsNumbers draws random numbers outside of the modules of its stages"),
        (RunsTwice, ["blocks.2"], r"RunsTwice called 'blocks.2' twice"),
        (OutOfOrder, ["blocks.1", "blocks.2"], r"not the order in which .* calls these modules: 'blocks.2' came too"),
        (SkipsBlocks, ["blocks.2"], r"names 'blocks.2', which was not called in a step of SkipsBlocks"),
        (BeginsWithTheBatch, ["blocks.2"], r"names 'blocks.2', which gets nothing that the stages before it"),
    ],
)
def test_code_that_cannot_be_cut_is_told_why(kind, points, says):
    module = kind()
    with pytest.raises(ConfigurationError, match=says):
        by_stages(staged(module, *points), lambda: module(make_batch()))


def test_a_way_that_changes_is_refused():
    module = Net()
    parts = staged(module, "blocks.2")
    with parts.cut_open():
        crossings = parts.rehearse(lambda: module(make_batch()))
        with pytest.raises(ConfigurationError, match=r"'blocks.2' of Net.* got a tensor of \[3, 4, 4\].*\[3, 5, 4\]"):
            parts.run(0, (), crossings, lambda: module(make_batch(4)), {})
        with pytest.raises(ConfigurationError, match=r"did not come to the module 'blocks.2' this time"):
            parts.run(0, (), crossings, lambda: None, {})


def test_the_module_is_not_called_outside_of_a_step():
    module = Net()
    module.register_forward_pre_hook(staged(module, "blocks.2").refuse_outside)
    with pytest.raises(ConfigurationError, match=r"Net was called outside of a step of its pipeline"):
        module(make_batch())


def test_what_is_frozen_later_is_seen():
    module = Net(passes_memory=False)
    parts = staged(module, "blocks.2")
    for frozen in (True, False):
        for part in (module.embed, module.blocks[0], module.blocks[1]):
            part.requires_grad_(not frozen)
        module.places.requires_grad_(not frozen)
        with parts.cut_open():
            crossing = parts.rehearse(lambda: module(make_batch()))[1]
        assert crossing.shapes[0].requires_grad != frozen
