"""Modules in stages, in real processes: every schedule trains as one process does, and checkpoints fit every mesh."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sharded_lab import Cases, make_fabric, whole
from torch import nn

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.fabric import Fabric
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy
from fulmen.fabric.strategies.pipeline.cuts import Pipeline
from fulmen.fabric.strategies.pipeline.steps import cut_batch, joined

case = Cases()
PLAN = {"blocks.*.up": "column", "blocks.*.down": "row", "blocks.*": "shard"}
THREE = ["blocks.1", "blocks.2", "head"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x, mask):
        return x + self.down(torch.tanh(self.up(self.norm(x)))) * mask


class Net(nn.Module):
    """A parameter and a buffer of its own, and code between its modules."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.places = nn.Parameter(torch.randn(6, 8))
        self.register_buffer("scale", torch.tensor(0.5))
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(8, 10)

    def forward(self, tokens):
        mask = (tokens > 2).unsqueeze(-1) * self.scale
        x = self.embed(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)

    def reset_parameters(self):
        nn.init.normal_(self.places)


def loss(model, tokens):
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


def both(model, tokens):
    out = model(tokens)
    return {"out": out.detach(), "loss": nn.functional.cross_entropy(out.flatten(0, 1), tokens.flatten()).detach()}


def build():
    torch.manual_seed(3)
    return Net()


def batches(count=4, samples=8):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(10, (samples, 6), generator=generator) for _ in range(count)]


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


def staged(n, pipeline=None, plan=None, **kwargs):
    names = ("tensor_parallel_size", "data_parallel_size", "replicate_size", "save_distributed_checkpoint")
    sizes = {name: kwargs.pop(name) for name in names if name in kwargs}
    return make_fabric(ModelParallelStrategy(plan=plan, pipeline=pipeline, **sizes), n, **kwargs)


def set_up(fabric):
    model = fabric.setup_module(build())
    return model, fabric.setup_optimizers(adam(model.parameters()))


def share(fabric, batch):
    sharing = fabric.strategy.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
    return batch.chunk(sharing["num_replicas"])[sharing["rank"]]


def train(fabric, model, optimizer, found, *, accumulate=1, max_norm=None, clip_val=None):
    losses = []
    for index, batch in enumerate(found):
        is_last = (index + 1) % accumulate == 0
        with fabric.no_backward_sync(model, enabled=not is_last):
            mean = fabric.strategy.forward_backward(lambda *step: loss(*step) / accumulate, model, share(fabric, batch))
        losses.append(fabric.all_reduce(mean) * accumulate)
        if is_last:
            if max_norm is not None:
                fabric.clip_gradients(model, optimizer, max_norm=max_norm)
            if clip_val is not None:
                fabric.clip_gradients(model, optimizer, clip_val=clip_val)
            optimizer.step()
            optimizer.zero_grad()
    return losses


def plainly(found, *, accumulate=1, max_norm=None, clip_val=None):
    model = build()
    optimizer = adam(model.parameters())
    losses = []
    for index, batch in enumerate(found):
        losses.append(loss(model, batch).detach())
        (loss(model, batch) / accumulate).backward()
        if (index + 1) % accumulate == 0:
            if max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            if clip_val is not None:
                nn.utils.clip_grad_value_(model.parameters(), clip_val)
            optimizer.step()
            optimizer.zero_grad()
    return model, optimizer, losses


def assert_same(fabric, model, plain):
    strategy, state = fabric.strategy, model.module.state_dict()
    assert list(state) == list(plain.state_dict())
    held = [name for name in state if not isinstance(strategy, ModelParallelStrategy) or strategy.holds(model, name)]
    for name in held:
        difference = (whole(state[name]) - plain.state_dict()[name]).abs().max().item()
        assert difference <= 1e-10, f"{name} differs by {difference}"
    everywhere = [name for rank in range(fabric.world_size) for name in fabric.broadcast(held, src=rank)]
    assert set(everywhere) == set(state)


@case(2)
def every_schedule_trains_as_one_process(n, folder):
    found = batches(10)
    plain, _, losses = plainly(found, max_norm=0.1)
    for pipeline in (
        Pipeline(["blocks.2"], 4),
        Pipeline(["blocks.1"], 3, "GPipe"),  # eight samples are cut into two
        Pipeline(["head"], 8),
        Pipeline(THREE, 2, "LoopedBFS"),
        Pipeline(THREE, 4, "Interleaved1F1B"),
        Pipeline(THREE, 4, "InterleavedZeroBubble"),
        Pipeline(THREE, 2, "ZBVZeroBubble"),
        Pipeline(THREE, 8, "DualPipeV"),
    ):
        fabric = staged(n, pipeline)
        assert fabric.strategy.device_mesh.mesh_dim_names == ("pipeline_parallel", "data_parallel", "tensor_parallel")
        assert fabric.strategy.distributed_sampler_kwargs == {"num_replicas": 1, "rank": 0}
        model, optimizer = set_up(fabric)
        seen = train(fabric, model, optimizer, found, max_norm=0.1)
        torch.testing.assert_close(seen, losses)  # on both, and not only where the last stage is
        assert_same(fabric, model, plain)


@case(4)
def with_other_axes(n, folder):
    options = {"accumulate": 2, "max_norm": 0.1}
    plain, _, losses = plainly(batches(), **options)
    for pipeline, plan, sizes in (
        (Pipeline(THREE, 4), None, {}),
        (Pipeline(["blocks.2"], 2), PLAN, {"tensor_parallel_size": 2, "data_parallel_size": 1}),
        (Pipeline(["blocks.2"], 2), PLAN, {"tensor_parallel_size": 1, "data_parallel_size": 2}),
        (Pipeline(["blocks.2"], 2), PLAN, {"tensor_parallel_size": 1, "data_parallel_size": 1, "replicate_size": 2}),
        (Pipeline(THREE, 2, "Interleaved1F1B"), None, {"data_parallel_size": 2}),
        (Pipeline(THREE, 2, "LoopedBFS"), {"**": "shard"}, {"data_parallel_size": 2}),
        (Pipeline(THREE, 2, "InterleavedZeroBubble"), PLAN, {"tensor_parallel_size": 2, "data_parallel_size": 1}),
        # Gradients of weights come apart; units that are split again after forward would miss them.
        (Pipeline(THREE, 2, "InterleavedZeroBubble"), {"**": "shard"}, {"data_parallel_size": 2}),
        (Pipeline(THREE, 4, "ZBVZeroBubble"), {"blocks.*": "shard"}, {"replicate_size": 2, "data_parallel_size": 1}),
        (Pipeline(THREE, 4, "DualPipeV"), {"**": "shard"}, {"data_parallel_size": 2}),
    ):
        fabric = staged(n, pipeline, plan, **sizes)
        model, optimizer = set_up(fabric)
        torch.testing.assert_close(train(fabric, model, optimizer, batches(), **options), losses)
        assert_same(fabric, model, plain)
    plain, _, _ = plainly(batches(), clip_val=0.001)
    fabric = staged(n, Pipeline(["blocks.2"], 2), data_parallel_size=2)
    model, optimizer = set_up(fabric)
    train(fabric, model, optimizer, batches(), clip_val=0.001)
    assert_same(fabric, model, plain)
    # Of another size inside of a window: gradients that have been exchanged stay.
    mixed = [*batches(1), *batches(1, samples=4)]
    plain, _, _ = plainly(mixed, accumulate=2)
    model, optimizer = set_up(fabric)
    for batch in mixed:
        fabric.strategy.forward_backward(lambda *step: loss(*step) / 2, model, share(fabric, batch))
    optimizer.step()
    assert_same(fabric, model, plain)


@case(2)
def batches_of_other_sizes_and_evaluation(n, folder):
    found = [*batches(2), *batches(1, samples=3), *batches(1, samples=7)]
    plain, _, _ = plainly(found)
    for pipeline in (
        Pipeline(["blocks.2"], 4),
        Pipeline(THREE, 4, "Interleaved1F1B"),
        Pipeline(THREE, 4, "DualPipeV"),
    ):
        fabric = staged(n, pipeline)
        model, optimizer = set_up(fabric)
        train(fabric, model, optimizer, found)
        assert_same(fabric, model, plain)
        for samples in (8, 3):
            (batch,) = batches(1, samples)
            seen = fabric.strategy.evaluate(both, model, batch)
            assert not seen["out"].requires_grad
            torch.testing.assert_close(seen, both(plain, batch))
        with pytest.raises(ConfigurationError, match="Net was called outside of a step"):
            model(batch)
        with pytest.raises(ConfigurationError, match=r"tensors of \[3, 8\] samples"):
            fabric.strategy.evaluate(loss, model, [batch, found[0]])


@case(2)
def modules_without_memory_and_optimizers_made_before(n, folder):
    fabric = staged(n, Pipeline(["blocks.2"], 4))
    with fabric.init_module(empty_init=True):
        module = Net()
    with pytest.raises(ConfigurationError, match="Net has buffers on the meta device and is in every stage"):
        fabric.setup_module(copy.deepcopy(module))
    module.scale = torch.tensor(0.5)
    model = fabric.setup_module(module)
    plain = build()
    fabric.strategy.load_module_state_dict(module, plain.state_dict())
    assert_same(fabric, model, plain)
    assert all(torch.isfinite(value).all() for value in module.state_dict().values() if not value.is_meta)
    plain, _, _ = plainly(batches())
    module = build()
    model, optimizer = fabric.setup(module, adam(module.parameters()))
    train(fabric, model, optimizer, batches())
    assert_same(fabric, model, plain)


@case(2)
def parameters_that_are_frozen_for_a_while(n, folder):
    for pipeline in (Pipeline(["blocks.2"], 4), Pipeline(THREE, 4, "InterleavedZeroBubble")):
        train_frozen(staged(n, pipeline))


def train_frozen(fabric):
    model, optimizer = set_up(fabric)
    plain, plain_optimizer = build(), None
    plain_optimizer = adam(plain.parameters())
    for frozen, found in ((True, batches(2)), (False, batches(2))):
        for one in (model.module, plain):
            for part in (one.embed, one.blocks[0], one.blocks[1]):
                part.requires_grad_(not frozen)
            one.places.requires_grad_(not frozen)
        train(fabric, model, optimizer, found)
        for batch in found:
            loss(plain, batch).backward()
            plain_optimizer.step()
            plain_optimizer.zero_grad()
    assert_same(fabric, model, plain)


class Twice(Block):
    def forward(self, x, mask):
        x = super().forward(x, mask)
        return super().forward(x, mask)


class Beside(Block):
    def forward(self, x, mask):
        return x + self.down(torch.tanh(self.up(self.norm(x))) + torch.sigmoid(self.up(self.norm(x + 1)))) * mask


class Shared(Block):
    """Two layers with one bias: each is in a group of weights with it."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 16)
        self.gate.bias = self.up.bias

    def forward(self, x, mask):
        return x + self.down(torch.tanh(self.up(self.norm(x))) * torch.sigmoid(self.gate(x))) * mask


@case(2)
def layers_that_are_called_twice(n, folder):
    (batch,) = batches(1)
    for kind in (Beside, Twice, Shared):
        module = build()
        module.blocks[2] = kind()
        plain = copy.deepcopy(module)
        fabric = staged(n, Pipeline(THREE, 2, "ZBVZeroBubble"))
        model = fabric.setup_module(module)
        loss(plain, batch).backward()
        fabric.strategy.forward_backward(loss, model, batch)
        expected = dict(plain.named_parameters())
        for name, parameter in model.module.named_parameters():
            if not parameter.is_meta:
                torch.testing.assert_close(parameter.grad, expected[name].grad)


@case(2)
def half_precision_is_near(n, folder):
    for precision in ("bf16-mixed", "bf16-true"):
        fabric = staged(n, Pipeline(["blocks.2"], 4), precision=precision)
        model, optimizer = set_up(fabric)
        (batch,) = batches(1)
        expected = loss(build(), batch)
        assert abs(train(fabric, model, optimizer, [batch])[0] - expected) < 0.05
        type_ = torch.bfloat16 if precision == "bf16-true" else torch.float64
        assert all(one.dtype == type_ for one in model.parameters())


@case(2)
def what_no_loss_is_is_refused_with_the_error_of_the_step(n, folder):
    # Where it fails in one stage alone, processes end; here all see it before anything is sent.
    fabric = staged(n, Pipeline(["blocks.2"], 4))
    model, _ = set_up(fabric)
    with pytest.raises(ConfigurationError, match="cannot step with LBFGS"):
        fabric.setup_optimizers(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(KeyError, match="nothing"):
        fabric.strategy.forward_backward(lambda model, batch: {}["nothing"], model, batches(1)[0])
    with pytest.raises(ConfigurationError, match=r"'blocks.2', which was not called"):
        fabric.strategy.forward_backward(lambda model, batch: batch.sum(), model, batches(1)[0])
    train(fabric, model, fabric.setup_optimizers(adam(model.parameters())), batches(1))


def meshes_of(n):
    if n == 1:
        return [(None, None, {})]
    if n == 2:
        return [(Pipeline(["blocks.2"], 4), None, {}), (Pipeline(THREE, 4, "ZBVZeroBubble"), None, {})]
    return [
        (Pipeline(THREE, 4), None, {}),
        (Pipeline(["blocks.1"], 2), PLAN, {"tensor_parallel_size": 1, "data_parallel_size": 2}),
        (None, PLAN, {"tensor_parallel_size": 2, "data_parallel_size": 2}),
    ]


@case(2, 4)
def checkpoints_are_written(n, folder):
    for place, (pipeline, plan, sizes) in enumerate(meshes_of(n)):
        for in_shards in (True, False):
            fabric = staged(n, pipeline, plan, **sizes, save_distributed_checkpoint=in_shards)
            model, optimizer = set_up(fabric)
            train(fabric, model, optimizer, batches()[:2])
            path = folder / f"{n}_{place}_{'folder' if in_shards else 'file'}"
            fabric.save(path, {"model": model, "optimizer": optimizer, "step": 2})


@case(4, 2)
def checkpoints_are_loaded_on_every_mesh(n, folder):
    plain, _, _ = plainly(batches())
    paths = sorted([*folder.glob("2_*"), *folder.glob("4_*")])
    assert len(paths) == (10 if n == 2 else 6)  # those of two processes are written later
    meshes = meshes_of(n)
    for place, path in enumerate(paths):  # each is loaded once, and each mesh loads folders and files
        pipeline, plan, sizes = meshes[(place // 2 + place) % len(meshes)]
        fabric = staged(n, pipeline, plan, **sizes)
        model, optimizer = set_up(fabric)
        train(fabric, model, optimizer, batches(1, samples=4))
        state = {"model": model, "optimizer": optimizer, "step": 0}
        fabric.load(path, state)
        assert state["step"] == 2
        train(fabric, model, optimizer, batches()[2:])
        assert_same(fabric, model, plain)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    import torch.distributed.pipelining  # noqa: F401 (once, and not in each process)

    return case.run(tmp_path_factory, 4, 2)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "size"), case.places)
def test_in_real_processes(found, name, size):
    assert not found[name, size], found[name, size]


# ---- without processes


@given(st.integers(1, 12), st.integers(1, 6))
def test_parts_of_a_batch_are_all_of_it_in_its_order(samples, parts):
    batch = {"x": torch.arange(samples * 2.0).view(samples, 2), "names": list(map(str, range(samples))), "rate": 0.5}
    micro_batches = cut_batch(batch, Pipeline(["b"], parts).parts_of)
    assert len({len(one["x"]) for one in micro_batches}) == 1
    assert torch.equal(torch.cat([one["x"] for one in micro_batches]), batch["x"])
    assert [name for one in micro_batches for name in one["names"]] == batch["names"]
    assert all(one["rate"] == 0.5 for one in micro_batches)


def test_results_of_parts_are_joined():
    found = joined([(torch.ones(2, 3), 1.0, None, ["a"]), (torch.zeros(1, 3), 2.0, None, ["b"])])
    assert found[0].shape == (3, 3)
    assert found[1:] == (1.5, None, ["a", "b"])
    assert joined([torch.tensor(1), torch.tensor(2)]) == 1.5


def test_a_batch_without_samples_is_refused():
    with pytest.raises(ConfigurationError, match="has no tensor"):
        cut_batch({"x": 3}, lambda size: 1)


def test_one_process_steps_in_the_same_way():
    fabric = Fabric(accelerator="cpu", devices=1, strategy=ModelParallelStrategy(plan={"**": "shard"}))
    strategy = copy.deepcopy(fabric.strategy)
    module = build()
    mean = strategy.forward_backward(loss, module, batches(1)[0])
    assert not mean.requires_grad
    assert module.head.weight.grad is not None
    assert torch.equal(strategy.evaluate(loss, module, batches(1)[0]), mean)
