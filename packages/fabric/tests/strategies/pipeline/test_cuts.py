"""Where a module is cut into stages, for all modules; and which pipelines are refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.fabric import Fabric
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy
from fulmen.fabric.strategies.pipeline.cuts import SCHEDULES, Pipeline, cut_module


class Deep(nn.Module):
    """Modules inside of lists inside of modules, with parameters at every level."""

    def __init__(self, depths):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.parts = nn.ModuleList(Deep([depth - 1]) if depth else nn.Linear(1, 1) for depth in depths)
        self.head = nn.Linear(1, 1)

    def forward(self, x):
        return x


depths = st.lists(st.integers(0, 3), min_size=1, max_size=4)


@given(depths, st.data())
def test_each_parameter_is_in_one_stage_and_stages_follow_each_other(depths, data):
    module = Deep(depths)
    names = [name for name, part in module.named_modules() if name and not isinstance(part, nn.ModuleList)]
    points = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    pipeline = Pipeline(points, 4)
    try:
        cut = cut_module(module, pipeline)
    except ConfigurationError:
        inside = any(one.startswith(f"{other}.") for one in points for other in points)
        out_of_order = points != sorted(points, key=names.index)
        assert inside or out_of_order or not _anything_before(module, points[0])
        return
    stages = [cut.stage_of_parameter(name) for name, _ in module.named_parameters()]
    by_module = [cut.stage_of[name] for name, _ in module.named_modules()]
    assert by_module == sorted(by_module)
    assert set(by_module) == set(range(pipeline.num_stages))
    assert all(0 <= stage < pipeline.num_stages for stage in stages)
    # Every parameter is in a unit, of whose stage it is, or directly in a container.
    for name, _ in module.named_parameters():
        units = [unit for unit in cut.units if name.startswith(f"{unit}.")]
        assert len(units) + (name.rpartition(".")[0] in cut.containers) == 1
        assert all(cut.stage_of[unit] == cut.stage_of_parameter(name) for unit in units)
    assert set(points) <= set(cut.units)


def _anything_before(module, point):
    """Is a module that can be called defined before, beside or above it?"""
    for name, part in module.named_modules():
        if name == point:
            return False
        if name and not point.startswith(f"{name}.") and not isinstance(part, nn.ModuleList):
            return True
    return False


@given(st.integers(1, 64), st.integers(1, 64))
def test_a_batch_is_cut_into_equal_parts_as_many_as_asked_for_or_fewer(micro_batches, size):
    parts = Pipeline(["b"], micro_batches).parts_of(size)
    assert size % parts == 0
    assert parts <= micro_batches
    assert not any(size % more == 0 for more in range(parts + 1, micro_batches + 1))


@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 32), st.sampled_from(SCHEDULES))
def test_stages_are_shared_out_once_and_waiting_shrinks_with_more_parts(size, each, micro_batches, schedule):
    points = [f"b{place}" for place in range(size * each - 1)]
    is_v_shaped = schedule in ("ZBVZeroBubble", "DualPipeV")
    if is_v_shaped and each != 2:
        with pytest.raises(ConfigurationError, match=r"has two|does not fit the \d+ stages"):
            Pipeline(points, 4 * size * each, schedule).size(size)
        return
    if schedule == "DualPipeV":
        micro_batches += 2 * size
    pipeline = Pipeline(points, micro_batches, schedule)
    if each > 1 and not pipeline.loops:
        with pytest.raises(ConfigurationError, match=f"{schedule}.*each process has one stage"):
            pipeline.size(size)
        return
    assert pipeline.size(size) == size
    stages = [stage for place in range(size) for stage in pipeline.stages_on(place, size)]
    assert sorted(stages) == list(range(pipeline.num_stages))
    assert all(
        place == pipeline.place_of(stage, size) for place in range(size) for stage in pipeline.stages_on(place, size)
    )
    assert pipeline.place_of(-1, size) == (0 if is_v_shaped else size - 1)
    turns = sum(pipeline.place_of(one, size) == pipeline.place_of(one + 1, size) for one in range(2 * size - 1))
    assert turns == is_v_shaped or each == 1  # of what follows, only the turn of a V is on one process
    assert 0 < pipeline.bubble(size, micro_batches + 1) < pipeline.bubble(size) < 1
    assert pipeline.schedule_for(4 * size, size) == schedule


def test_a_ragged_batch_takes_a_schedule_that_can_do_with_it():
    assert Pipeline(["b", "c"], 4).schedule_for(2, 3) == "GPipe"
    assert Pipeline(["b", "c", "d"], 8, "Interleaved1F1B").schedule_for(5, 2) == "LoopedBFS"
    assert Pipeline(["b", "c", "d"], 8, "DualPipeV").schedule_for(3, 2) == "ZBVZeroBubble"


@pytest.mark.parametrize("schedule", ["Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble"])
def test_two_stages_are_on_each_process_unless_said_otherwise(schedule):
    pipeline = Pipeline(["b", "c", "d"], 4, schedule)
    assert (pipeline.size("auto"), pipeline.size(4)) == (2, 4)
    assert Pipeline(["b"], 4, schedule).size("auto") == 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
        self.attention = nn.MultiheadAttention(4, 2)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (["block.1"], r"names 'block.1', which Net does not have.*nearest names are 'blocks.1'"),
        (["blocks"], r"names 'blocks', a ModuleList without a forward.*Name 'blocks.0'"),
        (["blocks.2", "blocks.1"], r"not in the order in which Net defines.*Pass \['blocks.1', 'blocks.2'\]"),
        (["blocks.1", "blocks.1.1"], r"inside of 'blocks.1', a Sequential that is a split point itself"),
        (["attention.out_proj"], r"inside of 'attention', a MultiheadAttention that computes with its parts in one"),
        (["embed"], r"begins with the first module of Net"),
        (["blocks.1"], r"puts 'embed.weight' and 'head.weight' of Net into different stages.*one parameter"),
    ],
)
def test_what_is_no_place_to_cut_is_refused(points, says):
    with pytest.raises(ConfigurationError, match=says):
        cut_module(Net(), Pipeline(points, 4))


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        (("blocks.1", 4), ArgumentTypeError, r"split_points='blocks.1'\) is no list of names"),
        (([1], 4), ArgumentTypeError, r"split_points=\[1\]\) is no list"),
        (([], 4), ConfigurationError, r"split_points=\[\]\) leaves one stage"),
        ((["b", "c", "b"], 4), ConfigurationError, r"names 'b' twice"),
        ((["b"], 0), ConfigurationError, r"micro_batches=0\) is no number of parts"),
        ((["b"], 4, "1f1b"), ConfigurationError, r"schedule='1f1b'\) is unknown \(did you mean '1F1B'\?\)"),
        ((["b"], 4, "ZBVZeroBubble"), ConfigurationError, r"has 2 stages. .* at least two processes"),
        ((["b", "c"], 4, "DualPipeV"), ConfigurationError, r"has 3 stages. .* an odd number of split points"),
        ((["b", "c", "d"], 3, "DualPipeV"), ConfigurationError, r"micro_batches=3, .* fewer micro-batches than its 4"),
    ],
)
def test_a_pipeline_that_cannot_be_is_refused(arguments, kind, says):
    with pytest.raises(kind, match=says):
        Pipeline(*arguments)


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"pipeline_parallel_size": 2, "plan": {"**": "shard"}}, ConfigurationError, r"=2\) has no pipeline"),
        ({"pipeline": ["b"]}, ArgumentTypeError, r"pipeline=\['b'\]\) is a list"),
        ({"pipeline": Pipeline(["b"], 4), "pipeline_parallel_size": 3}, ConfigurationError, r"=3\) does not fit the 2"),
        (
            {"pipeline": Pipeline(["b"], 4), "parallelize_fn": lambda module, mesh: module},
            ConfigurationError,
            "no proc",
        ),
        (
            {"pipeline": Pipeline(["b", "c", "d"], 4, "ZBVZeroBubble"), "pipeline_parallel_size": 4},
            ConfigurationError,
            r"=4\) does not fit the 4 stages .* each process has two stages. Pass pipeline_parallel_size=2",
        ),
    ],
)
def test_what_does_not_go_with_a_pipeline_is_refused_at_once(arguments, kind, says):
    with pytest.raises(kind, match=says):
        ModelParallelStrategy(**arguments)


@pytest.mark.parametrize(
    ("pipeline", "says"),
    [
        (Pipeline(["b", "c"], 4), r"pipeline_parallel_size=3, .* does not fit 4 .* multiple of 3 processes"),
    ],
)
def test_a_pipeline_that_does_not_fit_the_processes_is_refused_before_one_starts(pipeline, says):
    fabric = Fabric(strategy=ModelParallelStrategy(pipeline=pipeline), devices=4, accelerator="cpu")
    with pytest.raises(ConfigurationError, match=says):
        fabric.launch()


def test_few_micro_batches_are_warned_of_with_what_they_cost():
    strategy = ModelParallelStrategy(pipeline=Pipeline(["b", "c", "d"], 2))
    strategy.parallel_devices = [torch.device("cpu")] * 4
    with pytest.warns(UserWarning, match=r"micro_batches=2\) are fewer than the 4 .* 60% of a step"):
        strategy.configure_launcher()
