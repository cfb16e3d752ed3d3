"""Give each process of a mesh its stages of a module: others lose their memory, and these are split over other axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.strategies.context_parallel import attend_together
from fulmen.fabric.strategies.materialize import without_memory
from fulmen.fabric.strategies.mesh_axes import PIPELINE, TENSOR
from fulmen.fabric.strategies.pipeline.cuts import Pipeline, cut_module
from fulmen.fabric.strategies.pipeline.parts import StagedModule
from fulmen.fabric.strategies.pipeline.steps import PipelineSteps, StageRunner
from fulmen.fabric.strategies.plan import Matched, Plan
from fulmen.fabric.strategies.sharded_tensors import is_split
from fulmen.fabric.strategies.split_by_plan import (
    check_parts,
    data_mesh,
    split_tensors,
    split_units,
    take_values_of_rank_zero,
)


def split_into_stages(
    module: nn.Module,
    pipeline: Pipeline,
    plan: Plan | None,
    mesh: DeviceMesh,
    device: torch.device,
    context: DeviceMesh | None = None,
) -> PipelineSteps:
    """Split a module. All processes must call it; they get the values that rank 0 has.

    Args:
        module: In the memory of the machine, on the device, or without memory, which its stages get later.
        pipeline: Where it is cut.
        plan: What is split over the other axes; None: parameters over the data axes, a stage at a time.
        mesh: Has a pipeline axis.
        device: Of this process.
        context: The processes that share sequences with this one, if there are.

    Raises:
        ConfigurationError: If the pipeline or the plan does not fit the module.
    """
    cut = cut_module(module, pipeline)
    matched = Matched({}, (), {}) if plan is None else plan.match(module)
    _check(module, matched, cut.containers)
    tensors = mesh[TENSOR]
    if tensors.size() > 1:
        check_parts(module, matched, tensors.size())
    take_values_of_rank_zero(module, device)
    along = mesh[PIPELINE]
    place, size = along.get_local_rank(), along.size()
    staged = StagedModule(module, pipeline, cut, pipeline.stages_on(place, size), device)
    staged.drop_others()

    def here(name: str) -> bool:
        return name not in cut.containers and cut.stage_of[name] in staged.stages

    if tensors.size() > 1:
        mine = {name: style for name, style in matched.tensors.items() if here(name)}
        split_tensors(module, Matched(mine, (), {}), tensors)
    if context is not None:
        for name, way in matched.attentions.items():
            if here(name):
                attend_together(module.get_submodule(name), name, way, context.get_group())
    over = data_mesh(mesh)
    if over.size() > 1:
        split_units(module, filter(here, matched.units), over)
    runners = [StageRunner(stage, staged) for stage in staged.stages]
    for runner in runners:
        if over.size() > 1 and any(True for _ in runner.parameters()):
            from torch.distributed.fsdp import fully_shard

            fully_shard(runner, mesh=over)
            if pipeline.computes_weights_apart:
                _keep_whole(runner)
        runner.give_back()
    steps = PipelineSteps(staged, runners, along.get_group(), size)
    module.register_forward_pre_hook(staged.refuse_outside)
    return steps


def _keep_whole(runner: StageRunner) -> None:
    """Let parameters stay gathered from forward to backward; torch's schedule gathers and splits the whole stage.

    It looks for the gradients of weights by the parameters that a stage has when backward begins. Of a unit that is
    split again after forward, these would be the parts, and get none.
    """
    from torch.distributed.fsdp import FSDPModule

    for part in runner.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(False, recurse=False)


def take_memory(steps: PipelineSteps) -> tuple[list[nn.Module], list[nn.Module]]:
    """The parts of these stages that are on the meta device: those to give memory to, and containers, which have it."""
    staged = steps.staged
    loose: list[nn.Module] = []
    for runner in steps.runners:
        if any(parameter.is_meta for parameter in runner.loose.parameters()):
            runner.loose.to_empty(device=staged.device)
            runner.give_back()
            loose += [container for container, _ in staged.loose_of(runner.stage) if container not in loose]
    for part in staged.outside():
        if any(one is not None and one.is_meta for one in part._buffers.values()):
            raise ConfigurationError(
                f"{class_name(part)} has buffers on the meta device and is in every stage of a pipeline. They"
                " have to be the same in each, and nothing says what they are. Make them on the CPU, or in a"
                " module with parameters."
            )
    return [part for runner in steps.runners for part in without_memory(runner.units)], loose


def tensors_here(steps: PipelineSteps) -> list[Any]:
    """Parameters and buffers of these stages, and the buffers of containers."""
    found = [one for runner in steps.runners for one in [*runner.parameters(), *runner.buffers()]]
    return found + [one for part in steps.staged.outside() for one in part._buffers.values() if one is not None]


def _check(module: nn.Module, matched: Matched, containers: tuple[str, ...]) -> None:
    if is_split(module) or any(getattr(one, "is_in_another_stage", False) for one in module.parameters()):
        raise ConfigurationError(
            f"ModelParallelStrategy(pipeline=...) got {class_name(module)}, which is split already. A pipeline cuts"
            " whole modules. Let a plan say how its parts are split, and do not split it in configure_model or before"
            " setup."
        )
    for name in containers:
        style = matched.tensors.get(name) or matched.attentions.get(name)
        if style is not None:
            raise ConfigurationError(
                f"ModelParallelStrategy(plan={{...}}, pipeline=...) splits {name!r} of {class_name(module)} over"
                " tensors or sequences, and the pipeline cuts through it. No process runs all of it."
                " Name modules that are wholly in one stage."
            )
