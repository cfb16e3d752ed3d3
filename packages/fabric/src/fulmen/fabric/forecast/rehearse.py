"""One step of one of many processes, by the strategy itself, over tensors without numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from fulmen.fabric.accelerators.cpu import CPUAccelerator
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.forecast import fake_world, watch
from fulmen.fabric.forecast.figures import Forecast, Shard, Traffic, ring_bytes, steps_in_epoch
from fulmen.fabric.forecast.stages import forecast_stages, stage_notes
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.catalog import make_precision, precision_name
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.catalog import STRATEGY_REGISTRY
from fulmen.fabric.strategies.ddp import DDPStrategy
from fulmen.fabric.strategies.fsdp import FSDPStrategy
from fulmen.fabric.strategies.mesh import MeshStrategy
from fulmen.fabric.strategies.mesh_axes import PIPELINE, TENSOR
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy
from fulmen.fabric.strategies.parallel import ParallelStrategy
from fulmen.fabric.strategies.sharded_tensors import is_dtensor
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy
from fulmen.fabric.trees import leaves

Step = Callable[[Any, Any], Tensor]
Optimizers = Callable[[Any], Optimizer | Iterable[Optimizer]]
_CPU = torch.device("cpu")
_KINDS = (DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy)
_FIRST_BUCKET_BYTES, _BUCKET_BYTES = 2**20, 25 * 2**20  # of DistributedDataParallel, unless it is told otherwise


def make_forecast(
    module: Module,
    *,
    strategy: str | Strategy = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    precision: str | int | Precision | None = None,
    batch: Any = None,
    step: Step | None = None,
    optimizers: Optimizers | None = None,
    num_samples: int | None = None,
    batch_size: int | None = None,
    accumulate: int = 1,
    max_norm: float | None = None,
    registry: Registry[type[Strategy]] = STRATEGY_REGISTRY,
) -> Forecast:
    """What it would take to train a module so. Nothing is launched, and no memory is taken for tensors.

    Args:
        module: Of any size, on the meta device if it is large: `with torch.device("meta"): module = GPT()`.
        strategy: A name, or a strategy: single device, DDP, FSDP or model parallel. It is copied, and stays new.
        devices, num_nodes: Processes on each machine, and machines. They need not exist.
        precision: As for Fabric.
        batch: Of one process; its numbers do not count. None: no step is made, and its memory stays unknown.
        step: Gives the loss of (module, batch); by default the sum of `module(batch)`.
        optimizers: Makes them of the module; by default AdamW.
        num_samples: In the data set.
        batch_size: Of one process; by default the first axis of the first tensor in the batch.
        accumulate: Batches for an optimizer step.
        max_norm: To which the norm of the gradients is clipped, of those of each optimizer.

    Raises:
        ArgumentTypeError: If `module` is no module.
        ConfigurationError: If the strategy does not fit, or is of a kind that cannot be forecast.
    """
    given = {} if batch_size is None else {"batch_size": batch_size}
    _check(module, {"devices": devices, "num_nodes": num_nodes, "accumulate": accumulate, **given})
    if max_norm is not None and (not isinstance(max_norm, int | float) or isinstance(max_norm, bool) or max_norm < 0):
        raise ConfigurationError(
            f"make_forecast(max_norm={max_norm!r}) is no norm. Gradients are scaled down to it. Pass a positive number,"
            " or None where they are not clipped."
        )
    made = _strategy(strategy, devices, num_nodes, registry)
    _set_precision(made, precision)
    world_size = devices * num_nodes
    pipeline = made.pipeline if isinstance(made, ModelParallelStrategy) else None
    in_stages, notes = None, list[str]()
    if isinstance(made, ModelParallelStrategy) and pipeline is not None:
        sizes = made.mesh_sizes(num_nodes, devices)
        if batch is not None:
            trial = step or _summed
            in_stages = forecast_stages(module, pipeline, made.plan, sizes, made.precision, trial, batch, accumulate)
        notes = stage_notes(module, pipeline, sizes.of(PIPELINE), in_stages)
    with ExitStack() as stack:
        if world_size > 1 and isinstance(made, ParallelStrategy):
            stack.enter_context(fake_world.fake_group(world_size))
            made.setup_environment()
        axes = _axes(made, world_size)
        stack.enter_context(watch.one_speaks_for_all(made))
        no_values = fake_world.mode()
        shell = made.precision.convert_module(fake_world.without_memory(module))
        with no_values:
            fake_world.claim_device(shell, _CPU)
        if isinstance(made, MeshStrategy):
            # Not inside: meshes hold numbers. What is made of a tensor without numbers has none.
            with fake_world.FewParts():
                shell = made.setup_module(shell)
        stack.enter_context(no_values)
        found = [] if optimizers is None and not _trained(shell) else _listed((optimizers or _adamw)(shell))
        found = [made.setup_optimizer(one) for one in found] if isinstance(made, MeshStrategy) else found
        context = _context(made)
        tried = batch if pipeline is None else None  # no process runs a whole step
        memory, traffic = _measure(shell, found, tried, step, made, axes, context, accumulate, max_norm)
        if in_stages is not None:
            memory |= {"activations": in_stages.activations[0], "received": in_stages.received[0]}
            traffic += in_stages.traffic
        if isinstance(made, DDPStrategy):
            extra = _ddp(shell, world_size, made)
            memory["exchange"] = extra[0]
            traffic += extra[1] if batch is not None else []
        states = [value for one in found for value in _state(one)]
        whole = sum(one.numel() * one.element_size() for one in {*shell.parameters(), *shell.buffers(), *states})
        size = batch_size if batch_size is not None else _first_axis(batch)
        num_data = _num_data(made, world_size)
        steps = None
        if num_samples is not None and size is not None:
            steps = steps_in_epoch(num_samples, num_data, size, accumulate)
        return Forecast(
            strategy=type(made).__name__,
            precision=str(made.precision.precision),
            num_nodes=num_nodes,
            num_processes=devices,
            mesh={name: len(ranks) for name, ranks in axes.items()} or {"data": world_size},
            num_parameters=sum(one.numel() for one in module.parameters()),
            num_trained=sum(one.numel() for one in module.parameters() if one.requires_grad),
            shards=_shards(shell),
            memory_bytes=memory,
            traffic=traffic,
            checkpoint_bytes=whole,
            steps_per_epoch=steps,
            warnings=_warnings(made, shell, axes, devices, num_nodes, num_samples, size, num_data),
            notes=notes,
            context=len(context),
        )


def _check(module: object, counts: Mapping[str, object]) -> None:
    if not isinstance(module, Module):
        raise ArgumentTypeError(
            f"make_forecast({module!r}) got a {type(module).__name__}. A forecast is made of the parameters of a"
            " module. Pass the module."
        )
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(
                f"make_forecast({name}={value!r}) is no number that one can have of them. The machines need not exist,"
                " but there is at least one of each. Pass a positive int."
            )


def check_kind(kind: object, name: str, flag: str = "make_forecast(strategy={})") -> None:
    """Refuse a strategy that cannot be forecast.

    Args:
        kind: Its class.
        name: What the user calls it.
        flag: Where it was given, with `{}` in the place of the name.

    Raises:
        ConfigurationError: If it is one.
    """
    if isinstance(kind, type) and not issubclass(kind, _KINDS):
        raise ConfigurationError(
            f"{flag.format(repr(name))} is of a kind that cannot be forecast. What it splits is known only where it"
            " runs. Plan with strategy='fsdp' in its place if it splits parameters, gradients and the state of"
            " optimizers over processes, as stage 3 of ZeRO does, with 'ddp' if each process has all of them, or with"
            " a ModelParallelStrategy."
        )


def _strategy(asked: str | Strategy, devices: int, num_nodes: int, registry: Registry[type[Strategy]]) -> Strategy:
    """A strategy of its own, told of machines that need not exist."""
    if isinstance(asked, Strategy):
        made = copy.deepcopy(asked)
    elif asked == "auto":
        made = DDPStrategy() if devices * num_nodes > 1 else SingleDeviceStrategy()
    elif asked in registry:
        entry = registry[asked]
        check_kind(entry.value, asked)  # before it asks for what it needs to be made
        if isinstance(entry.value, type) and issubclass(entry.value, SingleDeviceStrategy):
            made = SingleDeviceStrategy(precision=entry.preset.get("precision"))  # one for an XLA device needs that
        else:
            made = entry.value(**entry.preset)
    else:
        raise ConfigurationError(
            f"make_forecast(strategy={asked!r}) names no strategy. Known names are"
            f" {', '.join(map(repr, ['auto', *registry.names()]))}. Pass one of them, or a Strategy object."
        )
    check_kind(type(made), asked if isinstance(asked, str) else type(asked).__name__)
    if isinstance(made, SingleDeviceStrategy):
        if devices * num_nodes > 1:
            raise ConfigurationError(
                f"make_forecast(strategy='single_device', devices={devices}, num_nodes={num_nodes}) has more devices"
                " than one. The others would have nothing to do. Pass another strategy, or devices=1 and num_nodes=1."
            )
        return SingleDeviceStrategy(precision=made.precision)
    assert isinstance(made, ParallelStrategy), "all other kinds that can be forecast are"
    made.accelerator = CPUAccelerator()
    made.parallel_devices = [_CPU] * devices
    made.num_nodes = num_nodes
    made.cluster_environment = fake_world.FakeEnvironment(num_nodes, devices)
    return made


def _set_precision(strategy: Strategy, precision: str | int | Precision | None) -> None:
    if isinstance(precision, Precision):
        strategy.precision = precision
    elif precision is not None:
        named = make_precision(precision_name(precision, "make_forecast"), "cpu", "make_forecast")
        strategy.precision = strategy.adapt_precision(named, "cpu")


def _axes(strategy: Strategy, world_size: int) -> dict[str, list[int]]:
    """The ranks along each axis of the mesh, for rank 0."""
    if world_size == 1 or not isinstance(strategy, MeshStrategy):
        return {"data": list(range(world_size))}
    mesh = strategy.device_mesh
    names = mesh.mesh_dim_names or tuple(f"axis {place}" for place in range(mesh.ndim))
    ranks: list[list[int]] = []
    for place in range(mesh.ndim):
        index: list[Any] = [0] * mesh.ndim
        index[place] = slice(None)
        ranks.append(mesh.mesh[tuple(index)].tolist())
    return dict(zip(names, ranks, strict=True))


def _context(strategy: Strategy) -> list[int]:
    """The ranks that share sequences with rank 0, itself included."""
    if not isinstance(strategy, ModelParallelStrategy):
        return [0]
    sizes = strategy.sizes
    return [place * sizes.of(TENSOR) for place in range(sizes.context)]


def _measure(
    module: Module,
    optimizers: list[Optimizer],
    batch: Any,
    step: Step | None,
    strategy: Strategy,
    axes: Mapping[str, list[int]],
    context: list[int],
    accumulate: int,
    max_norm: float | None,
) -> tuple[dict[str, int], list[Traffic]]:
    """Memory by what it is for, and the collectives of a step."""
    memory = {"parameters": watch.local_bytes(module.parameters()), "buffers": watch.local_bytes(module.buffers())}
    trained = _trained(module)
    shells = fake_world.claiming(batch, _CPU)
    apart = [watch.local(one) for one in [*module.parameters(), *module.buffers()]]
    seen = watch.Watch(axes, [*apart, *(leaf for leaf in leaves(shells) if isinstance(leaf, Tensor))], context)
    activations, waiting = None, 0

    def forward() -> Tensor:
        with strategy.precision.forward_context():
            return (step or _summed)(module, strategy.precision.convert_input(shells))

    if batch is not None:
        if accumulate > 1:  # all batches but the last
            with seen.times(accumulate - 1), _without_exchange(strategy, module):
                forward().backward()
            waiting = seen.alive_bytes()
        with seen:
            loss = forward()
            activations = seen.alive_bytes() - waiting
            loss.backward()
        del loss
    for one in trained:  # what no step has reached
        if one.grad is None:
            one.grad = torch.zeros_like(one)
    memory["gradients"] = watch.local_bytes(one.grad for one in trained if one.grad is not None)
    with seen:
        for optimizer in optimizers:
            if max_norm is not None:
                strategy.clip_gradients_norm(module, optimizer, max_norm, error_if_nonfinite=False)
            optimizer.step()
    memory["optimizer state"] = watch.local_bytes(value for one in optimizers for value in _state(one, here=True))
    if activations is not None:
        # Whole ones, where a strategy exchanges them with the last batch only.
        whole = waiting - memory["gradients"]
        memory |= {"gradients that wait": whole} if whole > 0 else {}
        memory |= {"activations": activations, "exchange": seen.most_exchanged}
    return memory, seen.traffic()


def _without_exchange(strategy: Strategy, module: Module) -> AbstractContextManager[Any]:
    """Inside, backward adds up gradients, as of all batches of a step but the last."""
    if isinstance(strategy, MeshStrategy) and strategy.hooks_forward(module):
        return strategy.no_backward_sync(module, enabled=True)
    return nullcontext()


def _ddp(module: Module, num_processes: int, strategy: DDPStrategy) -> tuple[int, list[Traffic]]:
    """What `DistributedDataParallel` adds: buckets of gradients, each of which is reduced, and equal buffers."""
    if num_processes == 1:
        return 0, []
    arguments = strategy.ddp_arguments
    trained, buffers = _trained(module), watch.local_bytes(module.buffers())
    gradients = watch.local_bytes(trained)
    limits = _FIRST_BUCKET_BYTES, _BUCKET_BYTES
    if arguments.get("bucket_cap_mb") is not None:
        limits = (int(arguments["bucket_cap_mb"] * 2**20),) * 2
    # With buckets goes, where it is looked for, which parameters were used: for each a number of 32 bit.
    used = 4 * len(trained) if arguments.get("find_unused_parameters") else 0
    traffic = [("all_reduce", _num_buckets(trained, *limits) + (used > 0), gradients + used)]
    if buffers and arguments.get("broadcast_buffers", True):
        traffic.append(("broadcast", len({buffer.dtype for buffer in module.buffers()}), buffers))
    rows = [
        Traffic(name, "data", num_processes, calls, size, ring_bytes(name, size, num_processes))
        for name, calls, size in traffic
        if size
    ]
    return (0 if arguments.get("gradient_as_bucket_view") else gradients), rows


def _num_buckets(parameters: list[Tensor], first: int, limit: int) -> int:
    """How many pieces gradients are reduced in: filled from the last parameter on, each type by itself."""
    found, filled = 0, dict[torch.dtype, list[int]]()
    for one in reversed(parameters):
        bucket = filled.setdefault(one.dtype, [0, first])
        bucket[0] += one.numel() * one.element_size()
        if bucket[0] >= bucket[1]:
            found += 1
            bucket[:] = 0, limit
    return found + sum(1 for size, _ in filled.values() if size)


def _shards(module: Module) -> list[Shard]:
    found = [
        Shard(name, tuple(one.shape), (0,) if one.is_meta else tuple(watch.local(one).shape))
        for name, one in module.named_parameters()
    ]
    return sorted(found, key=lambda one: -torch.Size(one.shape).numel())


def _warnings(
    strategy: Strategy,
    module: Module,
    axes: Mapping[str, list[int]],
    devices: int,
    num_nodes: int,
    num_samples: int | None,
    batch_size: int | None,
    num_data: int,
) -> list[str]:
    found = []
    ranks = axes.get("tensor_parallel", [0])
    if len({rank // devices for rank in ranks}) > 1:
        found.append(
            f"the tensor axis crosses machines: its {len(ranks)} processes talk in every layer, and {devices} fit on a"
            f" machine. Pass a tensor_parallel_size that divides {devices}."
        )
    full = isinstance(strategy, FSDPStrategy) and strategy.sharding_strategy.name in ("FULL_SHARD", "SHARD_GRAD_OP")
    if full and num_nodes > 1:
        found.append(
            f"parameters are gathered over {num_nodes} machines for every batch. sharding_strategy='HYBRID_SHARD'"
            " gathers within a machine, and takes more memory."
        )
    if isinstance(strategy, FSDPStrategy):
        units = sum(1 for part in module.modules() if type(part).__name__.startswith("FSDP"))
        if units == 1 and any(True for _ in module.children()):
            found.append(
                "the whole module is one unit: all of its parameters are gathered at once. Pass"
                " auto_wrap_policy={Block}, the class of its layers."
            )
    empty = [name for name, one in module.named_parameters() if not watch.local(one).numel() and one.numel()]
    some = [name for name, one in module.named_parameters() if _rows(one) and _rows(one) % _parts(one)]
    if some:
        found.append(
            f"{len(some)} parameters have a first axis that is no multiple of the processes over which it is split"
            f" (such as {some[0]}): some processes hold more than others."
        )
    if empty:
        found.append(f"rank 0 holds nothing of {len(empty)} parameters.")
    if num_samples is not None and batch_size is not None and num_samples < num_data * batch_size:
        found.append(
            f"{num_samples:,} samples are fewer than one batch of {batch_size} for each of {num_data:,} processes."
        )
    return found


def _rows(parameter: Tensor) -> int:
    return parameter.shape[0] if parameter.ndim else 0


def _parts(parameter: Tensor) -> int:
    """Over how many processes the first axis is split."""
    if not is_dtensor(parameter):
        return 1
    mesh, places = parameter.device_mesh, parameter.placements
    parts = 1
    for place, size in zip(places, mesh.shape, strict=True):
        parts *= size if place.is_shard(0) else 1
    return parts


def _num_data(strategy: Strategy, world_size: int) -> int:
    if world_size == 1:
        return 1
    return int((strategy.distributed_sampler_kwargs or {}).get("num_replicas", world_size))


def _trained(module: Module) -> list[Tensor]:
    return [one for one in module.parameters() if one.requires_grad]


def _state(optimizer: Optimizer, *, here: bool = False) -> list[Tensor]:
    """The tensors of its state; those of this process alone, or with those of other stages of a pipeline."""
    states = [state for one, state in optimizer.state.items() if not (here and one.is_meta)]
    return [leaf for leaf in leaves(states) if isinstance(leaf, Tensor)]


def _adamw(module: Module) -> Optimizer:
    return torch.optim.AdamW(_trained(module))


def _listed(made: Optimizer | Iterable[Optimizer]) -> list[Optimizer]:
    return [made] if isinstance(made, Optimizer) else list(made)


def _summed(module: Any, batch: Any) -> Tensor:
    found = [leaf for leaf in leaves(module(batch)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    total: Tensor = sum((leaf.sum() for leaf in found), start=torch.zeros(()))
    return total


def _first_axis(batch: Any) -> int | None:
    return next((leaf.shape[0] for leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim), None)
