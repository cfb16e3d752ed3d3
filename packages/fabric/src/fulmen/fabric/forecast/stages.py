"""What the stages of a pipeline send to each other, hold, and wait for.

The module is tried whole, with one micro-batch, and looked at where stages begin: between two cuts lies what one stage
keeps for backward, and what it exchanges over tensors and sequences. How often that is there at the same time, says the
order of the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from fulmen.fabric.forecast import fake_world, watch
from fulmen.fabric.forecast.figures import Traffic, size_text
from fulmen.fabric.forecast.schedule_order import most_at_once, order_of_work
from fulmen.fabric.strategies.context_parallel import attend_together
from fulmen.fabric.strategies.mesh_axes import CONTEXT, PIPELINE, TENSOR, MeshSizes
from fulmen.fabric.strategies.pipeline.cuts import Pipeline, cut_module
from fulmen.fabric.strategies.pipeline.parts import Crossing, StagedModule
from fulmen.fabric.strategies.pipeline.steps import cut_batch
from fulmen.fabric.strategies.plan import Matched, Plan
from fulmen.fabric.strategies.split_by_plan import split_tensors
from fulmen.fabric.trees import leaves, map_tensors

_CPU = torch.device("cpu")
_Counts = dict[tuple[str, str, int], Traffic]


@dataclass(frozen=True)
class StagesForecast:
    """What the processes along a pipeline need.

    Attributes:
        activations: For each of them, the most that is kept for backward at one time.
        received: For each, where it receives what comes over cuts; torch has room for each micro-batch.
        traffic: What the first one exchanges in an optimizer step: along the pipeline, over tensors, and over
            sequences.
    """

    activations: list[int]
    received: list[int]
    traffic: list[Traffic]


@dataclass
class _Tried:
    """One micro-batch in the whole module: what is alive and was counted where stages begin, forward and backward."""

    seen: watch.Watch
    alive: list[int] = field(default_factory=lambda: [0])
    forward: list[_Counts] = field(default_factory=lambda: [{}])
    backward: dict[int, _Counts] = field(default_factory=dict)

    def mark(self) -> None:
        """Forward has come to a cut, or to its end."""
        self.alive.append(self.seen.alive_bytes())
        self.forward.append(self.counts())

    def counts(self) -> _Counts:
        """Of all so far."""
        return {(one.operation, one.axis, one.num_processes): one for one in self.seen.traffic()}

    def of_stage(self, stage: int) -> list[Traffic]:
        """What one stage exchanges for a micro-batch."""
        last = len(self.forward) - 2
        # Backward goes through the stages from the last one on. A cut without gradients has none before it.
        after = self.backward.get(stage, self.backward[-1])
        before = self.forward[-1] if stage == last else self.backward.get(stage + 1, self.backward[-1])
        found: list[Traffic] = []
        for begin, end in ((self.forward[stage], self.forward[stage + 1]), (before, after)):
            for key, now in end.items():
                was = begin.get(key)
                calls, sizes = now.num_calls, (now.message_bytes, now.sent_bytes)
                if was is not None:
                    calls -= was.num_calls
                    sizes = now.message_bytes - was.message_bytes, now.sent_bytes - was.sent_bytes
                if calls:
                    found.append(Traffic(*key, calls, *sizes))
        return found


def forecast_stages(
    module: Module,
    pipeline: Pipeline,
    plan: Plan | None,
    sizes: MeshSizes,
    precision: Any,
    step: Callable[[Any, Any], Any],
    batch: Any,
    accumulate: int,
) -> StagesForecast:
    """What each process along the axis needs for a step. No process group may be open.

    Args:
        module: Whole; stays as it is.
        pipeline, plan: How it is cut, and split over tensors and sequences.
        sizes: Of the mesh.
        precision: Of the strategy.
        step: Gives the loss of (module, batch).
        batch: Of one process; its numbers do not count.
        accumulate: Batches for an optimizer step.
    """
    size = sizes.of(PIPELINE)
    cut = cut_module(module, pipeline)
    shell = precision.convert_module(fake_world.without_memory(module))
    staged = StagedModule(shell, pipeline, cut, range(pipeline.num_stages), _CPU)
    for part in staged.outside():  # its code runs with numbers in every stage
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else _zeros(buffer)
    parts = cut_batch(map_tensors(batch, _zeros), pipeline.parts_of)
    num = len(parts)
    with staged.cut_open(), precision.forward_context():
        crossings = staged.rehearse(lambda: step(shell, precision.convert_input(parts[0])))
    tried = _try(module, pipeline, plan, sizes, precision, step, parts[0])
    sent = [0 if stage + 1 not in crossings else _bytes(crossings[stage + 1]) for stage in range(pipeline.num_stages)]
    kept = {stage: tried.alive[stage + 1] - tried.alive[stage] - sent[stage] for stage in range(pipeline.num_stages)}
    places = [pipeline.stages_on(place, size) for place in range(size)]
    return StagesForecast(
        activations=[_most_at_once(pipeline, place, size, num, kept, sent) for place in range(size)],
        received=[num * _received(crossings, stages) for stages in places],
        traffic=_together(tried, crossings, places[0], num * accumulate),
    )


def stage_notes(module: Module, pipeline: Pipeline, size: int, found: StagesForecast | None) -> list[str]:
    """How long each process waits, and how much each has."""
    cut = cut_module(module, pipeline)
    held = [0] * size
    for name, parameter in module.named_parameters():
        held[pipeline.place_of(cut.stage_of_parameter(name), size)] += parameter.numel() * parameter.element_size()
    notes = [
        f"each process waits for {pipeline.bubble(size):.0%} of a step, with {pipeline.micro_batches} micro-batches and"
        f" stages that take as long.",
        f"parameters along the pipeline, before they are split over other axes: {', '.join(map(size_text, held))}. What"
        " a stage exchanges over the data axes is not counted.",
    ]
    if found is not None:
        notes.append(f"activations along the pipeline: {', '.join(map(size_text, found.activations))}.")
    return notes


def _try(
    module: Module,
    pipeline: Pipeline,
    plan: Plan | None,
    sizes: MeshSizes,
    precision: Any,
    step: Callable[[Any, Any], Any],
    batch: Any,
) -> _Tried:
    tensors, context = sizes.of(TENSOR), sizes.context
    with ExitStack() as stack:
        if tensors * context > 1:
            stack.enter_context(fake_world.fake_group(tensors * context))
        shell = precision.convert_module(fake_world.without_memory(module))
        no_values = fake_world.mode()
        with no_values:
            fake_world.claim_device(shell, _CPU)
        axes: dict[str, list[int]] = {TENSOR: list(range(tensors))}
        around = [place * tensors for place in range(context)]
        if plan is not None and tensors * context > 1:
            _split(shell, plan, tensors, context)
        stack.enter_context(no_values)
        inputs = fake_world.claiming(batch, _CPU)
        apart = [watch.local(one) for one in [*shell.parameters(), *shell.buffers()]]
        apart += [leaf for leaf in leaves(inputs) if isinstance(leaf, Tensor)]
        tried = _Tried(watch.Watch(axes, apart, around))
        with _marked(shell, pipeline, tried), tried.seen:
            with precision.forward_context():
                loss = step(shell, precision.convert_input(inputs))
            tried.mark()
            loss.backward()
        tried.backward[-1] = tried.counts()
    return tried


def _split(shell: Module, plan: Plan, tensors: int, context: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    with fake_world.FewParts():
        mesh = init_device_mesh("cpu", (context, tensors), mesh_dim_names=(CONTEXT, TENSOR))
        matched = plan.match(shell)
        if tensors > 1:
            split_tensors(shell, Matched(matched.tensors, (), {}), mesh[TENSOR])
        for name, way in matched.attentions.items() if context > 1 else ():
            attend_together(shell.get_submodule(name), name, way, mesh[CONTEXT].get_group())


@contextmanager
def _marked(shell: Module, pipeline: Pipeline, tried: _Tried) -> Iterator[None]:
    """Inside, it is noted where stages begin."""

    def begin(stage: int) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            tried.mark()
            for leaf in leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    leaf.register_hook(lambda _: tried.backward.__setitem__(stage, tried.counts()))

        return hook

    handles = [
        shell.get_submodule(name).register_forward_pre_hook(begin(place + 1), with_kwargs=True, prepend=True)
        for place, name in enumerate(pipeline.split_points)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _most_at_once(
    pipeline: Pipeline, place: int, size: int, num: int, kept: Mapping[int, int], sent: Sequence[int]
) -> int:
    stages = pipeline.stages_on(place, size)
    # What goes to the stage beside it on the same process, is counted as received there.
    sends = {stage: 0 if stage + 1 in stages else sent[stage] for stage in stages}
    order = order_of_work(pipeline, place, size, num)
    return most_at_once(order, kept, sends, waits=pipeline.loops)


def _received(crossings: Mapping[int, Crossing], stages: Sequence[int]) -> int:
    # What neighbours on one process hand to each other is there, too.
    gradients = sum(_bytes(crossings[stage + 1], trained=True) for stage in stages if stage + 1 in crossings)
    return gradients + sum(_bytes(crossings[stage]) for stage in stages if stage)


def _together(tried: _Tried, crossings: Mapping[int, Crossing], stages: Sequence[int], calls: int) -> list[Traffic]:
    # Neighbours on one process hand it over without the network.
    before = [stage for stage in stages if stage and stage - 1 not in stages]
    after = [stage + 1 for stage in stages if stage + 1 in crossings and stage + 1 not in stages]
    rows = []
    for name, cuts, trained in (
        ("send activations", after, False),
        ("send gradients", before, True),
        ("receive activations", before, False),
        ("receive gradients", after, True),
    ):
        moved = calls * sum(_bytes(crossings[stage], trained=trained) for stage in cuts)
        if moved:
            sent = moved if name.startswith("send") else 0
            rows.append(Traffic(name, PIPELINE, 2, len(cuts) * calls, moved, sent))
    added: dict[tuple[str, str, int], list[int]] = {}
    for stage in stages:
        for one in tried.of_stage(stage):
            sums = added.setdefault((one.operation, one.axis, one.num_processes), [0, 0, 0])
            for place, number in enumerate((one.num_calls, one.message_bytes, one.sent_bytes)):
                sums[place] += number * calls
    return rows + [Traffic(*key, *sums) for key, sums in added.items()]


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _bytes(crossing: Crossing, *, trained: bool = False) -> int:
    return sum(one.numel() * one.element_size() for one in crossing.shapes if one.requires_grad or not trained)
