import pytest
import torch
from sharded_lab import (
    Cases,
    adam,
    assert_same,
    assert_same_optimizer,
    make_fabric,
    model_parallel,
    plainly,
    set_up,
    train,
)
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric import Fabric
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, NotLaunchedError
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy

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


def planned(n, *sizes, plan, **kwargs):
    names = ("replicate_size", "data_parallel_size", "tensor_parallel_size")
    return make_fabric(ModelParallelStrategy(plan=plan, **dict(zip(names, sizes, strict=True)), **kwargs), n)


class Narrow(torch.nn.Module):
    """Sizes that two and four processes divide."""

    def __init__(self):
        super().__init__()
        self.start, self.end = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)
        self.middle = torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.end(torch.tanh(self.middle(torch.tanh(self.start(x)))))


NARROW = {"start": "column", "middle": "row", "end": "column > whole", "**": "shard"}


def narrow(fabric, seed=0, optimizer=adam):
    torch.manual_seed(seed)
    module = Narrow()
    return fabric.setup(module, optimizer(module.parameters()))


def steps(fabric, model, optimizer, numbers):
    generator = torch.Generator().manual_seed(5)
    batches = [torch.randn(8, 4, generator=generator) for _ in range(6)]
    for number in numbers:
        batch = batches[number]
        if fabric is not None:
            sharing = fabric.strategy.distributed_sampler_kwargs
            batch = batch.chunk(sharing["num_replicas"])[sharing["rank"]]
        loss = model(batch).square().mean()
        fabric.backward(loss) if fabric is not None else loss.backward()
        optimizer.step()
        optimizer.zero_grad()


MESHES = ((1, 2, 2), (2, 2, 1), (2, 1, 2), (1, 4, 1), (1, 1, 4), (4, 1, 1))


@case(4)
def a_checkpoint_of_each_mesh_loads_into_another(n, folder):
    torch.manual_seed(0)
    plain = Narrow()
    plain_optimizer = adam(plain.parameters())
    steps(None, plain, plain_optimizer, range(6))
    for place, sizes in enumerate(MESHES):
        fabric = planned(n, *sizes, plan=NARROW, save_distributed_checkpoint=place % 2 == 0)
        model, optimizer = narrow(fabric)
        steps(fabric, model, optimizer, range(3))
        path = folder / f"mesh{place}.ckpt"
        fabric.save(path, {"model": model, "optimizer": optimizer, "step": 3})
        other = planned(n, *MESHES[place - 1], plan=NARROW)
        model, optimizer = narrow(other, seed=1)
        state = {"model": model, "optimizer": optimizer, "step": 0}
        other.load(path, state)
        assert state["step"] == 3
        steps(other, model, optimizer, range(3, 6))
        assert_same(model, plain)
        assert_same_optimizer(optimizer, plain_optimizer)


@case(4)
def processes_with_other_random_numbers_get_those_of_the_first(n, folder):
    fabric = planned(n, 2, 1, 2, plan=NARROW)
    model, _ = narrow(fabric, seed=fabric.global_rank)
    torch.manual_seed(0)  # that of the first process
    assert_same(model, Narrow())


@case(4)
def without_memory_until_it_is_split(n, folder):
    fabric = planned(n, 2, 1, 2, plan=NARROW)
    with fabric.init_module(empty_init=True):
        module = Narrow()
    assert module.start.weight.is_meta
    model = fabric.setup(module)
    assert model.start.weight.to_local().shape == (4, 4)
    assert all(torch.isfinite(parameter.full_tensor()).all() for parameter in model.parameters())


@case(4)
def the_data_axis_shares_out_samples(n, folder):
    for sizes, shares in (((2, 1, 2), 2), ((2, 2, 1), 4), ((1, 1, 4), 1)):
        fabric = planned(n, *sizes, plan=NARROW)
        assert fabric.strategy.distributed_sampler_kwargs["num_replicas"] == shares
        loader = fabric.setup_dataloaders(DataLoader(TensorDataset(torch.arange(8)), batch_size=2))
        seen = [int(number) for (batch,) in loader for number in batch]
        assert seen == list(range(fabric.global_rank * shares // n, 8, shares))


@case(2)
def plans_that_do_not_fit(n, folder):
    for plan, sizes, says in (
        ({"blocks.*.up": "column"}, (1, 1, 2), r"names nothing in Net.*The nearest names"),
        ({"blocks.*": "shard"}, (1, 1, 2), r"tensor_parallel_size=2\) splits nothing over the tensor axis"),
        ({"start": "column"}, (1, 1, 2), r"cannot split 'start' as 'column': its 7 columns are no multiple of 2"),
        ({"blocks.*": "column"}, (1, 1, 2), r"names 'blocks\.0', a Block\. Linear"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            set_up(planned(n, *sizes, plan=plan))
    model, _ = set_up(planned(n, 1, 2, 1, plan={"**": "shard"}))
    with pytest.raises(ConfigurationError, match="which is split already"):
        planned(n, 1, 2, 1, plan={"**": "shard"}).setup(model.module)


# --- the machinery


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return case.run(tmp_path_factory, 2, 4)


@pytest.mark.timeout(600)  # the first one waits for all processes
@pytest.mark.parametrize(("name", "size"), case.places)
def test_in_processes(outcomes, name, size):
    assert not outcomes[name, size], outcomes[name, size]


# --- without processes


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
@pytest.mark.parametrize("axis", ["replicate_size", "data_parallel_size", "tensor_parallel_size"])
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


def test_a_plan_and_a_function_say_the_same_twice():
    with pytest.raises(ConfigurationError, match=r"plan=\.\.\.\) says twice"):
        ModelParallelStrategy(lambda module, mesh: module, plan={"**": "shard"})
    with pytest.raises(ArgumentTypeError, match=r"plan=\{'pattern of names': 'style'\}"):
        ModelParallelStrategy()


def test_a_mesh_that_does_not_fit_is_refused_before_a_process_starts():
    fabric = Fabric(
        strategy=ModelParallelStrategy(plan={"**": "shard"}, replicate_size=3), devices=4, accelerator="cpu"
    )
    with pytest.raises(ConfigurationError, match=r"replicate_size=3, .* does not fit 4 processes"):
        fabric.launch()


def test_tensors_over_machines_are_warned_of():
    strategy = ModelParallelStrategy(plan={"up": "column"}, tensor_parallel_size=4)
    strategy.parallel_devices, strategy.num_nodes = [torch.device("cpu")] * 2, 2
    with pytest.warns(UserWarning, match=r"tensor_parallel_size=4\) runs over several machines"):
        strategy.configure_launcher()


def test_a_plan_without_tensors_leaves_no_process_to_their_axis():
    strategy = ModelParallelStrategy(plan={"**": "shard"}, replicate_size="auto")
    assert strategy.mesh_sizes(num_nodes=2, num_processes=4).shape == (2, 4, 1)
