"""What the stages of a pipeline send to each other, hold, and wait for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from fulmen.fabric.forecast.figures import Traffic, size_text
from fulmen.fabric.strategies.pipeline.cuts import Pipeline, cut_module
from fulmen.fabric.strategies.pipeline.parts import Crossing, StagedModule
from fulmen.fabric.strategies.pipeline.steps import cut_batch
from fulmen.fabric.trees import map_tensors


def stage_traffic(
    module: Module, pipeline: Pipeline, step: Callable[[Any, Any], Any], batch: Any, size: int, accumulate: int
) -> list[Traffic]:
    """What the first process along the axis sends in an optimizer step, forward and backward.

    Args:
        module: Whole; stays as it is.
        pipeline: How it is cut.
        step: Gives the loss of (module, batch).
        batch: Of one process; its numbers do not count.
        size: Processes along the axis.
        accumulate: Batches for an optimizer step.
    """
    device = torch.device("cpu")
    staged = StagedModule(module, pipeline, cut_module(module, pipeline), range(pipeline.num_stages), device)
    parts = cut_batch(map_tensors(batch, _zeros), pipeline.parts_of)
    with staged.cut_open():
        crossings = staged.rehearse(lambda: step(module, parts[0]))
    here = pipeline.stages_on(0, size)
    activations = [_bytes(crossings[stage + 1]) for stage in here if stage + 1 < pipeline.num_stages]
    gradients = [_bytes(crossings[stage], trained=True) for stage in here if stage]
    rows = (("send activations", activations), ("send gradients", gradients))
    calls = len(parts) * accumulate
    return [
        Traffic(name, "pipeline_parallel", 2, len(sizes) * calls, sum(sizes) * calls, sum(sizes) * calls)
        for name, sizes in rows
        if sizes
    ]


def stage_notes(module: Module, pipeline: Pipeline, size: int) -> list[str]:
    """How long each process waits, and how much each has."""
    cut = cut_module(module, pipeline)
    held = [0] * size
    for name, parameter in module.named_parameters():
        held[cut.stage_of_parameter(name) % size] += parameter.numel() * parameter.element_size()
    shown = ", ".join(map(size_text, held))
    return [
        f"each process waits for {pipeline.bubble(size):.0%} of a step, with {pipeline.micro_batches} micro-batches and"
        f" stages that take as long.",
        f"parameters along the pipeline, before they are split over other axes: {shown}. Activations are not known:"
        " they are those of a micro-batch, as often as it is under way. What stages exchange along other axes is not"
        " counted.",
    ]


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _bytes(crossing: Crossing, *, trained: bool = False) -> int:
    return sum(one.numel() * one.element_size() for one in crossing.shapes if one.requires_grad or not trained)
