import inspect
from contextlib import nullcontext
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
from sharded_lab import (
    TOLERANCE,
    Block,
    Cases,
    FullState,
    Net,
    adam,
    assert_same,
    batches,
    build,
    copy_of,
    fsdp,
    make_fabric,
    momentum,
    plainly,
    set_up,
    share,
    train,
    warned,
    whole,
)
from torch import nn

from fulmen.fabric import Fabric
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, ForwardBypassedError, NotLaunchedError
from fulmen.fabric.launchers.script import ScriptLauncher
from fulmen.fabric.precision.fsdp import FSDPPrecision
from fulmen.fabric.precision.mixed import MixedPrecision
from fulmen.fabric.strategies.capabilities import HooksForward, ShardsAtInit, SkipsGradientSync
from fulmen.fabric.strategies.catalog import STRATEGY_REGISTRY
from fulmen.fabric.strategies.fsdp import FSDPStrategy

case = Cases()


# --- the same weights as one process


@case(2, 4)
def full_shard(n, folder):
    fabric = fsdp(n, auto_wrap_policy={Block})
    model, optimizer = set_up(fabric)
    assert all(parameter.to_local().numel() < parameter.numel() for parameter in model.parameters())
    train(fabric, model, optimizer)
    assert_same(model, plainly()[0])


@case(2)
def full_shard_as_one_unit(n, folder):
    fabric = fsdp(n)
    model, optimizer = set_up(fabric, adam)
    train(fabric, model, optimizer)
    assert_same(model, plainly(adam)[0])


@case(2, 4)
def shard_grad_op(n, folder):
    fabric = fsdp(n, sharding_strategy="SHARD_GRAD_OP", auto_wrap_policy={Block})
    model, optimizer = set_up(fabric)
    train(fabric, model, optimizer)
    assert_same(model, plainly()[0])


@case(2, 4)
def no_shard(n, folder):
    fabric = fsdp(n, sharding_strategy="NO_SHARD", auto_wrap_policy={Block})
    torch.manual_seed(fabric.global_rank)  # replicas are made equal
    model = Net()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    model, optimizer = fabric.setup(model, momentum(model.parameters()))
    assert all(parameter.to_local().numel() == parameter.numel() for parameter in model.parameters())
    assert_same(model, fabric.broadcast(first), tolerance=0)
    model.load_state_dict(FullState(build(), model).state)
    train(fabric, model, optimizer)
    assert_same(model, plainly()[0])


@case(4)
def hybrid_shard(n, folder):
    from torch.distributed.fsdp import ShardingStrategy

    fabric = fsdp(n, sharding_strategy=ShardingStrategy.HYBRID_SHARD, device_mesh=(2, 2), auto_wrap_policy={Block})
    assert fabric.strategy.sharding_strategy is ShardingStrategy.HYBRID_SHARD
    assert fabric.strategy.device_mesh.shape == (2, 2)
    model, optimizer = set_up(fabric)
    train(fabric, model, optimizer, accumulate=2, max_norm=0.1)
    assert_same(model, plainly(accumulate=2, max_norm=0.1)[0])


@case(2, 4)
def accumulation_and_clipping(n, folder):
    for options in (
        {"accumulate": 2},
        {"max_norm": 0.1},
        {"clip_val": 0.01},
        {"accumulate": 2, "max_norm": 0.1},
    ):
        fabric = fsdp(n, auto_wrap_policy={Block})
        model, optimizer = set_up(fabric)
        train(fabric, model, optimizer, **options)
        assert_same(model, plainly(**options)[0])


@case(2)
def gradients_wait_for_the_last_backward(n, folder):
    fabric = fsdp(n, auto_wrap_policy={Block})
    model, _ = set_up(fabric)
    batch = share(fabric, batches()[0])
    for enabled in (True, True, False):
        with fabric.no_backward_sync(model, enabled=enabled):
            fabric.backward(model(batch).square().mean())
        assert all((parameter.grad is None) == enabled for parameter in model.parameters())
    plain = build()
    (3 * plain(batches()[0]).square().mean()).backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert (whole(one.grad) - other.grad).abs().max() < TOLERANCE


@case(2)
def norms_of_every_type(n, folder):
    fabric = fsdp(n, auto_wrap_policy={Block})
    model, optimizer = set_up(fabric)
    plain = build()
    fabric.backward(model(share(fabric, batches()[0])).square().mean())
    plain(batches()[0]).square().mean().backward()
    for norm_type in (1.0, 2, 3.5, float("inf")):
        expected = nn.utils.get_total_norm([p.grad for p in plain.parameters()], norm_type)
        norm = fabric.clip_gradients(model, optimizer, max_norm=1e6, norm_type=norm_type)
        assert type(norm) is torch.Tensor
        torch.testing.assert_close(norm, expected, rtol=1e-12, atol=0)
    with pytest.raises(ConfigurationError, match="norm_type=0"):
        fabric.clip_gradients(model, optimizer, max_norm=1.0, norm_type=0)
    if fabric.global_rank == 0:
        next(model.parameters()).grad.to_local()[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="norm of the gradients is nan"):
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
    assert fabric.clip_gradients(model, optimizer, max_norm=1.0, error_if_nonfinite=False).isnan()


@case(2)
def activation_checkpointing_and_cpu_offload(n, folder):
    forwards = []
    for options in (
        {"activation_checkpointing_policy": {Block}},
        {"activation_checkpointing": Block, "auto_wrap_policy": {Block}},
        {"cpu_offload": True, "auto_wrap_policy": {Block}},
    ):
        fabric = fsdp(n, **options)
        model = build()
        model.blocks[0].linear.register_forward_hook(lambda *_: forwards.append(1))
        model, optimizer = fabric.setup(model, momentum(model.parameters()))
        del forwards[:]
        train(fabric, model, optimizer, max_norm=0.1)
        assert len(forwards) == (4 if "cpu_offload" in options else 8)
        assert_same(model, plainly(max_norm=0.1)[0])


@case(2)
def units_by_size_and_prefetch(n, folder):
    from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

    policy = partial(size_based_auto_wrap_policy, min_num_params=50)
    fabric = fsdp(n, auto_wrap_policy=policy, forward_prefetch=True, use_orig_params=True)
    model, optimizer = set_up(fabric)
    from torch.distributed.fsdp import FSDPModule

    units = [name for name, part in model.module.named_modules() if isinstance(part, FSDPModule)]
    assert units == ["", "blocks.0", "blocks.1"] or units == ["", "blocks.0.linear", "blocks.1.linear"], units
    train(fabric, model, optimizer)
    assert_same(model, plainly()[0])


# --- setting up


@case(2)
def optimizers_before_and_after(n, folder):
    fabric = fsdp(n, auto_wrap_policy={Block})
    plain, _ = plainly(adam)
    model = fabric.setup_module(build())
    optimizer = fabric.setup_optimizers(adam(model.parameters()))
    train(fabric, model, optimizer)
    assert_same(model, plain)

    module = build()
    before = adam(module.parameters())  # with state already
    for batch in batches()[:2]:
        module(batch).square().mean().backward()
        before.step()
        before.zero_grad()
    model = fabric.setup_module(module)
    optimizer = fabric.setup_optimizers(before)
    for batch in batches()[2:]:
        fabric.backward(model(share(fabric, batch)).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    assert_same(model, plain)

    with pytest.raises(ConfigurationError, match="Adam has no parameter of a module that FSDPStrategy has set up"):
        fabric.setup_optimizers(adam(build().parameters()))


@case(2)
def memory_comes_when_it_is_split(n, folder):
    fabric = fsdp(n, auto_wrap_policy={Block})
    with fabric.init_module(empty_init=True):
        module = Net()
    assert all(parameter.is_meta for parameter in module.parameters())
    # Units are filled one after the other, with the random numbers of rank 0.
    plain = Net()
    torch.manual_seed(3)
    for part in (*(part for block in plain.blocks for part in (block, block.linear)), plain.start, plain.end):
        part.reset_parameters()
    torch.manual_seed(3 if fabric.global_rank == 0 else 99)
    after = torch.random.get_rng_state()
    with warned(fabric, "Parameters of Net were made on the meta device and have no values"):
        model = fabric.setup_module(module)
    assert fabric.global_rank == 0 or torch.equal(after, torch.random.get_rng_state())
    found = {name: whole(value) for name, value in model.state_dict().items()}
    assert found.keys() == plain.state_dict().keys()
    for name, value in plain.named_parameters():
        assert torch.equal(found[name], value)

    with fabric.init_module():
        assert next(Net().parameters()).device.type == "cpu"


@case(2)
def parts_are_split_while_they_are_made(n, folder):
    from torch.distributed.fsdp.wrap import wrap
    from torch.distributed.tensor import DTensor

    fabric = fsdp(n)
    with fabric.sharded_model():
        module = build()
        for index, block in enumerate(module.blocks):
            module.blocks[index] = wrap(block)
    assert isinstance(module.blocks[0].scale, DTensor)
    assert not isinstance(module.start.weight, DTensor)
    model, optimizer = fabric.setup(module, momentum(module.parameters()))
    assert isinstance(model.start.weight, DTensor)
    train(fabric, model, optimizer)
    assert_same(model, plainly()[0])


@case(2)
def methods_run_through_forward(n, folder):
    fabric = fsdp(n, auto_wrap_policy={Block})
    model, optimizer = set_up(fabric)
    for batch in batches():
        fabric.backward(model.training_step(share(fabric, batch)))
        optimizer.step()
        optimizer.zero_grad()
    assert_same(model, plainly()[0])
    x = batches()[0]
    for context in (nullcontext(), torch.no_grad()):
        with context, pytest.raises(ForwardBypassedError, match="mark_forward_method"):
            model.beside(x)
    model.mark_forward_method("beside")
    expected = plainly()[0].beside(x)
    assert (model.beside(x) - expected).abs().item() < TOLERANCE


@case(2)
def values_of_rank_zero_and_ignored_parameters(n, folder):
    module = build()
    if dist.get_rank():
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    fabric = fsdp(n, sync_module_states=True, auto_wrap_policy={Block}, ignored_modules=[module.end])
    model, optimizer = fabric.setup(module, momentum(module.parameters()))
    assert type(model.end.weight) is nn.Parameter
    assert_same(model, build(), tolerance=0)
    fabric.backward(model(share(fabric, batches()[0])).square().mean())
    norm = fabric.clip_gradients(model, optimizer, max_norm=1.0)  # over both kinds
    assert norm > 0


@case(2)
def shared_parameters_stay_one(n, folder):
    module = build()
    module.blocks[1].linear.weight = module.blocks[0].linear.weight
    fabric = fsdp(n)
    model, optimizer = fabric.setup(module, momentum(module.parameters()))
    train(fabric, model, optimizer, count=2)
    assert model.blocks[1].linear.weight is model.blocks[0].linear.weight
    module = build()
    module.blocks[1].linear.weight = module.blocks[0].linear.weight
    with pytest.raises(ConfigurationError, match=r"'blocks.0.linear.weight', 'blocks.1.linear.weight'.* were one"):
        fsdp(n, auto_wrap_policy={Block}).setup(module)


# --- precision


@case(2)
def low_precision(n, folder):
    torch.set_default_dtype(torch.float32)
    try:
        for precision, stored in (("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)):
            fabric = fsdp(n, precision=precision, auto_wrap_policy={Block})
            assert isinstance(fabric.strategy.precision, FSDPPrecision)
            model, optimizer = set_up(fabric)
            train(fabric, model, optimizer)
            assert {value.dtype for value in model.parameters()} == {stored}
            assert_same(model, {name: value.to(stored) for name, value in plainly()[0].state_dict().items()}, 0.05)
    finally:
        torch.set_default_dtype(torch.float64)


@case(2)
def loss_scaling_skips_a_step_on_all_or_none(n, folder):
    torch.set_default_dtype(torch.float32)
    try:
        precision = FSDPPrecision("16-mixed", torch.amp.GradScaler("cpu", init_scale=4.0), device="cpu")
        fabric = make_fabric(FSDPStrategy(precision=precision, auto_wrap_policy={Block}), n)
        model, optimizer = set_up(fabric)
        before = {name: whole(value).clone() for name, value in model.state_dict().items()}
        loss = model(share(fabric, batches()[0])).square().mean()
        fabric.backward(loss)
        if fabric.global_rank == 1:
            next(model.parameters()).grad.to_local()[0, 0] = float("inf")
        optimizer.step()
        assert_same(model, before, tolerance=0)
        assert precision.scaler.get_scale() == 2.0
        optimizer.zero_grad()
        fabric.backward(model(share(fabric, batches()[0])).square().mean())
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        assert any((whole(value) - before[name]).abs().max() > 0 for name, value in model.state_dict().items())
    finally:
        torch.set_default_dtype(torch.float64)


@case(2)
def casts_by_mixed_precision(n, folder):
    from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy

    seen = []
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    module[0].register_forward_hook(lambda layer, _, output: seen.append((layer.weight.dtype, output.dtype)))
    module[1].register_forward_hook(lambda layer, *_: seen.append((layer.weight.dtype, layer.running_mean.dtype)))
    for given in (
        MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, buffer_dtype=torch.bfloat16),
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
    ):
        del seen[:]
        fabric = fsdp(n, mixed_precision=given)
        model = fabric.setup_module(copy_of(module).float())
        fabric.backward(model(torch.randn(8, 4)).float().sum())
        assert seen == [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)], seen
        assert {value.dtype for value in model.parameters()} == {torch.float32}


# --- wrong use


@case(2)
def wrong_use_is_named(n, folder):
    fabric = fsdp(n)
    model, _ = set_up(fabric)
    with pytest.raises(ArgumentTypeError, match="storage_options"):
        fabric.strategy.save_checkpoint(folder / "x", {"model": model.module}, storage_options={"a": 1})
    with pytest.raises(ArgumentTypeError, match="nothing exchanges gradients"):
        fabric.strategy.no_backward_sync(nn.Linear(1, 1), enabled=True)
    with pytest.raises(ConfigurationError, match="fully_shard was applied already"):
        fsdp(n, auto_wrap_policy={Block}).setup(model.module)
    with warned(fabric, "names no part of Linear"):
        fsdp(n, auto_wrap_policy={Block}).setup(nn.Linear(4, 4))
    with pytest.raises(ConfigurationError, match=r"device_mesh=\(3, 2\).* has room for 6 processes, and 2 run"):
        fsdp(n, sharding_strategy="HYBRID_SHARD", device_mesh=(3, 2))


# --- the machinery


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return case.run(tmp_path_factory, 2, 4)


@pytest.mark.timeout(600)  # the first one waits for all processes
@pytest.mark.parametrize(("name", "size"), case.places)
def test_in_processes(outcomes, name, size):
    assert not outcomes[name, size], outcomes[name, size]


# --- without processes


class OwnIO(CheckpointIO):
    def save_checkpoint(self, checkpoint, path, storage_options=None):
        pass

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return {}

    def remove_checkpoint(self, path):
        pass


class OwnShardedIO(OwnIO):
    def save_sharded(self, path, state, *, process_group=None):
        pass


def test_it_has_two_names():
    assert STRATEGY_REGISTRY.get("fsdp") is STRATEGY_REGISTRY.get("fsdp_cpu_offload") is FSDPStrategy
    for name in ("fsdp", "fsdp_cpu_offload"):
        fabric = Fabric(strategy=name, devices=2, accelerator="cpu")
        assert fabric.strategy.cpu_offload.offload_params == (name == "fsdp_cpu_offload")
        assert isinstance(fabric.strategy.launcher, ScriptLauncher)


def test_it_offers_what_some_strategies_do():
    strategy = FSDPStrategy()
    for capability in (SkipsGradientSync, ShardsAtInit, HooksForward):
        assert isinstance(strategy, capability)
    assert not strategy.hooks_forward(nn.Linear(1, 1))


@pytest.mark.parametrize("precision", ["32-true", "64-true", "16-true", "bf16-true", "bf16-mixed"])
def test_the_flag_becomes_a_precision_that_it_knows(precision):
    fabric = Fabric(strategy="fsdp", devices=2, accelerator="cpu", precision=precision)
    assert isinstance(fabric.strategy.precision, FSDPPrecision)
    assert fabric.strategy.precision.precision == precision
    assert fabric.strategy.mixed_precision_config == fabric.strategy.precision.mixed_precision_config


def test_precisions_of_other_strategies_are_refused():
    with pytest.raises(ArgumentTypeError, match=r"precision=MixedPrecision\(.*Pass FSDPPrecision\('bf16-mixed'\)"):
        FSDPStrategy(precision=MixedPrecision("bf16-mixed", "cpu"))
    with pytest.raises(ArgumentTypeError, match="FSDPPrecision"):
        Fabric(strategy="fsdp", devices=2, accelerator="cpu", plugins=MixedPrecision("bf16-mixed", "cpu"))
    own = FSDPPrecision("bf16-true", device="cpu")
    assert Fabric(strategy="fsdp", devices=2, accelerator="cpu", plugins=own).strategy.precision is own


def test_a_checkpoint_io_that_writes_no_shards_goes_with_one_file():
    with pytest.raises(ConfigurationError, match=r"OwnIO .*FSDPStrategy\(state_dict_type='full'\)"):
        Fabric(strategy="fsdp", devices=2, accelerator="cpu", plugins=OwnIO())
    for io, strategy in (
        (OwnIO(), FSDPStrategy(state_dict_type="full")),
        (OwnShardedIO(), FSDPStrategy()),
        (TorchCheckpointIO(), FSDPStrategy()),
    ):
        assert Fabric(strategy=strategy, devices=2, accelerator="cpu", plugins=io).strategy.checkpoint_io is io


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"state_dict_type": "half"}, ConfigurationError, "state_dict_type='half'"),
        ({"timeout": 5}, ArgumentTypeError, r"FSDPStrategy\(timeout=5\)"),
        ({"auto_wrap_policy": "Block"}, ArgumentTypeError, "auto_wrap_policy"),
        ({"activation_checkpointing_policy": 1}, ArgumentTypeError, "activation_checkpointing_policy"),
        ({"activation_checkpointing": [1]}, ArgumentTypeError, "activation_checkpointing"),
        (
            {"activation_checkpointing": nn.Linear, "activation_checkpointing_policy": {nn.Linear}},
            ConfigurationError,
            "says twice which parts",
        ),
    ],
)
def test_wrong_arguments_are_refused_when_it_is_made(arguments, error, message):
    with pytest.raises(error, match=message):
        FSDPStrategy(**arguments)


def test_nothing_can_be_split_before_there_are_processes():
    fabric = Fabric(strategy="fsdp", devices=2, accelerator="cpu")
    for call in (lambda: fabric.setup(nn.Linear(1, 1)), fabric.init_module, fabric.sharded_model):
        with pytest.raises(NotLaunchedError, match=r"fabric\.launch\(\)"):
            call()


def test_its_signature_is_the_promised_one():
    names = list(inspect.signature(FSDPStrategy).parameters)
    assert names[:4] == ["accelerator", "parallel_devices", "cluster_environment", "precision"]
    assert inspect.signature(FSDPStrategy).parameters["timeout"].default == timedelta(seconds=1800)
    hints = inspect.get_annotations(FSDPStrategy.__init__, eval_str=True)
    assert torch.device in hints["parallel_devices"].__args__[0].__args__


def test_a_mesh_that_does_not_fit_is_refused_before_a_process_starts():
    strategy = FSDPStrategy(sharding_strategy="HYBRID_SHARD", device_mesh=(3, 2))
    fabric = Fabric(strategy=strategy, devices=4, accelerator="cpu")
    with pytest.raises(ConfigurationError, match=r"device_mesh=\(3, 2\)\) has room for 6 processes, and 4 run"):
        fabric.launch()
