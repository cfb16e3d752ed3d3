"""The forecast of a pipeline: what each process has, keeps, sends, and how long it waits; held against real stages."""

import os
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.fabric import Fabric
from fulmen.fabric.forecast import make_forecast
from fulmen.fabric.forecast.stages import forecast_stages
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy
from fulmen.fabric.strategies.pipeline.cuts import Pipeline
from fulmen.fabric.strategies.pipeline.steps import StageRunner
from fulmen.fabric.strategies.sharded_tensors import local_part


def build():
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)), nn.Linear(8, 16))


def forecast(pipeline, devices, **kwargs):
    strategy = ModelParallelStrategy(pipeline=pipeline, **kwargs)
    return make_forecast(build(), strategy=strategy, devices=devices, batch=torch.zeros(16, 8), accumulate=2)


@pytest.mark.parametrize("data", [1, 4])
def test_the_first_process_has_its_stages_and_sends_what_goes_over_the_cut(data):
    found = forecast(Pipeline(["1"], 4), 2 * data, data_parallel_size=data)
    assert found.mesh["pipeline_parallel"] == 2
    number = 4 // data
    assert found.memory_bytes["parameters"] == found.memory_bytes["gradients"] == (8 * 8 + 8) * number
    # AdamW has two numbers for each, and counts the steps of two parameters.
    assert found.memory_bytes["optimizer state"] == 2 * (8 * 8 + 8) * number + 2 * 4
    parameters = sum(parameter.numel() for parameter in build().parameters())
    assert found.checkpoint_bytes == 3 * 4 * parameters + 10 * 4
    # Two batches of four micro-batches, each of four samples of eight numbers; as many come back.
    moved = 2 * 16 * 8 * 4
    rows = {one.operation: one for one in found.traffic if one.axis == "pipeline_parallel"}
    assert {(name, one.num_calls, one.message_bytes, one.sent_bytes) for name, one in rows.items()} == {
        ("send activations", 8, moved, moved),
        ("receive gradients", 8, moved, 0),
    }
    # Of the first stage, two micro-batches are under way, and their outputs are kept; gradients come for four.
    assert found.memory_bytes["activations"] == 2 * 4 * 8 * 4
    assert found.memory_bytes["received"] == 4 * 4 * 8 * 4
    assert any("waits for 20% of a step" in one for one in found.notes)
    assert any("activations along the pipeline: 256 B, " in one for one in found.notes)
    assert str(found)


def test_several_stages_on_a_process_send_both_ways():
    found = forecast(Pipeline(["1", "2", "3"], 4, "Interleaved1F1B"), 2)
    calls = {one.operation: one.num_calls for one in found.traffic}
    assert calls == {
        "send activations": 16,
        "send gradients": 8,
        "receive activations": 8,
        "receive gradients": 16,
    }
    assert any("waits for 11% of a step" in one for one in found.notes)


def test_neighbours_on_one_process_send_nothing_to_each_other():
    found = forecast(Pipeline(["1", "2", "3"], 4, "DualPipeV"), 2)
    calls = {one.operation: one.num_calls for one in found.traffic}
    assert calls == dict.fromkeys(("send activations", "send gradients", "receive activations", "receive gradients"), 8)


class Scaled(nn.Module):
    """Code between its modules, with a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.body = build()
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x):
        mask = (x > 0).sum(1, keepdim=True) * self.scale
        for part in self.body:
            x = part(x) * mask
        return x


@pytest.mark.parametrize(("precision", "size"), [("32-true", 4), ("bf16-true", 2)])
def test_what_is_sent_has_the_type_of_the_precision(precision, size):
    strategy = ModelParallelStrategy(pipeline=Pipeline(["body.1"], 4))
    with torch.device("meta"):
        module = Scaled()
    batch = torch.zeros(16, 8)
    found = make_forecast(module, strategy=strategy, devices=2, batch=batch, precision=precision)
    assert {one.message_bytes for one in found.traffic} == {16 * 8 * size}


def test_a_module_that_cannot_be_cut_is_refused():
    with pytest.raises(ConfigurationError, match="names '7', which Sequential does not have"):
        forecast(Pipeline(["7"], 4), 2)


def test_without_a_batch_nothing_is_known_of_activations():
    strategy = ModelParallelStrategy(pipeline=Pipeline(["1"], 4))
    found = make_forecast(build(), strategy=strategy, devices=2)
    assert "activations" not in found.memory_bytes
    assert "not known, as no batch was tried" in str(found)


# --- beside what real stages keep and send

SIZE = 4
PLAN = {"*.up": "column", "*.down": "row"}
SEVEN = [str(place) for place in range(1, 8)]


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.act, self.down = (
            nn.LayerNorm(32),
            nn.Linear(32, width),
            nn.Tanh(),
            nn.Linear(width, 32),
        )

    def forward(self, x):
        return x + self.down(self.act(self.up(self.norm(x))))


def blocks():
    return nn.Sequential(*(Block(512 * (1 + place % 3)) for place in range(8)))  # stages keep more and less


def mean_square(model, batch):
    return model(batch).pow(2).mean()


CASES = {
    "1F1B": {"pipeline": Pipeline(["2", "4", "6"], 8)},
    "GPipe": {"pipeline": Pipeline(["2", "4", "6"], 8, "GPipe")},
    "1F1B with tensors": {"pipeline": Pipeline(["4"], 8), "plan": PLAN, "tensor_parallel_size": 2},
    "LoopedBFS with data": {"pipeline": Pipeline(["2", "4", "6"], 4, "LoopedBFS"), "data_parallel_size": 2},
    "Interleaved1F1B": {"pipeline": Pipeline(SEVEN, 8, "Interleaved1F1B")},
    "InterleavedZeroBubble": {"pipeline": Pipeline(SEVEN, 8, "InterleavedZeroBubble")},
    "ZBVZeroBubble": {"pipeline": Pipeline(SEVEN, 8, "ZBVZeroBubble")},
    "DualPipeV": {"pipeline": Pipeline(SEVEN, 8, "DualPipeV")},
}


def strategy_of(case):
    sizes = {"tensor_parallel_size": 1, "data_parallel_size": 1} | CASES[case]
    return ModelParallelStrategy(**sizes)


def batch_of(case):
    return torch.rand(16, 8, 32)


class Kept:
    """What modules of stages have computed and is alive, and what a process sends and receives."""

    def __init__(self, module):
        self._storages, self.most, self.moved = {}, 0, {}
        for part in module.modules():
            part.register_forward_hook(self.note)

    def note(self, module, args, output):
        for tensor in output if isinstance(output, tuple) else (output,):
            if not isinstance(tensor, FakeTensor):
                storage = local_part(tensor.detach()).untyped_storage()
                self._storages[storage._cdata] = weakref.ref(storage)

    def look(self, runner, args, output):
        self.note(runner, args, output)
        others = {tensor.untyped_storage()._cdata for tensor in args}  # what was received has room of its own
        self._storages = {key: one for key, one in self._storages.items() if key not in others}
        alive = [one() for one in self._storages.values()]
        self.most = max(self.most, sum(one.nbytes() for one in alive if one is not None))

    def count(self, name, operations):
        calls, size = self.moved.get(name, (0, 0))
        size += sum(one.tensor.numel() * one.tensor.element_size() for one in operations)
        self.moved[name] = calls + len(operations), size


OPERATIONS = {
    "get_fwd_send_ops": "send activations",
    "get_bwd_send_ops": "send gradients",
    "get_fwd_recv_ops": "receive activations",
    "get_bwd_recv_ops": "receive gradients",
}


def watching(kept, patch):
    from torch.distributed.pipelining import PipelineStage

    forward = StageRunner.forward

    def watched(runner, *arrived, place):
        output = forward(runner, *arrived, place=place)
        kept.look(runner, arrived, output)
        return output

    def counted(name, ask):
        def asked(stage, place):
            operations = ask(stage, place)
            kept.count(name, operations)
            return operations

        return asked

    patch.setattr(StageRunner, "forward", watched)
    for method, name in OPERATIONS.items():
        patch.setattr(PipelineStage, method, counted(name, getattr(PipelineStage, method)))


def measure(folder):
    torch.set_num_threads(1)
    for number, case in enumerate(CASES):
        fabric = Fabric(accelerator="cpu", devices=SIZE, strategy=strategy_of(case))
        fabric.launch()
        module = fabric.setup_module(blocks())
        kept = Kept(module.module)
        with pytest.MonkeyPatch.context() as patch:
            watching(kept, patch)
            fabric.strategy.forward_backward(mean_square, module, batch_of(case))
        with open(os.path.join(folder, f"{number}.{fabric.global_rank}"), "wb") as file:
            pickle.dump((kept.most, kept.moved), file)
        fabric.barrier()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    import torch.distributed.fsdp
    import torch.distributed.pipelining
    import torch.distributed.tensor.parallel  # noqa: F401  # once, before the fork

    folder = tmp_path_factory.mktemp("stages")
    SpawnLauncher(LightningEnvironment(), SIZE, 1, "fork").launch(measure, str(folder))
    found = {}
    for number, case in enumerate(CASES):
        paths = [folder / f"{number}.{rank}" for rank in range(SIZE)]
        found[case] = [pickle.loads(path.read_bytes()) for path in paths]
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_stages_keep_and_send_what_was_forecast(measured, case):
    strategy = strategy_of(case)
    sizes, pipeline = strategy.mesh_sizes(1, SIZE), strategy.pipeline
    found = forecast_stages(
        blocks(), pipeline, strategy.plan, sizes, strategy.precision, mean_square, batch_of(case), 1
    )
    along = sizes.of("pipeline_parallel")
    of_places = [measured[case][place * SIZE // along] for place in range(along)]
    for (kept, _), expected in zip(of_places, found.activations, strict=True):
        assert kept == pytest.approx(expected, rel=0.05)
    rows = [one for one in found.traffic if one.axis == "pipeline_parallel"]
    moved = {name: counted for name, counted in of_places[0][1].items() if counted[0]}
    assert moved == {one.operation: (one.num_calls, one.message_bytes) for one in rows}
    whole = make_forecast(blocks(), strategy=strategy, devices=SIZE, batch=batch_of(case), step=mean_square)
    assert whole.memory_bytes["activations"] == found.activations[0]
    assert (whole.memory_bytes["received"] > 0) == (along > 1)
