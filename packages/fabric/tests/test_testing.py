"""Every strategy trains as one process does: the parity test that users run on their own modules, run on ours."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fulmen.fabric.checkpoint_io.background import AsyncCheckpointIO
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.strategies.ddp import DDPStrategy
from fulmen.fabric.strategies.dp import DataParallelStrategy
from fulmen.fabric.strategies.fsdp import FSDPStrategy
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy
from fulmen.fabric.strategies.pipeline.cuts import Pipeline
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy
from fulmen.fabric.testing import assert_parity, meshes


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 3)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x) * self.scale


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def batches(num: int = 4, samples: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {"x": torch.randn(samples, 8, generator=generator), "y": torch.randint(3, (samples,), generator=generator)}
        for _ in range(num)
    ]


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """What processes load that are forked; in each of them it would take two seconds."""
    import torch.distributed.fsdp
    import torch.distributed.tensor.parallel  # noqa: F401


def split_tensors(module: Any, mesh: Any) -> Any:
    """Each block over the processes of a row; the data over the rows."""
    from torch.distributed import fsdp
    from torch.distributed.tensor import parallel as tp

    for block in module.blocks:
        plan = {"up": tp.ColwiseParallel(), "down": tp.RowwiseParallel()}
        tp.parallelize_module(block, mesh["tensor_parallel"], plan)
    if mesh["data_parallel"].size() > 1:
        fsdp.fully_shard(module, mesh=mesh["data_parallel"])
    return module


STRATEGIES: dict[str, tuple[Any, int]] = {
    "single_device": ("single_device", 1),
    "dp": (DataParallelStrategy, 1),
    "ddp": ("ddp", 2),
    "ddp_fork": ("ddp_fork", 2),
    "ddp_notebook": ("ddp_notebook", 2),
    "ddp_find_unused_parameters_true": ("ddp_find_unused_parameters_true", 2),
    "ddp, buckets as views": (lambda: DDPStrategy(gradient_as_bucket_view=True), 2),
    "fsdp": ("fsdp", 2),
    "fsdp, in units": (lambda: FSDPStrategy(auto_wrap_policy={Block}), 2),
    "fsdp, activations again": (lambda: FSDPStrategy(activation_checkpointing_policy={Block}), 2),
    "fsdp, gradients and optimizer": (lambda: FSDPStrategy(sharding_strategy="SHARD_GRAD_OP"), 2),
    "fsdp, nothing": (lambda: FSDPStrategy(sharding_strategy="NO_SHARD"), 2),
    "fsdp, two by two": (lambda: FSDPStrategy(sharding_strategy="HYBRID_SHARD", device_mesh=(2, 2)), 4),
    "fsdp, waiting on the CPU": (lambda: FSDPStrategy(cpu_offload=True), 2),
    "tensors over two": (lambda: ModelParallelStrategy(split_tensors), 2),
    "data by tensors, two by two": (lambda: ModelParallelStrategy(split_tensors, 2, 2), 4),
}


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, id="plain"),
        pytest.param({"accumulate": 2, "max_norm": 0.1}, id="accumulated and clipped"),
    ],
)
def test_a_strategy_trains_as_one_process_does(name: str, how: dict[str, Any]) -> None:
    strategy, devices = STRATEGIES[name]
    assert_parity(Net, batches(), loss, strategy=strategy, devices=devices, **how)


def test_a_static_graph_trains_as_one_process_does() -> None:
    # torch cannot accumulate with it from the first batch on.
    assert_parity(Net, batches(), loss, strategy=lambda: DDPStrategy(static_graph=True), max_norm=0.1)


def test_forked_by_a_server_it_trains_as_one_process_does() -> None:
    adam = partial(torch.optim.AdamW, lr=0.01)
    strategy = partial(DDPStrategy, start_method="forkserver")
    assert_parity(Net, batches(2), loss, strategy=strategy, optimizer=adam, clip_val=0.01)


@pytest.mark.timeout(600)  # two Pythons load torch and its FSDP
def test_in_new_pythons_it_trains_as_one_process_does() -> None:
    # The strategy travels by value, with a checkpoint IO that has a thread, a lock and a copy of its own.
    strategy = FSDPStrategy(auto_wrap_policy={Block})
    strategy.checkpoint_io = AsyncCheckpointIO()
    assert_parity(Net, batches(2), loss, strategy=strategy, max_norm=0.1, start_method="spawn")


def test_a_module_and_a_strategy_may_be_objects_and_stay_as_they_are() -> None:
    net, strategy = Net(), DDPStrategy()
    before = [parameter.clone() for parameter in net.parameters()]
    drawn = torch.random.get_rng_state()
    found = assert_parity(net, iter(batches()), loss, strategy=strategy)
    assert list(found) == ["DDPStrategy"]
    assert found["DDPStrategy"] < 1e-10
    assert all(map(torch.equal, net.parameters(), before))
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert torch.get_default_dtype() == torch.float32
    assert strategy.accelerator is None


class Attention(nn.Module):
    """Two heads of a causal attention, and two layers, in parts that are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        normed = self.norm(x)
        heads = (part(normed).unflatten(-1, (-1, 2)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.o(nn.functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))
        return self.head(x + self.down(torch.tanh(self.up(x))))


# The stream between layers is whole in the first, and a part of the sequence in the second.
TENSORS = {"embed": "row", "[qkv]": "column", "o": "row", "up": "column", "down": "row", "head": "column > whole"}
SEQUENCES = {
    "embed": "row > sequence",
    "norm": "sequence",
    "[qkv]": "sequence > column",
    "o": "row > sequence",
    "up": "sequence > column",
    "down": "row > sequence",
    "head": "sequence > replicate",
    "[ud]*": "shard",
}
# Sequences over neighbours, and tensors too.
CONTEXT = {**TENSORS, "": "ring"}
# Of the meshes of eight processes, and those of four with sequences, some: the others are made of the same parts.
SOME = {
    "replicate 2 x data_parallel 2 x tensor_parallel 2",
    "replicate 2 x data_parallel 2 x tensor_parallel 2 x context 2",
    "data_parallel 2 x tensor_parallel 2 x context 2",
    "data_parallel 4 x tensor_parallel 1 x context 4",
    "data_parallel 4 x tensor_parallel 1 x context 2",
}


def next_token(model: nn.Module, tokens: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(tokens["here"]).flatten(0, 1), tokens["next"].flatten())


def tokens(num: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randint(12, (8, 9), generator=generator) for _ in range(num)]
    return [{"here": one[:, :-1].contiguous(), "next": one[:, 1:].contiguous()} for one in drawn]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("plan", "num_processes", "num_meshes", "how"),
    [
        pytest.param(TENSORS, 2, 3, {"each_step": True}, id="tensors, 2"),
        pytest.param({"[ud]*": "shard"}, 2, 2, {}, id="units, 2"),
        pytest.param({**CONTEXT, "": "ulysses"}, 2, 4, {"accumulate": 2}, id="contexts, 2"),
        pytest.param(SEQUENCES, 4, 6, {}, id="sequences, 4"),
        pytest.param(CONTEXT, 4, 3, {}, id="contexts, 4"),
        pytest.param(SEQUENCES, 8, 1, {}, id="sequences, 8"),
        pytest.param(CONTEXT, 8, 1, {}, id="contexts, 8"),
    ],
)
def test_a_plan_trains_as_one_process_does_on_every_mesh(
    plan: dict[str, str], num_processes: int, num_meshes: int, how: dict[str, Any]
) -> None:
    every = meshes(num_processes, plan)
    takes_all = num_processes == 2 or (plan is SEQUENCES and num_processes == 4)
    wanted = {name for name in SOME if plan is not CONTEXT or "context" in name}
    some = {name: one for name, one in every.items() if takes_all or name in wanted}
    assert len(some) == num_meshes
    how = {"max_norm": 0.1, "each_step": False, **how}
    batches = tokens(10 * how.get("accumulate", 1))
    assert_parity(Attention, batches, next_token, strategy=some, devices=num_processes, **how)


@pytest.mark.timeout(600)
def test_stages_train_as_one_process_does_on_every_mesh() -> None:
    pipeline = Pipeline(["head"], micro_batches=2)
    some = {f"units, {name}": one for name, one in meshes(4, {"[ud]*": "shard"}, pipeline=pipeline).items()}
    some |= {f"tensors, {name}": one for name, one in meshes(4, TENSORS, pipeline=pipeline).items()}
    assert len(some) == 2 + 3
    differences = assert_parity(
        Attention, tokens(20), next_token, strategy=some, devices=4, accumulate=2, max_norm=0.1, each_step=False
    )
    assert max(differences.values()) < 1e-10


def test_of_several_strategies_the_wrong_ones_are_named() -> None:
    several = {"right": DDPStrategy(), "wrong": NotExchanged()}
    with pytest.raises(
        AssertionError, match=r"^wrong on 2 devices: the weights are not those of one process"
    ) as raised:
        assert_parity(Net, batches(2), loss, strategy=several, each_step=False)
    assert "They differ after step 1 of 2" in str(raised.value)
    assert "right" not in str(raised.value)
    with pytest.raises(ConfigurationError, match="holds no strategy"):
        assert_parity(Net, batches(), loss, strategy={}, devices=1)
    with pytest.raises(ConfigurationError, match="holds a SingleDeviceStrategy that starts its processes by itself"):
        assert_parity(Net, batches(), loss, strategy={"one": SingleDeviceStrategy(), "two": DDPStrategy()}, devices=1)


class NotExchanged(DDPStrategy):
    def setup_module(self, module: nn.Module) -> nn.Module:
        return module


class Summed(DDPStrategy):
    def backward(self, tensor: Tensor, module: Any, *args: Any, **kwargs: Any) -> None:
        super().backward(tensor * self.world_size, module, *args, **kwargs)


class LosesTheHead(DDPStrategy):
    def setup_module(self, module: nn.Module) -> nn.Module:
        if self.global_rank == 1:
            module.head.weight.data[0, 2] += 1e-6  # type: ignore[union-attr,operator]
        return super().setup_module(module)

    def clip_gradients_value(self, module: nn.Module, optimizer: Any, clip_val: float) -> None: ...


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        (NotExchanged, "Ranks 0, 1 each have other weights: gradients are not exchanged."),
        (Summed, "Ranks 0, 1 have the same weights: gradients are exchanged, and are not the mean"),
    ],
)
def test_what_differs_is_said(strategy: type[DDPStrategy], says: str) -> None:
    with pytest.raises(AssertionError) as raised:
        assert_parity(Net, batches(), loss, strategy=strategy)
    text = str(raised.value)
    assert text.startswith(f"{strategy.__name__} on 2 devices: the weights are not those of one process")
    assert "They differ since step 0 of 4; rank 0," in text
    assert "  step 0  head.bias" in text
    assert "scale" not in text  # a buffer, and the same everywhere
    assert says in text


def test_a_difference_that_comes_later_and_only_clips_is_found() -> None:
    with pytest.raises(AssertionError, match=r"head\.weight"):
        assert_parity(Net, batches(), loss, strategy=LosesTheHead, clip_val=1e-4)
    with pytest.raises(AssertionError, match=r"differs by .* instead of .* at \["):
        assert_parity(Net, batches(), loss, strategy=LosesTheHead, clip_val=1e-4, tolerance=1e-5)


@pytest.mark.parametrize(
    ("wrong", "kind", "begins"),
    [
        ({"optimizer": partial(torch.optim.SGD, lr=0)}, ConfigurationError, "assert_parity(...) trained nothing"),
        ({"batches": batches(samples=7)}, ConfigurationError, "assert_parity(batches=...) has a batch of [7] samples"),
        ({"batches": []}, ConfigurationError, "assert_parity(batches=..., accumulate=1) got 0 batches"),
        ({"accumulate": 3}, ConfigurationError, "assert_parity(batches=..., accumulate=3) got 4 batches"),
        ({"max_norm": 1.0, "clip_val": 1.0}, ConfigurationError, "assert_parity(max_norm=1.0, clip_val=1.0)"),
        ({"loss": 3}, ArgumentTypeError, "assert_parity(module="),
        ({"module": dict}, ArgumentTypeError, "assert_parity(module=<class 'dict'>) built a dict"),
    ],
)
def test_a_comparison_that_means_nothing_is_refused(wrong: dict[str, Any], kind: type[Exception], begins: str) -> None:
    with pytest.raises(kind) as raised:
        assert_parity(**{"module": Net, "batches": batches(), "loss": loss, "strategy": "ddp", **wrong})
    assert str(raised.value).startswith(begins)
    assert str(raised.value).count(". ") >= 2


def test_one_of_many_processes_is_the_wrong_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigurationError, match="one of several processes"):
        assert_parity(Net, batches(), loss)
