import inspect
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.fabric.accelerators.cpu import CPUAccelerator
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.fabric import Fabric
from fulmen.fabric.loggers.csv import CSVLogger
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy
from fulmen.fabric.wrappers import FabricDataLoader, FabricModule, FabricOptimizer

BATCHES = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))


def build(seed=1):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return net, torch.optim.SGD(net.parameters(), lr=0.1)


def trained_plainly(steps=4):
    net, optimizer = build()
    for batch in BATCHES[:steps]:
        optimizer.zero_grad()
        net(batch).pow(2).mean().backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def weights(net):
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def fabric_on_cpu(**flags):
    return Fabric(accelerator="cpu", **flags)


# --- one process ---


def test_a_loop_gives_what_the_plain_loop_gives_bit_for_bit():
    fabric = fabric_on_cpu()
    model, optimizer = fabric.setup(*build())
    loader = fabric.setup_dataloaders(DataLoader(BATCHES, batch_size=None))
    for batch in loader:
        optimizer.zero_grad()
        fabric.backward(model(batch).pow(2).mean())
        optimizer.step()
    assert torch.equal(weights(model), trained_plainly())
    assert (type(model), type(optimizer), type(loader)) == (FabricModule, FabricOptimizer, FabricDataLoader)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("64-true", torch.float64), (None, torch.float32)]
)
def test_precisions_train(precision, dtype):
    fabric = fabric_on_cpu(precision=precision)
    net, optimizer = build()
    seen = []
    net[0].register_forward_hook(lambda _, args, output: seen.append(output.dtype))
    model, optimizer = fabric.setup(net, optimizer)
    for batch in BATCHES:
        optimizer.zero_grad()
        fabric.backward(model(batch).pow(2).mean())
        optimizer.step()
    assert seen[-1] == dtype
    assert torch.allclose(weights(model).float(), trained_plainly(), atol=0.02)
    with fabric.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_what_comes_back():
    fabric = fabric_on_cpu()
    net, optimizer = build()
    scheduler = object()
    assert isinstance(fabric.setup(build()[0]), FabricModule)
    model, *optimizers, same = fabric.setup(
        net, optimizer, torch.optim.SGD(net.parameters(), lr=1), scheduler=scheduler
    )
    assert model.module is net
    assert [type(one) for one in optimizers] == [FabricOptimizer] * 2
    assert same is scheduler
    net, optimizer = build()
    assert isinstance(fabric.setup_module(net), FabricModule)
    assert isinstance(fabric.setup_optimizers(optimizer), FabricOptimizer)
    net, optimizer = build()
    assert isinstance(fabric.setup_optimizers(optimizer, torch.optim.SGD(net.parameters(), lr=1)), tuple)
    loaders = fabric.setup_dataloaders(DataLoader(BATCHES), DataLoader(BATCHES))
    assert isinstance(loaders, list)


def test_without_launch_the_device_is_taken_when_a_module_is_set_up():
    class Recording(CPUAccelerator):
        taken: list = []  # noqa: RUF012

        def setup_device(self, device):
            self.taken.append(device)

    fabric = Fabric(accelerator=Recording())
    fabric.setup(*build(), move_to_device=False)
    assert Recording.taken == []
    fabric.setup(*build())
    assert Recording.taken == [fabric.device]


def test_a_compiled_module_is_compiled_again():
    net, optimizer = build()
    compiled = torch.compile(net, backend="eager")
    model, _ = fabric_on_cpu().setup(compiled, optimizer)
    assert model.module is net
    assert type(model._forward_module) is type(compiled)
    assert torch.equal(model(BATCHES[0]), net(BATCHES[0]))
    left = fabric_on_cpu().setup_module(torch.compile(build()[0], backend="eager"), _reapply_compile=False)
    assert left._forward_module is left.module


def test_clipping():
    fabric = fabric_on_cpu()
    model, optimizer = fabric.setup(*build())
    fabric.backward((model(BATCHES[0]) * 100).pow(2).mean())
    norm = fabric.clip_gradients(model, optimizer, max_norm=0.5)
    assert norm > 0.5
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert gradients.norm().item() == pytest.approx(0.5, rel=1e-3)
    assert fabric.clip_gradients(model, optimizer, clip_val=0.01) is None
    assert max(parameter.grad.abs().max() for parameter in model.parameters()) <= 0.01
    with fabric.no_backward_sync(model):
        pass


def test_save_and_load(tmp_path: Path):
    fabric = fabric_on_cpu()
    model, optimizer = fabric.setup(*build())
    state = {"model": model, "optimizer": optimizer, "epoch": 3, "more": [1, 2]}
    fabric.save(tmp_path / "all.ckpt", state, filter={"more": lambda name, value: True})
    before = weights(model)
    fresh, fresh_optimizer = fabric.setup(*build(seed=2))
    into = {"model": fresh, "optimizer": fresh_optimizer, "epoch": 0}
    rest = fabric.load(tmp_path / "all.ckpt", into)
    assert torch.equal(weights(fresh), before)
    assert (into["epoch"], into["model"], rest) == (3, fresh, {"more": [1, 2]})
    assert set(fabric.load(tmp_path / "all.ckpt")) == {"model", "optimizer", "epoch", "more"}
    assert set(fabric.load(tmp_path / "all.ckpt")["model"]) == set(model.module.state_dict())

    torch.save(model.state_dict(), tmp_path / "raw.pt")
    fabric.load_raw(tmp_path / "raw.pt", other := fabric.setup(build(seed=3)[0]))
    assert torch.equal(weights(other), before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.ckpt", "raw.pt"]


def test_metrics_go_to_the_loggers(tmp_path: Path):
    fabric = fabric_on_cpu(loggers=CSVLogger(tmp_path))
    fabric.log("loss", torch.tensor(0.5), step=1)
    fabric.log_dict({"loss": 0.25, "accuracy": torch.tensor(1)}, step=2)
    fabric.logger.save()
    written = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "0.5" in written
    assert "accuracy" in written
    assert fabric.loggers == [fabric.logger]
    with pytest.raises(ConfigurationError, match="CSVLogger"):
        _ = fabric_on_cpu().logger


class Talker:
    word = "no method"

    def __init__(self):
        self.heard = []

    def on_after_setup(self, fabric, module):
        self.heard.append((fabric, module))

    def on_after_optimizer_step(self, strategy, optimizer):
        self.heard.append(optimizer)

    def speak(self, *args, **kwargs):
        self.heard.append((args, kwargs))


def test_callbacks_are_called():
    talker = Talker()
    fabric = fabric_on_cpu(callbacks=[talker, object()])
    fabric.call("speak", 1, loud=True)
    fabric.call("nobody_has_this")
    with pytest.warns(UserWarning, match=r"call\('word'\) skipped Talker"):
        fabric.call("word")
    model, optimizer = fabric.setup(*build())
    fabric.backward(model(BATCHES[0]).sum())
    optimizer.step()
    assert talker.heard == [((1,), {"loud": True}), (fabric, model), optimizer.optimizer]


def test_alone_there_is_nobody_to_wait_for(capsys):
    fabric = fabric_on_cpu()
    assert (fabric.global_rank, fabric.local_rank, fabric.node_rank, fabric.world_size) == (0, 0, 0, 1)
    assert fabric.is_global_zero
    assert isinstance(fabric.strategy, SingleDeviceStrategy)
    assert (fabric.device, fabric.accelerator.name()) == (torch.device("cpu"), "cpu")
    fabric.barrier()
    assert fabric.broadcast({"a": 1}) == {"a": 1}
    assert fabric.all_reduce({"a": torch.tensor(2.0), "b": 3.0}) == {"a": 2.0, "b": 3.0}
    assert fabric.all_gather(torch.tensor([2.0])).flatten().tolist() == [2.0]
    with fabric.rank_zero_first(), fabric.rank_zero_first(local=True), fabric.sharded_model():
        fabric.print("here", end="!")
    assert capsys.readouterr().out == "here!"
    assert fabric.to_device({"x": BATCHES})["x"] is BATCHES
    net, _ = build()
    assert fabric.to_device(net) is net


def test_new_tensors_and_modules_have_the_type_of_the_precision():
    fabric = fabric_on_cpu(precision="64-true")
    with fabric.init_tensor():
        assert torch.ones(1).dtype == torch.float64
    with fabric.init_module():
        assert nn.Linear(1, 1).weight.dtype == torch.float64
    with fabric.init_module(empty_init=True):
        assert nn.Linear(1, 1).weight.dtype == torch.float64


def test_seeds():
    assert Fabric.seed_everything(3, verbose=False) == 3
    first = torch.rand(1)
    Fabric.seed_everything(3, verbose=False)
    assert torch.equal(torch.rand(1), first)


def test_launch_runs_a_function():
    fabric = fabric_on_cpu()
    assert fabric.launch(lambda own, a, b: (own is fabric, a, b), 1, b=2) == (True, 1, 2)
    assert fabric.launch() is None


class Mine(Fabric):
    def run(self, a, b=0):
        self.barrier()
        return self.world_size, a, b


def test_a_subclass_is_launched_by_its_run():
    assert Mine(accelerator="cpu").run(2, b=3) == (1, 2, 3)
    assert pickle.loads(pickle.dumps(Mine(accelerator="cpu").run))(2) == (1, 2, 0)  # as spawned processes get it
    assert Mine(accelerator="cpu", strategy="ddp_fork", devices=2).run(2) == (2, 2, 0)
    assert fabric_on_cpu().run("anything") is None


class KnowsFabric(nn.Linear):
    _fabric = None

    @property
    def fabric(self):
        return self._fabric

    @fabric.setter
    def fabric(self, fabric):
        self.__dict__["_fabric"] = fabric


def test_a_module_that_asks_for_it_knows_its_fabric():
    fabric = fabric_on_cpu()
    module = fabric.setup(KnowsFabric(1, 1))
    assert module.module.fabric is fabric


# --- two processes ---


class Stepping(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)

    def training_step(self, x):
        return self(x).pow(2).mean()


def in_each_of_two(fabric: Fabric, folder: Path) -> dict:
    rank = fabric.global_rank
    seen: dict = {"world_size": fabric.world_size, "rank": rank, "local_rank": fabric.local_rank}
    seen["gathered"] = fabric.all_gather({"x": torch.tensor([rank])})["x"].flatten().tolist()
    seen["mean"] = fabric.all_reduce(torch.tensor(float(rank))).item()
    seen["sum"] = fabric.all_reduce(torch.tensor(float(rank)), reduce_op="sum").item()
    seen["broadcast"] = fabric.broadcast(f"from {rank}", src=1)
    with fabric.rank_zero_first():
        if rank == 0:
            (folder / "download").write_text("done")
        seen["found"] = (folder / "download").exists()
    seen["found"] = fabric.all_reduce(float(seen["found"]), reduce_op="sum").item()

    loader = fabric.setup_dataloaders(DataLoader(list(range(6)), batch_size=1))
    seen["share"] = fabric.all_gather(torch.tensor([int(batch) for batch in loader])).tolist()

    net, _ = build(seed=1 + rank)  # DDP must bring them together
    module = Stepping(net)
    model, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
    for index, batch in enumerate(BATCHES):
        mine = batch[rank::2]
        optimizer.zero_grad()
        loss = model.training_step(mine) if index % 2 else model(mine).pow(2).mean()
        fabric.backward(loss)
        optimizer.step()
    seen["weights"] = weights(model)

    optimizer.zero_grad()
    with fabric.no_backward_sync(model):
        fabric.backward(model(BATCHES[0] + rank).mean())
    gradient = model.net[0].weight.grad.clone()
    apart = fabric.all_gather(gradient)
    seen["apart"] = not torch.equal(apart[0], apart[1])
    fabric.backward(model(BATCHES[0] + rank).mean())
    together = fabric.all_gather(model.net[0].weight.grad)
    seen["together"] = torch.equal(together[0], together[1])

    fabric.save(folder / "two.ckpt", {"model": model, "rank": rank})
    seen["loaded"] = fabric.load(folder / "two.ckpt")["rank"]
    return seen


def test_two_processes(tmp_path: Path):
    fabric = fabric_on_cpu(strategy="ddp_fork", devices=2)
    seen = fabric.launch(in_each_of_two, tmp_path)
    expected = {"world_size": 2, "rank": 0, "local_rank": 0, "gathered": [0, 1], "mean": 0.5, "sum": 1.0}
    assert {name: seen[name] for name in expected} == expected
    assert seen["broadcast"] == "from 1"
    assert (seen["found"], seen["share"]) == (2.0, [[0, 2, 4], [1, 3, 5]])
    assert torch.allclose(seen["weights"], trained_plainly(), atol=1e-6)
    assert seen["apart"]
    assert seen["together"]
    assert seen["loaded"] == 0
    alone = fabric_on_cpu()
    model = alone.setup(Stepping(build(seed=5)[0]))
    alone.load(tmp_path / "two.ckpt", {"model": model}, strict=False)
    assert torch.equal(weights(model), seen["weights"])


def test_spawned_processes_get_the_fabric():
    fabric = fabric_on_cpu(strategy="ddp_spawn", devices=2)
    assert fabric.launch(Fabric.all_gather, torch.tensor([3.0])).tolist() == [[3.0], [3.0]]


def test_an_error_in_one_process_is_the_error_of_launch():
    fabric = fabric_on_cpu(strategy="ddp_fork", devices=2)
    with pytest.raises(Exception, match="the second one fails"):
        fabric.launch(fails_in_the_second)


def fails_in_the_second(fabric):
    if fabric.global_rank == 1:
        raise ValueError("the second one fails")
    fabric.barrier()


def test_the_signatures_are_those_of_the_field():
    def names(method):
        return list(inspect.signature(getattr(Fabric, method)).parameters)[1:]

    assert names("__init__")[:4] == ["accelerator", "strategy", "devices", "num_nodes"]
    assert names("clip_gradients") == ["module", "optimizer", "clip_val", "max_norm", "norm_type", "error_if_nonfinite"]
    assert names("load") == ["path", "state", "strict", "weights_only"]
    assert names("backward") == ["tensor", "args", "model", "kwargs"]
