"""What strategies that split parameters are tested with: a model, the same training without them, real processes.

A test file registers cases, functions that run in every process, and starts one group of processes per size for all.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fulmen.fabric import Fabric
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.fabric.strategies.fsdp import FSDPStrategy
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy

TOLERANCE = 1e-10


class Cases:
    """Functions of (number of processes, folder), and in how many processes each of them runs."""

    def __init__(self):
        self._cases: dict[str, tuple[tuple[int, ...], Callable]] = {}

    def __call__(self, *sizes):
        """A decorator: run the function in groups of these sizes."""

        def register(function):
            self._cases[function.__name__] = sizes, function
            return function

        return register

    @property
    def places(self):
        """Every case with every size, for `parametrize`."""
        return [(name, size) for name, (sizes, _) in self._cases.items() for size in sizes]

    def run(self, tmp_path_factory, *sizes):
        """For each case and size what went wrong, or an empty text. Cases of one size run in the order of the file."""
        import torch._dynamo
        import torch.distributed.checkpoint
        import torch.distributed.fsdp
        import torch.distributed.tensor.parallel  # noqa: F401 (once, and not in each process)

        folder = tmp_path_factory.mktemp("shared")
        found = {}
        for size in sizes:
            results = tmp_path_factory.mktemp(f"results{size}")
            names = [name for name, (wanted, _) in self._cases.items() if size in wanted]
            lost = ""
            try:
                SpawnLauncher(LightningEnvironment(), size, 1, "fork").launch(self._work, size, names, folder, results)
            except Exception as error:
                lost = repr(error)
            for name in names:
                failures = [path.read_text() for path in sorted(results.glob(f"{name}.*.failed"))]
                passed = len(list(results.glob(f"{name}.*.passed")))
                found[name, size] = failures[0] if failures else "" if passed == size else f"did not finish: {lost}"
        return found

    def _work(self, size, names, folder, results):
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(1)
        devices = [torch.device("cpu")] * size
        FSDPStrategy(
            parallel_devices=devices, cluster_environment=LightningEnvironment(), timeout=timedelta(seconds=60)
        ).setup_environment()
        rank = dist.get_rank()
        for name in names:
            outcome = "passed"
            try:
                self._cases[name][1](size, folder)
            except Exception:
                outcome = "failed"
                (results / f"{name}.{rank}.failed").write_text(traceback.format_exc())
            dist.barrier()
            if outcome == "passed":
                (results / f"{name}.{rank}.passed").touch()


# --- what is trained


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x):
        return x + self.scale * torch.tanh(self.linear(x))

    def reset_parameters(self):
        nn.init.uniform_(self.scale)


class Net(nn.Module):
    """Its sizes are divided by no number of processes."""

    def __init__(self, width=7):
        super().__init__()
        self.start = nn.Linear(5, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.end = nn.Linear(width, 3)
        self.register_buffer("offset", torch.full((3,), 0.25))

    def forward(self, x):
        x = self.start(x)
        for block in self.blocks:
            x = block(x)
        return self.end(x) + self.offset

    def training_step(self, x):
        return self(x).square().mean()

    def beside(self, x):
        return self.start(x).sum()


def build(width=7):
    torch.manual_seed(3)
    return Net(width)


def batches(count=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 5, generator=generator) for _ in range(count)]


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def plainly(optimizer=momentum, *, accumulate=1, max_norm=None, clip_val=None, width=7, count=4):
    model = build(width)
    opt = optimizer(model.parameters())
    for index, batch in enumerate(batches(count)):
        (model(batch).square().mean() / accumulate).backward()
        if (index + 1) % accumulate:
            continue
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        if clip_val is not None:
            nn.utils.clip_grad_value_(model.parameters(), clip_val)
        opt.step()
        opt.zero_grad()
    return model, opt


def warned(fabric, match):
    return pytest.warns(UserWarning, match=match) if fabric.is_global_zero else nullcontext()


def share(fabric, batch):
    sharing = fabric.strategy.distributed_sampler_kwargs
    return batch.chunk(sharing["num_replicas"])[sharing["rank"]]


def train(fabric, model, optimizer, *, accumulate=1, max_norm=None, clip_val=None, count=4):
    for index, batch in enumerate(batches(count)):
        last = (index + 1) % accumulate == 0
        with fabric.no_backward_sync(model, enabled=not last):
            fabric.backward(model(share(fabric, batch)).square().mean() / accumulate)
        if not last:
            continue
        if max_norm is not None:
            fabric.clip_gradients(model, optimizer, max_norm=max_norm)
        if clip_val is not None:
            fabric.clip_gradients(model, optimizer, clip_val=clip_val)
        optimizer.step()
        optimizer.zero_grad()


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def assert_same(model, plain, tolerance=TOLERANCE):
    state = {name: whole(value.detach()) for name, value in model.state_dict().items()}
    expected = plain if isinstance(plain, dict) else plain.state_dict()
    assert set(state) == set(expected)
    for name, value in expected.items():
        difference = (state[name] - value).abs().max().item()
        assert difference <= tolerance, f"{name} differs by {difference}"


def assert_same_optimizer(optimizer, plain):
    states = [optimizer.state[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    expected = [plain.state[parameter] for group in plain.param_groups for parameter in group["params"]]
    for one, other in zip(states, expected, strict=True):
        assert set(one) == set(other)
        for name, value in other.items():
            assert (whole(one[name]) - value).abs().max().item() <= TOLERANCE, name
    for one, other in zip(optimizer.param_groups, plain.param_groups, strict=True):
        assert {**one, "params": None} == {**other, "params": None}


def make_fabric(strategy, num_processes, **kwargs):
    fabric = Fabric(strategy=strategy, devices=num_processes, accelerator="cpu", **kwargs)
    fabric.launch()
    return fabric


def fsdp(num_processes, /, precision=None, plugins=None, **kwargs):
    return make_fabric(FSDPStrategy(**kwargs), num_processes, precision=precision, plugins=plugins)


def set_up(fabric, optimizer=momentum, width=7):
    model = build(width)
    return fabric.setup(model, optimizer(model.parameters()))


def by_tensors(module, mesh):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    if mesh["tensor_parallel"].size() > 1:
        for block in module.blocks:
            parallelize_module(block, mesh["tensor_parallel"], {"linear": ColwiseParallel(output_layouts=_replicate())})
        parallelize_module(module, mesh["tensor_parallel"], {"start": RowwiseParallel(input_layouts=_replicate())})
    if mesh["data_parallel"].size() > 1:
        for block in module.blocks:
            fully_shard(block, mesh=mesh["data_parallel"])
        fully_shard(module, mesh=mesh["data_parallel"])
    return module


def _replicate():
    from torch.distributed.tensor import Replicate

    return Replicate()


def model_parallel(num_processes, data, tensor, function=by_tensors, **kwargs):
    strategy = ModelParallelStrategy(function, data, tensor, **kwargs)
    return make_fabric(strategy, num_processes)


class FullState:
    """The state of a plain module, split as another one is."""

    def __init__(self, plain, like):
        from fulmen.fabric.strategies.sharded_tensors import split_like

        here = like.state_dict()
        self.state = {name: split_like(value, here[name]) for name, value in plain.state_dict().items()}


def copy_of(module):
    return copy.deepcopy(module)
