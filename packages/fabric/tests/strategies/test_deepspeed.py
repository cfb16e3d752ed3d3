"""Engines of DeepSpeed in real processes on the CPU: all stages of ZeRO, precisions and offload; nothing is compiled.

Runs where the package is installed (`nox -s deepspeed`). One group of processes per size does all cases.
"""

import os
import warnings
from functools import partial

import pytest

pytest.importorskip("deepspeed", exc_type=ImportError)

import torch
import torch.distributed as dist
from sharded_lab import Cases, Net, adam, batches, build, make_fabric, momentum, plainly, share, train, warned
from torch import nn

from fulmen.fabric import Fabric
from fulmen.fabric.checkpoint_io.consolidate import consolidate
from fulmen.fabric.checkpoint_io.deepspeed_folder import DeepSpeedFolder
from fulmen.fabric.checkpoint_io.sharded_names import is_deepspeed
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.checkpoint_io.verify import checkpoint_damage
from fulmen.fabric.errors import (
    ArgumentTypeError,
    CheckpointDamagedError,
    CheckpointError,
    CheckpointKeyError,
    ConfigurationError,
    ForwardBypassedError,
)
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.deepspeed import DeepSpeedPrecision
from fulmen.fabric.strategies.deepspeed.strategy import DeepSpeedStrategy
from fulmen.fabric.testing import assert_parity

pytestmark = pytest.mark.timeout(900)  # on a busy machine, the first import of the package takes its time

case = Cases()
TOLERANCE = 2e-6  # 32 bits: sums depend on their order
STAGES = (0, 1, 2, 3)


def deepspeed(n, /, precision=None, **kwargs):
    torch.set_default_dtype(torch.float32)
    return make_fabric(DeepSpeedStrategy(**kwargs), n, precision=precision)


def whole(fabric, model):
    return fabric.strategy.whole_weights(model._forward_module, keep=True)


def assert_weights(fabric, model, expected, tolerance=TOLERANCE):
    state = whole(fabric, model)
    assert set(state) == set(expected)
    for name, value in expected.items():
        difference = (state[name].float() - value).abs().max().item()
        assert difference <= tolerance, f"{name} differs by {difference}"


def set_up(fabric, optimizer=adam):
    model = build()
    return fabric.setup(model, optimizer(model.parameters()))


def offloaded(stage):
    return {"offload_optimizer": True, "offload_parameters": stage == 3}


# --- the same weights as one process


@case(1, 2)
def every_stage(n, folder):
    for stage in STAGES:
        for optimizer in (adam, momentum):
            fabric = deepspeed(n, stage=stage)
            model, stepping = set_up(fabric, optimizer)
            assert isinstance(stepping, torch.optim.Optimizer)
            train(fabric, model, stepping)
            assert_weights(fabric, model, plainly(optimizer)[0].state_dict())


@case(1, 2)
def without_zero(n, folder):
    fabric = deepspeed(n, zero_optimization=False)
    model, optimizer = set_up(fabric)
    train(fabric, model, optimizer)
    assert_weights(fabric, model, plainly(adam)[0].state_dict())


@case(1, 2)
def offload(n, folder):
    for stage in (1, 2, 3):
        fabric = deepspeed(n, stage=stage, **offloaded(stage))
        model, optimizer = set_up(fabric)
        train(fabric, model, optimizer)
        assert_weights(fabric, model, plainly(adam)[0].state_dict())


@case(2)
def accumulation(n, folder):
    expected = plainly(adam, accumulate=2)[0].state_dict()
    for stage in STAGES:
        for kwargs in ({}, offloaded(stage) if stage else {}):
            fabric = deepspeed(n, stage=stage, **kwargs)
            model, optimizer = set_up(fabric)
            train(fabric, model, optimizer, accumulate=2)
            assert_weights(fabric, model, expected)


@case(2)
def accumulation_by_the_engine(n, folder):
    fabric = deepspeed(n, config={"zero_optimization": {"stage": 1}, "gradient_accumulation_steps": 2})
    model, optimizer = set_up(fabric)
    for batch in batches():
        fabric.backward(model(share(fabric, batch)).square().mean())
        optimizer.step()  # after every batch: the engine counts them
    assert_weights(fabric, model, plainly(adam, accumulate=2)[0].state_dict())


@case(2)
def accumulation_that_the_sizes_say(n, folder):
    batch_size = len(share(make_fabric(DeepSpeedStrategy(stage=1), n), batches()[0]))
    sizes = {"train_micro_batch_size_per_gpu": batch_size, "train_batch_size": 2 * n * batch_size}
    fabric = deepspeed(n, config={"zero_optimization": {"stage": 2}, **sizes})
    model, optimizer = set_up(fabric)
    for batch in batches():
        fabric.backward(model(share(fabric, batch)).square().mean())
        optimizer.step()
    assert_weights(fabric, model, plainly(adam, accumulate=2)[0].state_dict())


@case(1, 2)
def clipping(n, folder):
    expected = plainly(momentum, max_norm=0.05)[0].state_dict()
    for stage in STAGES:
        fabric = deepspeed(n, config={"zero_optimization": {"stage": stage}, "gradient_clipping": 0.05})
        model, optimizer = set_up(fabric, momentum)
        train(fabric, model, optimizer)
        assert_weights(fabric, model, expected, 1e-5)


@case(1, 2)
def sixteen_bits(n, folder):
    expected = plainly(adam)[0].state_dict()
    for stage in (1, 2, 3):
        for precision in ("bf16-mixed", "16-mixed", "bf16-true"):
            fabric = deepspeed(n, precision, stage=stage, initial_scale_power=6)
            model, optimizer = set_up(fabric)
            dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
            assert model.module.start.weight.dtype is dtype
            train(fabric, model, optimizer)
            assert whole(fabric, model)["start.weight"].dtype is torch.float32
            assert_weights(fabric, model, expected, 0.1)


@case(2)
def a_loss_that_overflows_is_not_stepped(n, folder):
    fabric = deepspeed(n, "16-mixed", stage=2, initial_scale_power=24, hysteresis=1)
    model, optimizer = set_up(fabric)
    before = whole(fabric, model)
    fabric.backward(model(share(fabric, batches()[0])).square().mean())
    optimizer.step()
    assert_weights(fabric, model, before, 0.0)
    assert model._forward_module.skipped_steps == 1


@case(2)
def a_module_is_made_in_parts(n, folder):
    fabric = deepspeed(n, stage=3)
    for empty in (None, True):
        with fabric.init_module(empty_init=empty):
            model = Net()
        assert all(parameter.numel() == 0 and parameter.ds_numel for parameter in model.parameters())
    with fabric.sharded_model():
        torch.manual_seed(3)
        model = Net()
    start = fabric.strategy.get_module_state_dict(model)
    model, optimizer = fabric.setup(model, adam(model.parameters()))
    assert_weights(fabric, model, start, 0.0)
    train(fabric, model, optimizer)
    assert not torch.equal(whole(fabric, model)["start.weight"], start["start.weight"])


@case(2)
def a_scheduler_reaches_the_engine(n, folder):
    fabric = deepspeed(n, stage=2)
    model = build()
    optimizer = adam(model.parameters())
    before = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    model, optimizer, _ = fabric.setup(model, optimizer, scheduler=before)
    fabric.backward(model(share(fabric, batches()[0])).square().mean())
    optimizer.step()  # steps the scheduler too
    assert optimizer.param_groups[0]["lr"] == 0.025
    mine = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    fabric.backward(model(share(fabric, batches()[1])).square().mean())
    optimizer.step()
    mine.step()
    assert optimizer.param_groups[0]["lr"] < 0.025


@case(2)
def evaluation_needs_no_optimizer(n, folder):
    expected = build().float()
    for stage in (2, 3):
        fabric = deepspeed(n, stage=stage)
        model = fabric.setup_module(build())
        batch = batches()[0]
        with torch.no_grad():
            assert torch.allclose(model(batch), expected(batch), atol=1e-5)


@case(1, 2)
def a_second_set_up_is_a_new_run(n, folder):
    def run(fabric, module):
        model, optimizer = fabric.setup(module, momentum(module.parameters()))
        train(fabric, model, optimizer)  # says nowhere which engine
        return model

    for stage in STAGES:
        fabric, module = deepspeed(n, stage=stage), build()
        run(fabric, module)
        model = run(fabric, module)
        expected = build()
        for _ in range(2):
            optimizer = momentum(expected.parameters())
            for batch in batches():
                optimizer.zero_grad()
                expected(batch).square().mean().backward()
                optimizer.step()
        assert_weights(fabric, model, expected.state_dict())
        assert_weights(fabric, run(fabric, build()), plainly(momentum)[0].state_dict())


@case(1, 2)
def the_environment_need_not_say_the_rank(n, folder):
    fabric = deepspeed(n, stage=3)
    said = os.environ.pop("LOCAL_RANK", None)  # SLURM has another name for it, one process none
    try:
        train(fabric, *set_up(fabric))
        assert "LOCAL_RANK" not in os.environ
    finally:
        os.environ.update({} if said is None else {"LOCAL_RANK": said})


# --- checkpoints


def trained(n, stage, precision=None, count=3, **kwargs):
    fabric = deepspeed(n, precision, stage=stage, **kwargs)
    model, optimizer = set_up(fabric)
    train(fabric, model, optimizer, count=count)
    return fabric, model, optimizer


@case(1, 2)
def a_run_goes_on_exactly(n, folder):
    for stage, precision in ((0, None), (1, None), (2, "16-mixed"), (3, None), (3, "bf16-mixed")):
        path = folder / f"exact-{n}-{stage}-{precision}"
        fabric, model, optimizer = trained(n, stage, precision)
        state = {"model": model, "optimizer": optimizer, "step": 3, "lr_scheduler": {"last_epoch": 3}}
        fabric.save(path, state)
        train(fabric, model, optimizer)
        expected = whole(fabric, model)
        for other in (trained(n, stage, precision, count=1), (fabric, model, optimizer)):
            again = {"model": other[1], "optimizer": other[2], "step": 0}
            rest = fabric.load(path, again) if other[0] is fabric else other[0].load(path, again)
            assert (again["step"], rest) == (3, {"lr_scheduler": {"last_epoch": 3}})
            train(*other)
            assert_weights(other[0], other[1], expected, 0.0)


def windows():
    """The ways in which engines add up gradients: arguments, precision."""
    for stage, precision in ((0, None), (1, None), (1, "bf16-mixed"), (2, "16-mixed"), (3, "bf16-mixed")):
        yield {"stage": stage}, precision
    sums_in_32_bit = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    for stage in (2, 3):
        yield {"stage": stage, **offloaded(stage)}, None
    for zero in ({"stage": 1}, {"stage": 2}, {"stage": 2, "offload_optimizer": {"device": "cpu"}}):
        yield {"config": {**sums_in_32_bit, "zero_optimization": zero}}, None
    yield {"config": {"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": 3}}, None


@case(2)
def a_run_goes_on_exactly_inside_a_window(n, folder):
    for index, (kwargs, precision) in enumerate(windows()):
        by_engine = "gradient_accumulation_steps" in kwargs.get("config", ())

        def steps(fabric, model, optimizer, first, last, by_engine=by_engine):
            for at, batch in enumerate(batches(9)[first:last], start=first):
                fabric.backward(model(share(fabric, batch)).square().mean() / (1 if by_engine else 3))
                if by_engine or at % 3 == 2:
                    optimizer.step()

        path = folder / f"inside-{index}"
        one, other = (deepspeed(n, precision, initial_scale_power=4, **kwargs) for _ in range(2))
        model, optimizer = set_up(one)
        steps(one, model, optimizer, 0, 5)  # a whole window, and two of three batches
        one.save(path, {"model": model})
        assert checkpoint_damage(path) is None
        steps(one, model, optimizer, 5, 9)
        expected = whole(one, model)
        model, optimizer = set_up(other)
        other.load(path, {"model": model})
        steps(other, model, optimizer, 5, 9)
        assert_weights(other, model, expected, 0.0)
    third = deepspeed(n, stage=1)
    model, optimizer = set_up(third)
    with warned(third, "inside an accumulation window"):  # of stage 2
        third.load(folder / "inside-5", {"model": model})


@case(2)
def what_others_go_on_from(n, folder):
    for stage in (1, 2, 3):
        fabric, model, optimizer = trained(n, stage)
        fabric.save(folder / f"by-two-{stage}", {"model": model, "optimizer": optimizer, "note": "here"})
        train(fabric, model, optimizer)
        expected = whole(fabric, model)
        if fabric.is_global_zero:
            torch.save(expected, folder / f"expected-{stage}.pt")


@case(2)
def another_stage_goes_on(n, folder):
    for before in (1, 2, 3):
        for after in (1, 2, 3):
            fabric, model, optimizer = trained(n, after, count=1)
            state = {"model": model, "optimizer": optimizer, "note": ""}
            fabric.load(folder / f"by-two-{before}", state)
            assert state["note"] == "here"
            train(fabric, model, optimizer)
            assert_weights(fabric, model, torch.load(folder / f"expected-{before}.pt"))
            assert model._forward_module.global_steps == 7


@case(3)
def another_number_of_processes_goes_on(n, folder):
    # Batches of 8 are not divided by 3: all see all of them, which is what two saw together.
    for before in (1, 2, 3):
        for after in (1, 3):
            fabric, model, optimizer = trained(n, after, count=0)
            fabric.load(folder / f"by-two-{before}", {"model": model, "optimizer": optimizer})
            for batch in batches():
                fabric.backward(model(batch).square().mean())
                optimizer.step()
            assert_weights(fabric, model, torch.load(folder / f"expected-{before}.pt"))


@case(2)
def one_file_of_a_folder(n, folder):
    for stage in (1, 2, 3):
        place = folder / f"by-two-{stage}"
        output = folder / f"one-{stage}.pt"
        if dist.get_rank() == 0:
            consolidate(place, output)
        dist.barrier()
        found = torch.load(output, weights_only=True)
        assert found["note"] == "here"
        assert torch.serialization.get_unsafe_globals_in_checkpoint(output) == []
        plain = Net()
        plain.load_state_dict(found["state_dict"])
        assert_same_state(plain.state_dict(), plainly(adam, count=3)[0].state_dict())


def assert_same_state(one, other):
    assert list(one) == list(other)
    for name, value in other.items():
        assert (one[name] - value).abs().max() <= TOLERANCE, name


@case(2)
def one_file_goes_on_in_an_engine(n, folder):
    plain, optimizer = plainly(adam, count=3)
    path = folder / "plain.ckpt"
    if dist.get_rank() == 0:
        TorchCheckpointIO().save_checkpoint(
            {"model": plain.state_dict(), "optimizer": optimizer.state_dict(), "note": 1}, path
        )
    dist.barrier()
    for batch in batches():
        plain(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for stage in (1, 2, 3):
        fabric, model, stepping = trained(n, stage, count=1)
        rest = fabric.load(path, {"model": model, "optimizer": stepping})
        assert rest == {"note": 1}
        train(fabric, model, stepping)
        assert_weights(fabric, model, plain.state_dict())


@case(2)
def frozen_and_tied_parameters(n, folder):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.one, self.two = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
            self.two.weight = self.one.weight
            self.frozen = nn.Linear(5, 5).requires_grad_(False)

        def forward(self, x):
            return self.frozen(self.two(self.one(x)))

    for stage in (1, 2, 3):
        for leaves_out in (False, True):
            fabric = deepspeed(n, stage=stage, exclude_frozen_parameters=leaves_out)
            module = Tied()
            model, optimizer = fabric.setup(module, adam([one for one in module.parameters() if one.requires_grad]))
            train(fabric, model, optimizer)
            path = folder / f"tied-{stage}-{leaves_out}"
            fabric.save(path, {"model": model})
            expected = fabric.strategy.get_module_state_dict(model._forward_module)
            weights = DeepSpeedFolder(path).weights()
            names = {name for name in expected if not (leaves_out and "frozen" in name)}
            assert set(weights) >= names, (stage, leaves_out)
            for name in names:
                assert torch.equal(weights[name], expected[name]), (stage, name)
            fabric.load(path, {"model": model})
            assert torch.equal(whole(fabric, model)["frozen.weight"], expected["frozen.weight"])


@case(1)
def a_damaged_folder_is_told_from_a_whole_one(n, folder):
    fabric, model, _ = trained(n, 2)
    path = folder / "damaged"
    fabric.save(path, {"model": model})
    assert is_deepspeed(path)
    assert checkpoint_damage(path) is None
    assert sorted(os.listdir(path)) == ["checkpoint", "latest", "zero_to_fp32.py", "zero_to_torch.py"]
    name = next((path / "checkpoint").glob("*optim_states.pt"))
    content = bytearray(name.read_bytes())
    content[len(content) // 2] ^= 1
    name.write_bytes(content)
    assert "damaged" in checkpoint_damage(path)
    with pytest.raises(CheckpointDamagedError):
        fabric.load(path, {"model": model})
    fabric.save(path, {"model": model})
    assert checkpoint_damage(path) is None
    assert [one for one in os.listdir(folder) if one.startswith(".")] == []


@case(2)
def what_cannot_be_saved_leaves_nothing(n, folder):
    fabric, model, _ = trained(n, 2)
    path = folder / "unsafe"
    for value in (Net(), lambda: None):
        wrong = [value] if fabric.global_rank == 0 else [1]
        with pytest.raises(CheckpointError):
            fabric.save(path, {"model": model, "wrong": wrong})
    fabric.barrier()
    assert [one for one in os.listdir(folder) if "unsafe" in one] == []


def heard(section, name):
    """What an engine has read of a section."""
    kept = section if isinstance(section, dict) else vars(section)
    return kept[name]


@case(1)
def the_engine_reads_every_argument(n, folder):
    """So that no name is one that this DeepSpeed does not know."""
    offload = {"stage": 3, "offload_optimizer": True, "offload_parameters": True}
    recomputed = {"partition_activations": True, "config": {"activation_checkpointing": {"number_checkpoints": 2}}}
    values = {
        ("reduce_bucket_size", "allgather_bucket_size"): (1000, lambda c: c.zero_config, {}),
        ("contiguous_gradients", "overlap_comm", "reduce_scatter"): (False, lambda c: c.zero_config, {}),
        ("allgather_partitions",): (False, lambda c: c.zero_config, {}),
        ("sub_group_size",): (100, lambda c: c.zero_config, {"stage": 3}),
        ("params_buffer_count", "params_buffer_size", "max_in_cpu"): (
            3,
            lambda c: c.zero_config.offload_param,
            offload,
        ),
        ("optimizer_buffer_count",): (9, lambda c: c.zero_config.offload_optimizer, offload),
        ("pin_memory",): (True, lambda c: c.zero_config.offload_optimizer, offload),
        ("block_size", "queue_depth", "thread_count"): (4096, lambda c: c.aio_config, {}),
        ("single_submit",): (True, lambda c: c.aio_config, {}),
        ("overlap_events",): (False, lambda c: c.aio_config, {}),
        ("cpu_checkpointing", "synchronize_checkpoint_boundary"): (
            True,
            lambda c: c.activation_checkpointing_config,
            {},
        ),
        ("contiguous_memory_optimization",): (True, lambda c: c.activation_checkpointing_config, recomputed),
        ("loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale"): (
            8,
            lambda c: c.float16_config,
            {"precision": "16-mixed"},
        ),
        ("zero_allow_untested_optimizer",): (False, vars, {}),
    }
    renamed = {"thread_count": "intra_op_parallelism"}
    for names, (value, section, more) in values.items():
        more, here = dict(more), dict.fromkeys(names, value)
        if "config" in more:
            more["config"] = {"zero_optimization": {"stage": 2}} | more["config"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some change nothing beside the others
            fabric = deepspeed(n, **here, **more)
        module = build()
        model, optimizer = fabric.setup(module, torch.optim.AdamW(module.parameters()))
        engine = model._forward_module
        for name in names:
            place = renamed.get(name) or name.removeprefix("params_").removeprefix("optimizer_")
            assert heard(section(engine._config), place) == value, name
        fabric.backward(model(batches()[0].float()).square().mean(), model=model)
        optimizer.step()
    fabric = deepspeed(n, stage=3, offload_parameters=True, pin_memory=True)
    module = build()
    model, _ = fabric.setup(module, adam(module.parameters()))
    assert model._forward_module._config.zero_config.offload_param.pin_memory
    module = build()
    with pytest.raises(ConfigurationError, match=r"zero_allow_untested_optimizer=False.*cannot step with SGD"):
        deepspeed(n, zero_allow_untested_optimizer=False).setup(module, momentum(module.parameters()))


# --- what is refused, where the processes are


@case(1)
def misuse(n, folder):
    fabric = deepspeed(n)
    module = build()
    with pytest.raises(ConfigurationError, match="got 2 optimizers"):
        fabric.setup(module, adam(module.start.parameters()), adam(module.end.parameters()))
    with pytest.raises(ConfigurationError, match=r"fabric\.setup\(model, optimizer\)"):
        fabric.setup_optimizers(adam(module.parameters()))
    with pytest.raises(ConfigurationError, match="no engine that trains"):
        fabric.backward(torch.ones((), requires_grad=True))
    model, optimizer = fabric.setup(module, adam(module.parameters()))
    for kwargs in ({"max_norm": 1.0}, {"clip_val": 1.0}):
        with pytest.raises(ConfigurationError, match="gradient_clipping"):
            fabric.clip_gradients(model, optimizer, **kwargs)
    loss = model(batches()[0].float()).square().mean()
    with pytest.raises(ForwardBypassedError, match=r"fabric\.backward"):
        loss.backward()
    with pytest.raises(ArgumentTypeError, match="create_graph"):
        fabric.backward(loss, create_graph=True)
    fabric.backward(model(batches()[0].float()).square().mean())
    with pytest.raises(ConfigurationError, match="between backward and step"):
        optimizer.zero_grad()
    optimizer.step()
    for call in (
        lambda: optimizer.add_param_group({"params": []}),
        lambda: optimizer.optimizer.state_dict(),
        lambda: optimizer.optimizer.load_state_dict({}),
    ):
        with pytest.raises(ConfigurationError, match="with DeepSpeed"):
            call()
    with pytest.raises(ConfigurationError, match="no module that was set up"):
        fabric.save(folder / "x", {"step": 1})
    with pytest.raises(ArgumentTypeError, match="filter"):
        fabric.save(folder / "x", {"model": model}, filter={"model": lambda name, value: True})
    with pytest.raises(CheckpointError, match="local"):
        fabric.save("memory://x", {"model": model})
    fabric.save(folder / "small", {"model": model, "step": 1})
    with pytest.raises(CheckpointKeyError, match="other"):
        fabric.load(folder / "small", {"model": model, "other": 1})
    second = build()
    model2, _ = fabric.setup(second, adam(second.parameters()))
    with pytest.raises(ConfigurationError, match="2 engines"):
        fabric.backward(model2(batches()[0].float()).mean())
    fabric.backward(model2(batches()[0].float()).mean(), model=model2)
    with pytest.raises(ConfigurationError, match="2 modules"):
        fabric.save(folder / "x", {"model": model, "other": model2})


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    import deepspeed  # noqa: F401 (once, and not in each process)

    return case.run(tmp_path_factory, 1, 2, 3)


@pytest.mark.parametrize(("name", "size"), case.places)
def test_in_processes(outcome, name, size):
    assert outcome[name, size] == "", outcome[name, size]


def test_users_can_ask_for_parity():
    assert_parity(
        partial(Net, 7),
        batches(),
        loss=lambda model, batch: model(batch).square().mean(),
        optimizer=adam,
        strategy={f"stage {stage}": DeepSpeedStrategy(stage=stage) for stage in (2, 3)},
        accumulate=2,
        dtype=torch.float32,
        tolerance=TOLERANCE,
    )


# --- what is refused when it is made


def test_flags_that_contradict_the_configuration_are_refused_before_a_process_starts():
    def strategy(**kwargs):
        return DeepSpeedStrategy(config={"bf16": {"enabled": True}}, **kwargs)

    assert Fabric(accelerator="cpu", devices=2, strategy=strategy()).strategy.precision.precision == "bf16-mixed"
    assert (
        Fabric(accelerator="cpu", strategy=strategy(), precision="bf16-true").strategy.precision.dtype is torch.bfloat16
    )
    with pytest.raises(ConfigurationError, match=r"Fabric\(precision='32-true'\).*bf16\.enabled is True"):
        Fabric(accelerator="cpu", devices=2, strategy=strategy(), precision="32-true")
    with pytest.raises(ConfigurationError, match=r"precision='64-true'"):
        Fabric(accelerator="cpu", strategy="deepspeed", precision="64-true")
    with pytest.raises(ConfigurationError, match=r"DeepSpeedPrecision\('16-mixed'\).*bf16"):
        strategy(precision=DeepSpeedPrecision("16-mixed"))
    with pytest.raises(ArgumentTypeError, match="DeepSpeedPrecision"):
        DeepSpeedStrategy(precision=Precision())
    with pytest.raises(ConfigurationError, match="TorchCheckpointIO"):
        Fabric(accelerator="cpu", strategy="deepspeed", plugins=TorchCheckpointIO())
    fabric = Fabric(accelerator="cpu", devices=2, strategy=DeepSpeedStrategy(config={"train_batch_size": 7}))
    with pytest.raises(ConfigurationError, match=r"train_batch_size=7, which cannot be divided.* 2 processes"):
        fabric.launch(lambda _: pytest.fail("began"))
    # float16 is computed on the CPU, too: the engine keeps 32-bit master weights.
    assert Fabric(accelerator="cpu", strategy="deepspeed", precision=16).strategy.precision.precision == "16-mixed"


def test_the_environment_names_a_configuration(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text('{"zero_optimization": {"stage": 3}}')
    monkeypatch.setenv(DeepSpeedStrategy.DEEPSPEED_ENV_VAR, str(path))
    assert DeepSpeedStrategy().zero_stage_3
    with pytest.raises(ConfigurationError, match=r"stage=2\).*zero_optimization\.stage is 3"):
        Fabric(accelerator="cpu", strategy="deepspeed_stage_2")
    path.write_text("{}")
    assert Fabric(accelerator="cpu", strategy="deepspeed_stage_2").strategy.config == {
        "zero_optimization": {"stage": 2}
    }
    with pytest.warns(UserWarning, match="no section 'zero_optimization'.*replica"):
        DeepSpeedStrategy()
    path.write_text('{"zero_optimization": {"stage": 3}}')
    assert DeepSpeedStrategy(config=path).config == {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"load_full_weights": 1}, ArgumentTypeError, "load_full_weights=1"),
        ({"exclude_frozen_parameters": "yes"}, ArgumentTypeError, "exclude_frozen_parameters='yes'"),
        ({"logging_batch_size_per_gpu": "auto"}, ArgumentTypeError, "logging_batch_size_per_gpu='auto'"),
        ({"logging_level": "INFO"}, ArgumentTypeError, "logging_level='INFO'"),
        ({"loss_scale": -1}, ConfigurationError, "loss_scale=-1"),
        ({"hysteresis": "2"}, ArgumentTypeError, "hysteresis='2'"),
        ({"remote_device": "cpu"}, ConfigurationError, "remote_device='cpu'"),
        ({"timeout": 5}, ArgumentTypeError, "timeout=5"),
    ],
)
def test_wrong_arguments_are_refused_when_it_is_made(kwargs, error, message):
    with pytest.raises(error, match=message):
        DeepSpeedStrategy(**kwargs)
