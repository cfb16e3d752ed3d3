"""Checkpoints of modules that are split over processes, saved and loaded by real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from sharded_lab import (
    TOLERANCE,
    Block,
    Cases,
    Net,
    adam,
    assert_same,
    assert_same_optimizer,
    batches,
    build,
    copy_of,
    fsdp,
    model_parallel,
    momentum,
    plainly,
    set_up,
    share,
    train,
    whole,
)
from torch import nn

from fulmen.fabric import Fabric
from fulmen.fabric.checkpoint_io.sharded_names import is_sharded
from fulmen.fabric.errors import CheckpointError, CheckpointKeyError, ConfigurationError
from fulmen.fabric.strategies.sharded_state import optimizer_state_by_name

case = Cases()


# --- checkpoints


def extras(n):  # beside modules and optimizers
    return {"step": 4, "nested": {"lr": [0.1, 0.2]}, "tensor": torch.arange(3.0)}


def save(fabric, folder, name, **kwargs):
    model, optimizer = set_up(fabric, adam, width=8)
    train(fabric, model, optimizer)
    fabric.save(folder / name, {"model": model, "optimizer": optimizer, **extras(0)}, **kwargs)
    return model, optimizer


def load(fabric, path, plain, *, model_only=False):
    model, optimizer = set_up(fabric, adam, width=8)
    state = {"model": model, "optimizer": optimizer, "step": 0, "nested": None, "tensor": None}
    if model_only:
        fabric.load(path, {"model": model})
        assert_same(model, plain[0])
        return
    for group in optimizer.param_groups:
        group["lr"] = 7.0
    rest = fabric.load(path, state)
    assert rest == {}
    assert_same(model, plain[0])
    assert_same_optimizer(optimizer, plain[1])
    assert state["step"] == 4
    assert state["nested"] == {"lr": [0.1, 0.2]}
    assert torch.equal(state["tensor"], torch.arange(3.0))
    # And it goes on as if nothing had been.
    more, more_optimizer = plainly(adam, width=8)
    for batch in batches(6)[4:]:
        fabric.backward(model(share(fabric, batch)).square().mean())
        optimizer.step()
        optimizer.zero_grad()
        more(batch).square().mean().backward()
        more_optimizer.step()
        more_optimizer.zero_grad()
    assert_same(model, more)


SAVERS = {
    "fsdp": lambda n: fsdp(n, auto_wrap_policy={Block}),
    "fsdp_full": lambda n: fsdp(n, auto_wrap_policy={Block}, state_dict_type="full"),
    "no_shard": lambda n: fsdp(n, sharding_strategy="NO_SHARD"),
    "tensor": lambda n: model_parallel(n, n // 2, 2),
    "tensor_full": lambda n: model_parallel(n, n // 2, 2, save_distributed_checkpoint=False),
}


@case(2, 4)
def a_save_checkpoints(n, folder):
    for name, saver in SAVERS.items():
        path = folder / f"{name}_{n}"
        fabric = saver(n)
        save(fabric, folder, path.name)
        assert is_sharded(path) == (not name.endswith("full"))
        if fabric.global_rank == 0 and name.endswith("full"):
            loaded = torch.load(path, weights_only=True)
            model, optimizer = build(8), None
            model.load_state_dict(loaded["model"])
            optimizer = adam(model.parameters())
            optimizer.load_state_dict(loaded["optimizer"])
            plain = plainly(adam, width=8)
            assert_same(model, plain[0])
            assert_same_optimizer(optimizer, plain[1])


@case(2, 4, 1)
def b_load_checkpoints_of_every_layout(n, folder):
    """Of two and four processes, into one, two and four."""
    plain = plainly(adam, width=8)
    for path in sorted(path for name in SAVERS for path in folder.glob(f"{name}_[24]")):
        for loader in ("fsdp", "tensor") if n > 1 else ("fsdp",):
            load(SAVERS[loader](n), path, plain)
    load(SAVERS["no_shard"](n), folder / "fsdp_2", plain)
    load(fsdp(n, cpu_offload=True), folder / "fsdp_2", plain)
    load(fsdp(n, cpu_offload=True), folder / "fsdp_full_2", plain)


@case(1)
def b_without_a_strategy(n, folder):
    """A file that was saved whole is that of any strategy."""
    fabric = Fabric(accelerator="cpu")
    plain = plainly(adam, width=8)
    for name in ("fsdp_full_4", "tensor_full_2"):
        model = build(8)
        model, optimizer = fabric.setup(model, adam(model.parameters()))
        fabric.load(folder / name, {"model": model, "optimizer": optimizer})
        assert_same(model, plain[0])
        assert_same_optimizer(optimizer, plain[1])


@case(2)
def parts_that_are_compiled(n, folder):
    """Names are as if they were not, of weights and in the state of optimizers; older names are understood."""

    def build_with(compiled):
        model = build(8)
        model.blocks[1] = torch.compile(model.blocks[1], backend="eager") if compiled else model.blocks[1]
        return model, adam(model.parameters())

    plain = plainly(adam, width=8)
    for name, saver in SAVERS.items():
        for saved_compiled in (True, False):
            path = folder / f"compiled_{saved_compiled}_{name}"
            fabric = saver(n)
            model, optimizer = fabric.setup(*build_with(saved_compiled))
            train(fabric, model, optimizer)
            fabric.save(path, {"model": model, "optimizer": optimizer})
            for compiled in (True, False):
                other, other_optimizer = fabric.setup(*build_with(compiled))
                fabric.load(path, {"model": other, "optimizer": other_optimizer})
                assert_same(other, plain[0])
                assert_same_optimizer(other_optimizer, plain[1])
    # As it is written where nobody takes the wrappers out.
    import torch.distributed.checkpoint as dcp

    fabric = SAVERS["fsdp"](n)
    model, optimizer = fabric.setup(*build_with(True))
    train(fabric, model, optimizer)
    names = [name for name, _ in model.module.named_parameters()]
    assert any("_orig_mod" in name for name in names)
    state = {"model": model.module.state_dict(), "optimizer": optimizer_state_by_name(optimizer.optimizer, names)}
    dcp.save(state, checkpoint_id=folder / "compiled_before")
    for compiled in (True, False):
        other, other_optimizer = fabric.setup(*build_with(compiled))
        fabric.load(folder / "compiled_before", {"model": other, "optimizer": other_optimizer})
        assert_same(other, plain[0])
        assert_same_optimizer(other_optimizer, plain[1])


@case(2)
def folders_and_files_of_others(n, folder):
    """As torch's own functions write them, and Lightning with them: optimizers by name, and meta.pt for the rest."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    plain = plainly(adam, width=8)
    fabric = SAVERS["fsdp"](n)
    model, optimizer = set_up(fabric, adam, width=8)
    train(fabric, model, optimizer)
    state = get_optimizer_state_dict(model.module, optimizer.optimizer)
    path = folder / "others"
    dcp.save({"model": model.module.state_dict(), "optimizer": state}, checkpoint_id=path)
    by_name = plain[1].state_dict()
    names = list(dict(plain[0].named_parameters()))
    by_name["state"] = {names[place]: value for place, value in by_name["state"].items()}
    by_name["param_groups"] = [{**group, "params": names} for group in by_name["param_groups"]]
    if fabric.is_global_zero:
        torch.save(extras(n), path / "meta.pt")
        torch.save({"model": plain[0].state_dict(), "optimizer": by_name, **extras(n)}, folder / "others.pt")
    fabric.barrier()
    load(fabric, path, plain)
    load(fabric, folder / "others.pt", plain)


@case(2)
def saves_in_the_background(n, folder):
    from fulmen.fabric.checkpoint_io.background import AsyncCheckpointIO

    for state_dict_type in ("sharded", "full"):
        io = AsyncCheckpointIO()
        fabric = fsdp(n, auto_wrap_policy={Block}, state_dict_type=state_dict_type, plugins=io)
        path = folder / f"background_{state_dict_type}"
        model, _ = save(fabric, folder, path.name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()  # the save has its copy
        load(fabric, path, plainly(adam, width=8))
        fabric.strategy.teardown()


@case(2)
def remote_files(n, folder):
    fabric = SAVERS["fsdp_full"](n)
    path = "memory://sharded/model.pt"  # rank 0 has it, and nobody else
    model, optimizer = set_up(fabric, adam, width=8)
    train(fabric, model, optimizer)
    fabric.save(path, {"model": model})
    other = fabric.setup_module(Net(8))
    assert fabric.load(path, {"model": other}) == {}
    assert_same(other, plainly(adam, width=8)[0])


@case(2)
def b_what_is_asked_for(n, folder):
    fabric = SAVERS["fsdp"](n)
    plain = plainly(adam, width=8)
    for name in ("fsdp_2", "fsdp_full_2"):
        load(fabric, folder / name, plain, model_only=True)
        everything = fabric.load(folder / name)
        assert set(everything) == {"model", "optimizer", *extras(0)}
        assert_same_tensors(everything["model"], plain[0])
        model, _ = set_up(fabric, adam, width=8)
        rest = fabric.load(folder / name, {"model": model})
        assert {"step", "nested"} <= set(rest)
        with pytest.raises(CheckpointKeyError, match="does not hold 'other'"):
            fabric.load(folder / name, {"model": model, "other": 1})
        fabric.load(folder / name, {"model": model, "other": 1}, strict=False)
        with pytest.raises(ConfigurationError, match="names nothing to load into"):
            fabric.load(folder / name, {})
        wrong = fabric.setup_module(nn.Sequential(nn.Linear(5, 8)))
        with pytest.raises((CheckpointKeyError, RuntimeError), match=r"0\.weight"):
            fabric.load(folder / name, {"model": wrong})
        fabric.load(folder / name, {"model": wrong}, strict=False)
        smaller = fabric.setup_module(Net(6))
        with pytest.raises(CheckpointError, match="shape"):
            fabric.load(folder / name, {"model": smaller})


def assert_same_tensors(state, plain):
    for name, value in plain.state_dict().items():
        assert (whole(state[name]) - value).abs().max().item() <= TOLERANCE


@case(2)
def filters_and_bare_states(n, folder):
    plain = plainly(adam, width=8)
    for name, saver in (("fsdp", SAVERS["fsdp"]), ("fsdp_full", SAVERS["fsdp_full"])):
        fabric = saver(n)
        path = folder / f"filtered_{name}"
        model, optimizer = save(
            fabric, folder, path.name, filter={"model": lambda key, _: "blocks" in key, "optimizer": lambda *_: False}
        )
        found = fabric.load(path)
        assert found["model"].keys() == {key for key in plain[0].state_dict() if "blocks" in key}
        assert not found.get("optimizer")
        with pytest.raises(ConfigurationError, match="names nothing in the state"):
            fabric.save(path, {"model": model}, filter={"other": lambda *_: True})
    bare = folder / "bare.pt"
    if fabric.global_rank == 0:
        torch.save(plain[0].state_dict(), bare)
        torch.save(plain[1].state_dict(), folder / "bare_optimizer.pt")
    fabric.barrier()
    model, optimizer = set_up(fabric, adam, width=8)
    fabric.load_raw(bare, model)
    fabric.load_raw(folder / "bare_optimizer.pt", optimizer)
    assert_same(model, plain[0])
    assert_same_optimizer(optimizer, plain[1])
    state = copy_of(optimizer.state_dict())
    optimizer.load_state_dict(state)
    assert_same_optimizer(optimizer, plain[1])
    for path in (bare, folder / "bare_optimizer.pt", folder / "filtered_fsdp_full"):
        fabric.barrier()
        path.unlink(missing_ok=True)
    fabric.barrier()
    if fabric.global_rank == 0:
        import shutil

        shutil.rmtree(folder / "filtered_fsdp")
    fabric.barrier()


@case(2)
def a_state_that_names_have_changed_in(n, folder):
    class Renamed(Net):
        def __init__(self):
            super().__init__(8)
            self.register_load_state_dict_pre_hook(self.rename)

        @staticmethod
        def rename(module, state, *_):
            for name in [name for name in state if name.startswith("old.")]:
                state[name.replace("old.", "start.")] = state.pop(name)

    fabric = SAVERS["fsdp"](n)
    plain = plainly(adam, width=8)[0]
    model = fabric.setup_module(Renamed())
    state = {name.replace("start.", "old."): value for name, value in plain.state_dict().items()}
    fabric.strategy.load_module_state_dict(model.module, state)
    assert_same(model, plain)


@case(4)
def c_a_whole_file_takes_little_memory(n, folder):
    """Of a file of 128 MiB, each of four processes takes 32 MiB; beside that, it needs a few."""
    path = folder / "large.pt"
    rows, columns, layers = 4096, 1024, 4
    if dist.get_rank() == 0:
        torch.save(
            {f"{i}.weight": torch.full((rows, columns), i + 1.0, dtype=torch.double) for i in range(layers)}, path
        )
    dist.barrier()
    fabric = fsdp(n, auto_wrap_policy={nn.Linear})
    with fabric.init_module(empty_init=True):
        module = nn.Sequential(*(nn.Linear(columns, rows, bias=False) for _ in range(layers)))
    model = fabric.setup_module(module)
    mebibytes = rows * columns * 8 * layers / 2**20
    with PeakOfOwnMemory() as peak:
        fabric.load_raw(path, model)
    assert peak.mebibytes < 0.1 * mebibytes, f"{peak.mebibytes} MiB beside the shard, of {mebibytes}"
    for index, layer in enumerate(model.module):
        assert bool((layer.weight.to_local() == index + 1).all())
    dist.barrier()
    if dist.get_rank() == 0:
        path.unlink()


class PeakOfOwnMemory:
    """How much more memory of its own this process had inside than before; what is mapped from files is not counted."""

    def __enter__(self):
        import threading

        self._start = self._highest = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.mebibytes = (self._highest - self._start) / 1024

    def _watch(self):
        while not self._stop.wait(0.002):
            self._highest = max(self._highest, self._now())

    @staticmethod
    def _now():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@case(2)
def state_that_cannot_be_saved_is_named(n, folder):
    fabric = fsdp(n)
    model, _ = set_up(fabric)
    other = build()
    stranger = momentum([*model.parameters(), *other.parameters()])
    with pytest.raises(ConfigurationError, match="is in no module that was set up"):
        fabric.save(folder / "x", {"optimizer": stranger})


# --- the machinery


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return case.run(tmp_path_factory, 2, 4, 1)


@pytest.mark.timeout(600)  # the first one waits for all processes
@pytest.mark.parametrize(("name", "size"), case.places)
def test_in_processes(outcomes, name, size):
    assert not outcomes[name, size], outcomes[name, size]
