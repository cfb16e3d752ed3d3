"""Does a strategy train your module as one process would? For your own tests.

```python
def test_my_module_can_be_sharded():
    assert_parity(MyModule, batches, loss=lambda model, batch: model(batch).mean(), strategy="fsdp", devices=2)

def test_my_plan_fits_every_mesh_of_four_processes():
    assert_parity(MyModule, batches, loss, strategy=meshes(4, {"up": "column", "down": "row"}), devices=4)
```
"""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.fabric import Fabric
from fulmen.fabric.launchers.script import ScriptLauncher
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.fabric.seeding import isolate_rng
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.capabilities import SetsUpTogether
from fulmen.fabric.strategies.meshes import meshes as meshes
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy
from fulmen.fabric.strategies.parallel import ParallelStrategy
from fulmen.fabric.trees import convert_tensors, leaves, map_tensors, move_data_to_device
from fulmen.fabric.wrappers import unwrap

_SHOWN = 12  # lines of a report, before "and so on"


def assert_parity(
    module: nn.Module | Callable[[], nn.Module],
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    strategy: str | Strategy | Callable[[], Strategy] | Mapping[str, Strategy] = "ddp",
    devices: int | str | list[int] = 2,
    accelerator: str | Accelerator = "cpu",
    accumulate: int = 1,
    max_norm: float | None = None,
    clip_val: float | None = None,
    tolerance: float = 1e-10,
    dtype: torch.dtype | None = torch.float64,
    seed: int = 0,
    start_method: Literal["fork", "spawn", "forkserver"] | None = None,
    each_step: bool = True,
) -> dict[str, float]:
    """Train a module under a strategy, in real processes, and plainly in one; after every step, compare the weights.

    Each process trains on its share of every batch, and beside it a plain copy on all of it, without Fabric. What one
    process draws at random (dropout) or computes over a whole batch (batch norm) differs by nature: leave it out.

    Args:
        module: Builds the module, or is one. Built anew, after the same seed, in every process.
        batches: Nested tensors whose first axis counts samples, for all processes together.
        loss: Of model and batch; the mean over the samples, and with context parallel over the sequence too, which is
            the second axis.
        optimizer: Of the parameters, such as `partial(torch.optim.Adam, lr=0.1)`. By default SGD with momentum, which
            sees the size of gradients; Adam does not.
        strategy: A name, an object, or what builds one. Or several by names of your own, as from `meshes`: one after
            the other in the same processes, which is faster.
        devices, accelerator: As for `Fabric`.
        accumulate: Batches per optimizer step; all but the last of them without exchanging gradients.
        max_norm, clip_val: Clip the gradients, by their norm or each value.
        tolerance: The largest difference of any weight that passes.
        dtype: Of weights and batches; in 32 bit, sums depend on their order. None leaves them as they are.
        seed: Before the module is built.
        start_method: How to start processes where the strategy would run the script again. By default "fork", which
            takes lambdas and local functions too; "spawn" where CUDA is in use.
        each_step: Compare after every step; False only after the last, which is faster with many processes.

    Returns:
        For each strategy, the largest difference of any weight on any process.

    Raises:
        AssertionError: Weights differ; says which, since which step, by how much, and on which rank.
        ConfigurationError: Nothing was trained, a batch cannot be shared out evenly, or this is one of many processes.
    """
    plan = _Plan(
        build=module if not isinstance(module, nn.Module) else partial(copy.deepcopy, module),
        batches=list(batches),
        loss=loss,
        optimizer=optimizer or _sgd,
        accumulate=accumulate,
        max_norm=max_norm,
        clip_val=clip_val,
        tolerance=tolerance,
        dtype=dtype,
        seed=seed,
        each_step=each_step,
    )
    plan.check()
    _check_alone()
    chosen = _chosen(strategy)
    with isolate_rng():
        fabrics = [Fabric(accelerator=accelerator, strategy=one, devices=devices) for one in chosen.values()]
        found = _launch(fabrics, plan, start_method)
    reports = [
        _report(one.differences, plan, f"{name} on {devices} devices")
        for name, one in zip(chosen, found, strict=True)
        if one.differences
    ]
    if reports:
        raise AssertionError("\n".join(reports))
    return {name: one.largest for name, one in zip(chosen, found, strict=True)}


def _chosen(strategy: str | Strategy | Callable[[], Strategy] | Mapping[str, Strategy]) -> dict[str, str | Strategy]:
    if isinstance(strategy, Mapping):
        if not strategy:
            raise ConfigurationError(
                "assert_parity(strategy={}) holds no strategy. Each is compared with one process, and here nothing"
                " would be. Pass at least one, as from meshes(...)."
            )
        return {name: copy.deepcopy(one) for name, one in strategy.items()}
    if isinstance(strategy, str):
        return {repr(strategy): strategy}
    one = copy.deepcopy(strategy) if isinstance(strategy, Strategy) else strategy()
    return {type(one).__name__: one}


@dataclass(frozen=True)
class _Plan:
    """What is trained, and how; travels to every process."""

    build: Callable[[], nn.Module]
    batches: Sequence[Any]
    loss: Callable[[nn.Module, Any], Tensor]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    accumulate: int
    max_norm: float | None
    clip_val: float | None
    tolerance: float
    dtype: torch.dtype | None
    seed: int
    each_step: bool

    @property
    def num_steps(self) -> int:
        return len(self.batches) // self.accumulate

    def check(self) -> None:
        if not callable(self.build) or not callable(self.loss) or not callable(self.optimizer):
            raise ArgumentTypeError(
                f"assert_parity(module={self.build!r}, loss={self.loss!r}, optimizer={self.optimizer!r}) got something"
                " that cannot be called. Module and optimizer are built anew in every process, and the loss is taken"
                " of model and batch. Pass functions, or classes, as in `optimizer=torch.optim.SGD`."
            )
        if self.accumulate < 1 or self.num_steps == 0 or len(self.batches) % self.accumulate:
            raise ConfigurationError(
                f"assert_parity(batches=..., accumulate={self.accumulate}) got {len(self.batches)} batches."
                " They have to make whole optimizer steps, at least one."
                f" Pass a multiple of {max(self.accumulate, 1)} batches, or another `accumulate`."
            )
        if self.max_norm is not None and self.clip_val is not None:
            raise ConfigurationError(
                f"assert_parity(max_norm={self.max_norm!r}, clip_val={self.clip_val!r}) says two ways to clip."
                " `clip_val` limits each value and `max_norm` their norm. Pass one of them."
            )


@dataclass(frozen=True)
class _Difference:
    """One weight that is not what it has to be, at the first step where that is so."""

    rank: int
    step: int  # 0-based
    name: str
    message: str
    total: float = 0.0  # of the weight: tells replicas that agree from those that drifted apart


@dataclass
class _Comparison:
    """What a comparison of weights has found; the largest difference also where it is allowed."""

    differences: list[_Difference]
    largest: float = 0.0


def _check_alone() -> None:
    if torch.distributed.is_initialized() or "LOCAL_RANK" in os.environ:
        raise ConfigurationError(
            "assert_parity(...) was called in one of several processes. It starts its own, and compares them with one."
            " Call it where LOCAL_RANK is not set and no process group is open, as in a test that pytest runs."
        )


def _launch(fabrics: list[Fabric], plan: _Plan, start_method: Any) -> list[_Comparison]:
    """The differences under each strategy."""
    first = fabrics[0].strategy
    if len(fabrics) == 1 and not isinstance(first.launcher, ScriptLauncher):
        return [fabrics[0].launch(_train, plan)]
    for fabric in fabrics:
        if not isinstance(fabric.strategy.launcher, ScriptLauncher):
            raise ConfigurationError(
                f"assert_parity(strategy={{...}}) holds a {type(fabric.strategy).__name__} that starts its processes by"
                " itself, or none. Several strategies share the same processes. Pass it alone, without a dictionary."
            )
    # The script that runs now is somebody's test: it is not run again. The processes are started here, and the
    # strategies see that they are there.
    if start_method is None:
        can_fork = "fork" in multiprocessing.get_all_start_methods() and not torch.cuda.is_initialized()
        start_method = "fork" if can_fork else "spawn"
    num_processes = first.num_processes if isinstance(first, ParallelStrategy) else 1
    environment = getattr(first, "cluster_environment", None) or LightningEnvironment()
    processes = SpawnLauncher(environment, num_processes, start_method=start_method)
    found: list[_Comparison] = processes.launch(_train_each, fabrics, plan)
    return found


def _train_each(fabrics: list[Fabric], plan: _Plan) -> list[_Comparison]:
    return [fabric.launch(_train, plan) for fabric in fabrics]


def _train(fabric: Fabric, plan: _Plan) -> _Comparison:
    """What each process does; the differences of all."""
    with _default_dtype(plan.dtype):
        mine = _train_both(fabric, plan)
    everywhere = [fabric.broadcast(mine, src=rank) for rank in range(fabric.world_size)]
    differences = [difference for of_rank in everywhere for difference in of_rank.differences]
    return _Comparison(differences, max(of_rank.largest for of_rank in everywhere))


def _train_both(fabric: Fabric, plan: _Plan) -> _Comparison:
    plain = _build(plan).to(fabric.device)
    plain_optimizer = plan.optimizer(plain.parameters())
    before = {name: value.clone() for name, value in _weights(plain).items()}
    model, optimizer = _set_up(fabric, _build(plan), plan)

    found: dict[str, _Difference] = {}
    largest = 0.0
    for step in range(plan.num_steps):
        for place in range(plan.accumulate):
            batch = move_data_to_device(plan.batches[step * plan.accumulate + place], fabric.device)
            batch = batch if plan.dtype is None else convert_tensors(batch, plan.dtype)
            # With every process on the same samples, there may be nothing to exchange.
            waits = place < plan.accumulate - 1 and _shares(fabric.strategy)[0] > 1
            mine = _cut(batch, *_shares(fabric.strategy))
            if isinstance(fabric.strategy, ModelParallelStrategy):
                mine = fabric.strategy.part_of_sequence(mine)
            with fabric.no_backward_sync(model) if waits else nullcontext():
                _backward(fabric, model, mine, plan)
            (plan.loss(plain, batch) / plan.accumulate).backward()
        if plan.max_norm is not None:
            fabric.clip_gradients(model, optimizer, max_norm=plan.max_norm)
            nn.utils.clip_grad_norm_(plain.parameters(), plan.max_norm)
        elif plan.clip_val is not None:
            fabric.clip_gradients(model, optimizer, clip_val=plan.clip_val)
            nn.utils.clip_grad_value_(plain.parameters(), plan.clip_val)
        for one in (optimizer, plain_optimizer):
            one.step()
            one.zero_grad()
        if not plan.each_step and step < plan.num_steps - 1:
            continue
        ours, expected = _weights_of(fabric, model), _weights(plain)
        if isinstance(fabric.strategy, ModelParallelStrategy):  # of a pipeline, each process has its stages
            expected = {name: one for name, one in expected.items() if fabric.strategy.holds(model, name)}
        compared = _compare(ours, expected, plan.tolerance, fabric.global_rank, step)
        largest = max(largest, compared.largest)
        for difference in compared.differences:
            found.setdefault(difference.name, difference)
    if all(torch.equal(value, before[name]) for name, value in _weights(plain).items()):
        raise ConfigurationError(
            f"assert_parity(...) trained nothing: after {plan.num_steps} steps all weights of"
            f" {type(plain).__name__} are what they were. Then every strategy would pass."
            " Check that parameters require gradients, that the loss depends on them, and that the learning rate is"
            " not 0."
        )
    return _Comparison(list(found.values()), largest)


def _backward(fabric: Fabric, model: Any, batch: Any, plan: _Plan) -> None:
    if isinstance(fabric.strategy, ModelParallelStrategy):
        fabric.strategy.forward_backward(lambda *step: plan.loss(*step) / plan.accumulate, model, batch)
    else:
        fabric.backward(plan.loss(model, batch) / plan.accumulate)


def _set_up(fabric: Fabric, module: nn.Module, plan: _Plan) -> Any:
    if isinstance(fabric.strategy, SetsUpTogether) and fabric.strategy.sets_up_together():
        return fabric.setup(module, plan.optimizer(module.parameters()))
    model = fabric.setup_module(module)
    return model, fabric.setup_optimizers(plan.optimizer(model.parameters()))


def _weights_of(fabric: Fabric, model: Any) -> dict[str, Tensor]:
    if isinstance(fabric.strategy, SetsUpTogether):  # what runs the module says what its weights are
        return fabric.strategy.get_module_state_dict(unwrap(model))
    return _weights(model)


def _build(plan: _Plan) -> nn.Module:
    torch.manual_seed(plan.seed)
    module = plan.build()
    if not isinstance(module, nn.Module):
        raise ArgumentTypeError(
            f"assert_parity(module={plan.build!r}) built a {type(module).__name__}. Only a torch module can be trained."
            " Pass a class or a function that returns a module."
        )
    return module if plan.dtype is None else module.to(plan.dtype)


def _shares(strategy: Strategy) -> tuple[int, int]:
    """Into how many parts the samples are cut, and which is this process's; (1, 0) where each has them all."""
    sharing = strategy.distributed_sampler_kwargs
    return (sharing["num_replicas"], sharing["rank"]) if sharing else (1, 0)


def _cut(batch: Any, num_shares: int, place: int) -> Any:
    sizes = {leaf.shape[0] for leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim}
    if any(size % num_shares for size in sizes):
        raise ConfigurationError(
            f"assert_parity(batches=...) has a batch of {sorted(sizes)} samples, for {num_shares} processes."
            " With shares of different size, the mean of their means is not the mean of all."
            f" Pass batches whose first axis is a multiple of {num_shares}."
        )
    return map_tensors(batch, lambda tensor: tensor.chunk(num_shares)[place] if tensor.ndim else tensor)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, whole, by the names that the user knows. Every process must ask."""
    state = module.state_dict()
    return {
        name: _whole(value.detach()) for name, value in state.items() if isinstance(value, Tensor) and not value.is_meta
    }


def _whole(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def _compare(
    ours: Mapping[str, Tensor], plain: Mapping[str, Tensor], tolerance: float, rank: int, step: int
) -> _Comparison:
    compared = _Comparison([])
    for name in [*plain, *(name for name in ours if name not in plain)]:
        if name not in ours or name not in plain:
            side = "is missing under the strategy" if name not in ours else "is not in the plain module"
            compared.differences.append(_Difference(rank, step, name, side))
            continue
        one, other = ours[name].to(plain[name].device), plain[name]
        if one.shape != other.shape:
            message = f"has the shape {list(one.shape)}, and {list(other.shape)} in one process"
            compared.differences.append(_Difference(rank, step, name, message))
            continue
        apart = (one.to(torch.promote_types(one.dtype, torch.float64)) - other).abs()
        if apart.numel():
            compared.largest = max(compared.largest, float(apart.max()))
        if not bool((apart <= tolerance).all()):  # so that NaN does not pass
            worst = int(apart.nan_to_num(float("inf")).argmax())
            place = [int(index) for index in torch.unravel_index(torch.tensor(worst), one.shape)]
            size = float(apart.flatten()[worst])
            values = f"{float(one.flatten()[worst]):.6g} instead of {float(other.flatten()[worst]):.6g}"
            message = f"differs by {size:.2e}: {values} at {place}"
            compared.differences.append(_Difference(rank, step, name, message, float(one.sum())))
    return compared


def _report(differences: Sequence[_Difference], plan: _Plan, what: str) -> str:
    first = min(difference.step for difference in differences)
    ranks = sorted({difference.rank for difference in differences})
    of_rank = [difference for difference in differences if difference.rank == ranks[0]]
    totals = [{one.name: one.total for one in differences if one.rank == rank} for rank in ranks]
    agree = all(
        of_one.keys() == totals[0].keys()
        and all(math.isclose(total, totals[0][name], rel_tol=1e-9) for name, total in of_one.items())
        for of_one in totals
    )
    lines = [f"{what}: the weights are not those of one process (allowed difference {plan.tolerance:g})."]
    since = "since step" if plan.each_step else "after step"
    lines.append(f"They differ {since} {first} of {plan.num_steps}; rank {ranks[0]}, with the step of each:")
    width = max(len(difference.name) for difference in of_rank[:_SHOWN])
    lines += [f"  step {one.step}  {one.name:{width}}  {one.message}" for one in of_rank[:_SHOWN]]
    if len(of_rank) > _SHOWN:
        lines.append(f"  and {len(of_rank) - _SHOWN} more")
    if len(ranks) > 1:
        shown = ", ".join(map(str, ranks))
        lines.append(
            f"Ranks {shown} have the same weights: gradients are exchanged, and are not the mean over all samples."
            if agree
            else f"Ranks {shown} each have other weights: gradients are not exchanged."
        )
    return "\n".join(lines)


@contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """New tensors, such as those that the loss makes, have this type."""
    before = torch.get_default_dtype()
    if dtype is not None:
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
