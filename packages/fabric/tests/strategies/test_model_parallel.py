import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sharded_lab import Cases, assert_same, model_parallel, plainly, set_up, train
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric import Fabric
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, NotLaunchedError
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy, axis_sizes

case = Cases()


@case(2)
def tensor_parallel(n, folder):
    fabric = model_parallel(n, "auto", "auto")
    assert fabric.strategy.device_mesh.shape == (1, 2)
    assert fabric.strategy.distributed_sampler_kwargs == {"num_replicas": 1, "rank": 0}
    model, optimizer = set_up(fabric, width=8)
    train(fabric, model, optimizer, max_norm=0.1)
    assert_same(model, plainly(max_norm=0.1, width=8)[0])


@case(4)
def tensor_and_data_parallel(n, folder):
    fabric = model_parallel(n, 2, 2)
    rank = fabric.global_rank
    assert fabric.strategy.distributed_sampler_kwargs == {"num_replicas": 2, "rank": rank // 2}
    for options in ({"accumulate": 2, "max_norm": 0.1}, {"clip_val": 0.01}):
        model, optimizer = set_up(fabric, width=8)
        train(fabric, model, optimizer, **options)
        assert_same(model, plainly(width=8, **options)[0])
    loader = fabric.setup_dataloaders(DataLoader(TensorDataset(torch.arange(8)), batch_size=2))
    seen = [int(number) for (batch,) in loader for number in batch]
    assert seen == list(range(rank // 2, 8, 2))


@case(2)
def meshes_and_functions_that_do_not_fit(n, folder):
    with pytest.raises(ConfigurationError, match=r"data_parallel_size=2, tensor_parallel_size=3.* fit 2 processes"):
        model_parallel(n, 2, 3)
    with pytest.raises(ConfigurationError, match=r"split no parameter of Net over the axis 'tensor_parallel'"):
        set_up(model_parallel(n, 1, 2, function=lambda module, mesh: module))
    with pytest.raises(ConfigurationError, match=r"split no parameter of Net over the axis 'data_parallel'.*averaged"):
        set_up(model_parallel(n, 2, 1, function=lambda module, mesh: module))
    with pytest.raises(ArgumentTypeError, match="returned for Net a NoneType"):
        set_up(model_parallel(n, 2, 1, function=lambda module, mesh: None))


# --- the machinery


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return case.run(tmp_path_factory, 2, 4)


@pytest.mark.timeout(600)  # the first one waits for all processes
@pytest.mark.parametrize(("name", "size"), case.places)
def test_in_processes(outcomes, name, size):
    assert not outcomes[name, size], outcomes[name, size]


# --- without processes

sizes = st.integers(1, 12)


@given(sizes, sizes, sizes, sizes)
def test_axes_hold_every_process_once_or_are_refused(data, tensor, num_nodes, num_processes):
    world_size = num_nodes * num_processes
    if data * tensor == world_size:
        assert axis_sizes(data, tensor, num_nodes, num_processes) == (data, tensor)
    else:
        with pytest.raises(ConfigurationError, match=f"data_parallel_size={data}, tensor_parallel_size={tensor}"):
            axis_sizes(data, tensor, num_nodes, num_processes)


@given(sizes, sizes)
def test_auto_is_what_the_other_axis_leaves(num_nodes, num_processes):
    world_size = num_nodes * num_processes
    assert axis_sizes("auto", "auto", num_nodes, num_processes) == (num_nodes, num_processes)
    for size in range(1, world_size + 1):
        if world_size % size:
            with pytest.raises(ConfigurationError, match="does not fit"):
                axis_sizes(size, "auto", num_nodes, num_processes)
        else:
            assert axis_sizes(size, "auto", num_nodes, num_processes) == (size, world_size // size)
            assert axis_sizes("auto", size, num_nodes, num_processes) == (world_size // size, size)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
@pytest.mark.parametrize("axis", ["data_parallel_size", "tensor_parallel_size"])
def test_sizes_are_positive_ints_or_auto(axis, size):
    with pytest.raises(ConfigurationError, match=f"{axis}={size!r}"):
        ModelParallelStrategy(lambda module, mesh: module, **{axis: size})


def test_what_splits_the_module_is_a_function():
    with pytest.raises(ArgumentTypeError, match="parallelize_fn=None"):
        ModelParallelStrategy(None)


def test_there_is_no_mesh_before_there_are_processes():
    strategy = ModelParallelStrategy(lambda module, mesh: module)
    with pytest.raises(NotLaunchedError, match="device_mesh was read before"):
        _ = strategy.device_mesh
    fabric = Fabric(strategy=strategy, devices=2, accelerator="cpu")
    with pytest.raises(NotLaunchedError, match=r"fabric\.setup\(\) was called before"):
        fabric.setup(torch.nn.Linear(1, 1))


def test_precisions_that_scale_the_loss_are_refused():
    from fulmen.fabric.precision.mixed import MixedPrecision

    strategy = ModelParallelStrategy(lambda module, mesh: module)
    with pytest.raises(ConfigurationError, match=r"precision='16-mixed'.*Pass precision='bf16-mixed'"):
        strategy.precision = MixedPrecision("16-mixed", "cuda")
    for precision in ("bf16-mixed", "bf16-true", "64-true", None):
        strategy = ModelParallelStrategy(lambda module, mesh: module)
        fabric = Fabric(strategy=strategy, devices=2, accelerator="cpu", precision=precision)
        assert fabric.strategy.precision.precision == (precision or "32-true")


def test_it_says_how_checkpoints_are_saved():
    def same(module, mesh):
        return module

    assert ModelParallelStrategy(same).saves_shards
    assert not ModelParallelStrategy(same, save_distributed_checkpoint=False).saves_shards
