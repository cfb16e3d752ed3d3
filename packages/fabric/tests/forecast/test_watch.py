import json

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.fsdp
import torch.distributed.tensor.parallel
from torch import nn

from fulmen.fabric import Fabric
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.forecast import fake_world, make_forecast, watch
from fulmen.fabric.forecast.figures import Traffic
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.fabric.strategies.ddp import DDPStrategy
from fulmen.fabric.strategies.fsdp import FSDPStrategy
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy


def test_collectives_of_both_kinds_are_counted_by_their_axis():
    with fake_world.fake_group(8), fake_world.mode():
        row = dist.new_group([0, 1])
        seen = watch.Watch({"row": [0, 1], "all of them": range(8)}, [])
        with seen.times(3):
            dist.all_reduce(torch.zeros(10), group=row)
            dist.all_gather_into_tensor(torch.zeros(80), torch.zeros(10))
            functional.all_reduce(torch.zeros(4), "sum", row)
        with seen:
            functional.reduce_scatter_tensor(torch.zeros(16), "sum", 0, dist.group.WORLD)
    assert sorted(seen.traffic(), key=lambda one: (one.operation, one.axis)) == [
        Traffic("all_gather", "all of them", 8, 3, 3 * 320, 3 * 280),
        Traffic("all_reduce", "row", 2, 6, 3 * 56, 3 * 56),
        Traffic("reduce_scatter", "all of them", 8, 1, 64, 56),
    ]


def test_what_is_alive_is_what_somebody_holds():
    with fake_world.mode():
        given = torch.zeros(100)
        seen = watch.Watch({}, [given])
        with seen:
            kept = given + 1
            view = kept[:10]
            del kept
            assert seen.alive_bytes() == 400  # a view holds all of it
            given.mul_(2)
            assert seen.alive_bytes() == 400  # what was there before is not counted
            del view
            assert seen.alive_bytes() == 0


def test_what_is_gathered_is_counted_apart_at_its_most():
    with fake_world.fake_group(4), fake_world.mode():
        seen = watch.Watch({}, [])
        with seen:
            part, whole = torch.zeros(10), torch.zeros(40)
            dist.all_gather_into_tensor(whole, part)
            assert seen.alive_bytes() == 40
            del whole
        assert seen.most_exchanged == 160


def test_one_speaks_for_all_and_is_itself_again():
    class Strategy:
        def broadcast(self, obj, src=0):
            raise AssertionError

    strategy = Strategy()
    with watch.one_speaks_for_all(strategy):
        assert strategy.broadcast(3) == 3
        assert strategy.reduce_boolean_decision(True, all=False) is True
    assert strategy.__dict__ == {}


# --- beside real processes

SIZE = 4


class Reader(nn.Module):
    """Causal attention, and two layers, in units."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(12, 16), nn.Linear(16, 12, bias=False)
        self.blocks = nn.ModuleList(Attends() for _ in range(2))

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.ModuleList(nn.Linear(16, 16) for _ in range(3)), Out()

    def forward(self, x):
        normed = self.norm(x)
        heads = (part(normed).unflatten(-1, (-1, 4)).transpose(1, 2) for part in self.qkv)
        attended = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        return x + self.out(attended.transpose(1, 2).flatten(2))


class Out(nn.Linear):
    def __init__(self):
        super().__init__(16, 16)


class Tied(Reader):
    def __init__(self):
        super().__init__()
        self.head.weight = self.embed.weight


class Normed(nn.Module):
    """More than a bucket of gradients, and buffers of two types."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(12, 400), nn.BatchNorm1d(8)
        self.first, self.last = nn.Linear(400, 400), nn.Linear(400, 400)

    def forward(self, tokens):
        return self.last(self.first(self.norm(self.embed(tokens))))


TENSORS = {"blocks.*.qkv.*": "column", "blocks.*.out": "row", "blocks.*": "shard"}
STREAM = {
    "embed": "row > sequence",
    "blocks.*.norm": "sequence",
    "blocks.*.qkv.*": "sequence > column",
    "blocks.*.out": "row > sequence",
    "head": "sequence > column > whole",
    "blocks.*": "shard",
}
RING, ULYSSES = {**TENSORS, "": "ring"}, {**TENSORS, "": "ulysses"}


def planned(plan, *sizes, context=1):
    names = ("replicate_size", "data_parallel_size", "tensor_parallel_size")
    return lambda: ModelParallelStrategy(
        plan=plan, context_parallel_size=context, **dict(zip(names, sizes, strict=True))
    )


# Strategy, module, batches for a step, sequences over so many processes.
STEPS = {
    "ddp, in buckets": (DDPStrategy, Normed, 2, 1),
    "ddp, what is used": (lambda: DDPStrategy(find_unused_parameters=True, bucket_cap_mb=1), Normed, 1, 1),
    "full": (lambda: FSDPStrategy(auto_wrap_policy={Attends}), Reader, 2, 1),
    "tied": (FSDPStrategy, Tied, 1, 1),
    "hybrid": (
        lambda: FSDPStrategy(auto_wrap_policy={Attends}, sharding_strategy="HYBRID_SHARD", device_mesh=(2, 2)),
        Reader,
        3,
        1,
    ),
    "tensors": (planned(TENSORS, 1, 2, 2), Reader, 2, 1),
    "sequences": (planned(STREAM, 2, 1, 2), Reader, 3, 1),
    "ring": (planned(RING, 1, 4, 1, context=4), Reader, 2, 4),
    "ring by tensors": (planned(RING, 1, 2, 2, context=2), Reader, 1, 2),
    "ulysses": (planned(ULYSSES, 2, 2, 1, context=2), Reader, 1, 2),
}
CALLED = {
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "allreduce_": "all_reduce",
    "alltoall_base_": "all_to_all",
    "broadcast_": "broadcast",
    "send": "send",
}


def counted(trace):
    """Collectives that a profiler has seen, and the size of their largest tensors."""
    found = {}
    for event in json.loads(trace.read_text())["traceEvents"]:
        operation = CALLED.get(event.get("name", "").removeprefix("c10d::"))
        if operation is None or not event["name"].startswith("c10d::"):
            continue
        shapes = [shape for given in event["args"]["Input Dims"] for shape in ([given] if _is_shape(given) else given)]
        calls = found.setdefault(operation, [0, 0])
        calls[0] += 1
        calls[1] += 4 * max(torch.Size(shape).numel() for shape in shapes)
    return found


def _is_shape(given):
    return all(isinstance(size, int) for size in given)


def step(fabric, module, optimizer, accumulate):
    for place in range(accumulate):
        tokens = torch.zeros(2, 8, dtype=torch.long)
        if isinstance(fabric.strategy, ModelParallelStrategy):
            tokens = fabric.strategy.part_of_sequence(tokens)
        with fabric.no_backward_sync(module, enabled=place < accumulate - 1):
            fabric.backward(module(tokens).sum())
    optimizer.step()
    optimizer.zero_grad()


def count(folder):
    """In each process, for each case: the collectives of a step, of which the third is like all that follow."""
    torch.set_num_threads(1)
    for number, (make, net, accumulate, _) in enumerate(STEPS.values()):
        fabric = Fabric(accelerator="cpu", devices=SIZE, strategy=make())
        fabric.launch()
        module = fabric.setup_module(net())
        optimizer = fabric.setup_optimizers(torch.optim.Adam(module.parameters()))
        for _ in range(2):
            step(fabric, module, optimizer, accumulate)
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=cpu, record_shapes=True) as profiler:
            step(fabric, module, optimizer, accumulate)
        if dist.get_rank() == 0:
            profiler.export_chrome_trace(str(folder / f"{number}.json"))


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces")
    SpawnLauncher(LightningEnvironment(), SIZE, start_method="fork").launch(count, folder)
    return {name: counted(folder / f"{number}.json") for number, name in enumerate(STEPS)}


def num_calls(counts):
    return {operation: calls for operation, (calls, _) in counts.items()}


@pytest.mark.parametrize("name", STEPS)
def test_collectives_are_foretold(traces, name):
    make, net, accumulate, context = STEPS[name]
    forecast = make_forecast(
        net(),
        strategy=make(),
        devices=SIZE,
        batch=torch.zeros(2, 8 // context, dtype=torch.long),
        optimizers=lambda module: torch.optim.Adam(module.parameters()),
        accumulate=accumulate,
    )
    found = {}
    for one in forecast.traffic:
        calls = found.setdefault(one.operation, [0, 0])
        calls[0] += one.num_calls
        calls[1] += one.message_bytes
    assert num_calls(found) == num_calls(traces[name])
    for operation, (_, size) in found.items():
        if operation != "broadcast":  # of other types
            assert size == traces[name][operation][1], operation
    assert forecast.context == context
    assert {one.axis for one in forecast.traffic if one.operation == "send"} <= {"context_parallel"}


def test_a_forecast_knows_nothing_of_the_one_before():
    def forecast(*sizes):
        return make_forecast(
            Reader(), strategy=planned(STREAM, *sizes)(), devices=4, batch=torch.zeros(2, 8, dtype=torch.long)
        )

    first = forecast(2, 1, 2)
    forecast(1, 2, 2)
    assert forecast(2, 1, 2) == first
