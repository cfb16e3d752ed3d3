"""In which order one process of a pipeline works, and what is under way at the same time.

The order is that of torch's own schedules, asked of them; for the two with one stage on each process it is known: GPipe
(Huang et al., 2019) goes forward with all micro-batches first, and 1F1B (Narayanan et al., 2021) with as many as there
are stages from this one on, and from then on backward with one after each forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.nn import Module

from fulmen.fabric.strategies.pipeline.cuts import GPIPE, ONE_F_ONE_B, Pipeline
from fulmen.fabric.strategies.pipeline.steps import TORCH_NAMES

Work = tuple[Literal["forward", "done"], int]  # with a micro-batch, in a stage
# Of torch, and whether what forward has kept is let go of after it. What weights need stays until they have it.
_LETS_GO = {"FORWARD": False, "FULL_BACKWARD": True, "BACKWARD_WEIGHT": True}


def order_of_work(pipeline: Pipeline, place: int, size: int, num: int) -> list[Work]:
    """What a process does in a step, forward and the end of backward.

    Args:
        pipeline: Its schedule is that for so many micro-batches.
        place: Of the process, along an axis of `size`.
        num: Micro-batches.

    >>> order_of_work(Pipeline(["b"], 3), place=1, size=2, num=3)[:3]
    [('forward', 1), ('done', 1), ('forward', 1)]
    """
    name = pipeline.schedule_for(num, size)
    stages = pipeline.stages_on(place, size)
    if name in (GPIPE, ONE_F_ONE_B):
        (stage,) = stages
        first = num if name == GPIPE else min(num, pipeline.num_stages - stage)
        later: list[Work] = [("done", stage), ("forward", stage)] * (num - first)
        return [*[("forward", stage)] * first, *later, *[("done", stage)] * first]  # type: ignore[list-item]  # pairs
    import torch.distributed.pipelining

    kind = getattr(torch.distributed.pipelining, TORCH_NAMES[name])
    made = kind([_NoStage(stage, pipeline.num_stages, size, place) for stage in stages], num, loss_fn=None)
    return list(_work(made.pipeline_order[place]))


def most_at_once(order: Iterable[Work], kept: Mapping[int, int], sent: Mapping[int, int], *, waits: bool) -> int:
    """The most that is there at one time.

    Args:
        order: What is done.
        kept: By forward of each stage for backward.
        sent: Of each stage, what goes to the next one.
        waits: Is it kept until the end, as torch's schedules for several stages do, or as long as the rest?

    >>> order = [("forward", 0), ("forward", 0), ("done", 0), ("forward", 1)]
    >>> most_at_once(order, {0: 10, 1: 5}, {0: 1, 1: 0}, waits=False)
    22
    """
    there = most = 0
    for what, stage in order:
        there += kept[stage] + sent[stage] if what == "forward" else -kept[stage] - (not waits) * sent[stage]
        most = max(most, there)
    return most


def _work(actions: Sequence[Any]) -> Iterable[Work]:
    for action in actions:
        for part in () if action is None else getattr(action, "sub_actions", None) or (action,):
            lets_go = _LETS_GO.get(part.computation_type.name)
            if lets_go is not None:
                yield ("done" if lets_go else "forward"), part.stage_index


@dataclass
class _NoStage:
    """What a schedule asks a stage for its order."""

    stage_index: int
    num_stages: int
    group_size: int
    group_rank: int
    submod: Module = Module()  # noqa: RUF009  # it is only looked at
