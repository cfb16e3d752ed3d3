"""Where a module is cut into the stages of a pipeline, and in which order these work (pure).

A stage begins with the module that a split point names, and has all that is defined from there to the next one. Code
of the modules around split points (their containers) belongs to no stage: it runs in each, up to the next cut.

| schedule | stages on each process | order |
| --- | --- | --- |
| "GPipe" | one | forward of all micro-batches, then backward of all |
| "1F1B" | one | backward as soon as it can be: no more activations than there are stages |
| "LoopedBFS" | several | as GPipe, stage by stage |
| "Interleaved1F1B" | several | as 1F1B; fewer bubbles, and more to send |
| "InterleavedZeroBubble" | several | gradients of weights later than those of inputs: fewer bubbles still |
| "ZBVZeroBubble" | two, as a V: the first process has the first and the last | as before; fewest bubbles |
| "DualPipeV" | two, as a V | as before, a forward with a backward; needs as many micro-batches as stages |
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError

GPIPE, ONE_F_ONE_B, LOOPED = "GPipe", "1F1B", "LoopedBFS"
INTERLEAVED, ZERO_BUBBLE = "Interleaved1F1B", "InterleavedZeroBubble"
ZERO_BUBBLE_V, DUAL_PIPE_V = "ZBVZeroBubble", "DualPipeV"
SCHEDULES = (GPIPE, ONE_F_ONE_B, LOOPED, INTERLEAVED, ZERO_BUBBLE, ZERO_BUBBLE_V, DUAL_PIPE_V)
_SINGLE = (GPIPE, ONE_F_ONE_B)
_V_SHAPED = (ZERO_BUBBLE_V, DUAL_PIPE_V)
# These compute gradients of weights apart from those of inputs.
_APART = (ZERO_BUBBLE, *_V_SHAPED)
# Their forward computes with their parts in one piece, and never calls them.
_CLOSED = (nn.MultiheadAttention, nn.RNNBase, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class Pipeline:
    """A module in stages, which work on parts of a batch at the same time.

    Args:
        split_points: Names of modules, in the order in which forward calls them; a stage begins with each, and one
            before the first.
        micro_batches: Into how many parts each batch is cut. One that this does not divide is cut into fewer.
        schedule: "1F1B", "GPipe", or with several stages on each process "Interleaved1F1B", "LoopedBFS",
            "InterleavedZeroBubble", or with two on each, "ZBVZeroBubble", "DualPipeV".

    Raises:
        ArgumentTypeError: If names or numbers are none.
        ConfigurationError: If there is no split point, one is there twice, or the schedule is unknown or does not go
            with the numbers.

    >>> Pipeline(["blocks.2", "blocks.4"], micro_batches=8).num_stages
    3
    """

    split_points: Sequence[str]
    micro_batches: int
    schedule: Literal[
        "1F1B", "GPipe", "Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV"
    ] = "1F1B"

    def __post_init__(self) -> None:
        points = self.split_points
        if isinstance(points, str) or not isinstance(points, Iterable) or not all(isinstance(p, str) for p in points):
            raise ArgumentTypeError(
                f"Pipeline(split_points={points!r}) is no list of names. A stage begins with each of these modules."
                " Pass a list of their names, such as ['blocks.2']."
            )
        object.__setattr__(self, "split_points", tuple(points))
        if not self.split_points or "" in self.split_points:
            raise ConfigurationError(
                f"Pipeline(split_points={list(self.split_points)!r}) leaves one stage. A stage begins with each module"
                " that is named, and one before the first. Name at least one module inside, such as 'blocks.2'."
            )
        twice = [name for place, name in enumerate(self.split_points) if name in self.split_points[:place]]
        if twice:
            raise ConfigurationError(
                f"Pipeline(split_points={list(self.split_points)!r}) names {twice[0]!r} twice. One stage begins with"
                " each module. Name it once."
            )
        if not isinstance(self.micro_batches, int) or isinstance(self.micro_batches, bool) or self.micro_batches < 1:
            raise ConfigurationError(
                f"Pipeline(micro_batches={self.micro_batches!r}) is no number of parts. Each batch is cut into so many,"
                f" on which the stages work at the same time. Pass a positive int, such as {4 * self.num_stages}."
            )
        if self.schedule not in SCHEDULES:
            close = difflib.get_close_matches(str(self.schedule), SCHEDULES, 1, cutoff=0.4)
            near = f" (did you mean {close[0]!r}?)" if close else ""
            raise ConfigurationError(
                f"Pipeline(schedule={self.schedule!r}) is unknown{near}. It is the order in which stages work on"
                f" micro-batches. Pass one of {', '.join(map(repr, SCHEDULES))}."
            )
        if self.is_v_shaped and (self.num_stages % 2 or self.num_stages < 4):
            raise ConfigurationError(
                f"Pipeline(split_points={list(self.split_points)!r}, schedule={self.schedule!r}) has {self.num_stages}"
                " stages. With this schedule each process has two, one on the way down and one on the way up, and"
                " there are at least two processes. Pass an odd number of split points, and at least three."
            )
        if self.schedule == DUAL_PIPE_V and self.micro_batches < self.num_stages:
            raise ConfigurationError(
                f"Pipeline(micro_batches={self.micro_batches}, schedule={self.schedule!r}) has fewer micro-batches than"
                f" its {self.num_stages} stages. It works on as many at the same time. Pass micro_batches="
                f"{2 * self.num_stages}, or schedule={ZERO_BUBBLE_V!r}."
            )

    @property
    def num_stages(self) -> int:
        """How many stages there are."""
        return len(self.split_points) + 1

    @property
    def loops(self) -> bool:
        """May a process have several stages?"""
        return self.schedule not in _SINGLE

    @property
    def is_v_shaped(self) -> bool:
        """Has the first process the last stage, and each process two that lie across from each other?"""
        return self.schedule in _V_SHAPED

    @property
    def computes_weights_apart(self) -> bool:
        """Are gradients of weights computed later than those of inputs?"""
        return self.schedule in _APART

    def size(self, asked: int | Literal["auto"]) -> int:
        """How many processes are along the pipeline axis.

        Args:
            asked: A number, or "auto": one for each stage, or one for two stages where the schedule is for several.

        Raises:
            ConfigurationError: If the stages cannot be shared out.
        """
        num_stages = self.num_stages
        if asked == "auto":
            asked = num_stages // 2 if self.loops and num_stages % 2 == 0 and num_stages > 2 else num_stages
        fits = 1 < asked <= num_stages and num_stages % asked == 0 and (self.loops or asked == num_stages)
        if fits and not (self.is_v_shaped and 2 * asked != num_stages):
            return asked
        if self.is_v_shaped:
            why = f"With schedule={self.schedule!r}, each process has two stages"
            advice = f"Pass pipeline_parallel_size={num_stages // 2}"
        elif self.loops:
            why = "Each process has the same number of stages"
            advice = f"Pass a size above 1 that divides {num_stages}"
        else:
            why = f"With schedule={self.schedule!r}, each process has one stage"
            advice = f"Pass pipeline_parallel_size={num_stages}, or a schedule for several, as 'Interleaved1F1B'"
        raise ConfigurationError(
            f"ModelParallelStrategy(pipeline_parallel_size={asked}) does not fit the {num_stages} stages of"
            f" Pipeline(split_points={list(self.split_points)!r}). {why}. {advice}, or other split points."
        )

    def stages_on(self, place: int, size: int) -> tuple[int, ...]:
        """The stages of one process along the axis.

        >>> Pipeline(["b", "c", "d"], 4, "LoopedBFS").stages_on(1, size=2)
        (1, 3)
        >>> Pipeline(["b", "c", "d"], 4, "ZBVZeroBubble").stages_on(1, size=2)
        (1, 2)
        """
        return tuple(stage for stage in range(self.num_stages) if self.place_of(stage, size) == place)

    def place_of(self, stage: int, size: int) -> int:
        """The process along the axis that has a stage.

        >>> Pipeline(["b", "c", "d"], 4, "ZBVZeroBubble").place_of(-1, size=2)
        0
        """
        turn, place = divmod(stage % self.num_stages, size)
        return size - 1 - place if self.is_v_shaped and turn % 2 else place

    def bubble(self, size: int, micro_batches: int | None = None) -> float:
        """The part of a step in which a process waits, if all stages take as long; of zero bubbles, at most.

        >>> Pipeline(["b"], micro_batches=3).bubble(size=2)
        0.25
        """
        work = (micro_batches or self.micro_batches) * (self.num_stages // size)
        return (size - 1) / (work + size - 1)

    def parts_of(self, batch_size: int) -> int:
        """Into how many equal micro-batches a batch is cut: as many as asked for, or the largest number that divides.

        >>> Pipeline(["b"], micro_batches=4).parts_of(8), Pipeline(["b"], micro_batches=4).parts_of(6)
        (4, 3)
        """
        return max(parts for parts in range(1, self.micro_batches + 1) if batch_size % parts == 0)

    def schedule_for(self, micro_batches: int, size: int) -> str:
        """The schedule that can do with so many micro-batches; that which was asked for, unless a batch was ragged."""
        if self.schedule == ONE_F_ONE_B and micro_batches < self.num_stages:
            return GPIPE
        if self.schedule in (INTERLEAVED, ZERO_BUBBLE) and micro_batches % max(1, micro_batches // size):
            return LOOPED
        if self.schedule == DUAL_PIPE_V and micro_batches < self.num_stages:
            return ZERO_BUBBLE_V
        return str(self.schedule)

    @property
    def schedule_without_backward(self) -> str:
        """The schedule for evaluation, with stages where they are."""
        if self.is_v_shaped:
            return ZERO_BUBBLE_V
        return LOOPED if self.loops else GPIPE


@dataclass(frozen=True)
class Cut:
    """How a module is cut.

    Attributes:
        stage_of: For the name of every module, that of the module itself "" included, its stage.
        containers: Modules around split points; their forward runs in every stage.
        units: Modules that are called by containers, each wholly in one stage: those with parameters, and split points.
            Others (a loss, a metric, an activation) are in every stage, as the code of the containers is.
    """

    stage_of: Mapping[str, int]
    containers: tuple[str, ...]
    units: tuple[str, ...]

    def stage_of_parameter(self, name: str) -> int:
        """The stage that has a parameter or a buffer."""
        return self.stage_of[name.rpartition(".")[0]]


def cut_module(module: nn.Module, pipeline: Pipeline) -> Cut:
    """Where a module is cut.

    Raises:
        ConfigurationError: If a split point is no place to cut, or parameters are shared by stages.
    """
    points, kind = pipeline.split_points, class_name(module)
    modules = dict(module.named_modules(remove_duplicate=False))
    order = list(modules)
    for point in points:
        _check_point(point, points, modules, kind)
    places = [order.index(point) for point in points]
    if places != sorted(places):
        right = sorted(points, key=order.index)
        raise ConfigurationError(
            f"Pipeline(split_points={list(points)!r}) is not in the order in which {kind} defines its modules. Each"
            f" stage has what is defined from its split point to the next. Pass {right!r}, or define the modules in the"
            " order in which forward calls them."
        )
    stage_of: dict[str, int] = {}
    stage = 0
    for name in order:
        stage += name in points
        stage_of[name] = stage
    around = {""}
    for point in points:
        parts = point.split(".")
        around |= {".".join(parts[:length]) for length in range(1, len(parts))}
    units = _units(modules, around, points)
    cut = Cut(stage_of, tuple(name for name in order if name in around), units)
    _check_stages(modules, cut, pipeline, kind)
    return cut


def _check_point(point: str, points: Sequence[str], modules: Mapping[str, nn.Module], kind: str) -> None:
    given = f"Pipeline(split_points={list(points)!r})"
    if point not in modules:
        close = difflib.get_close_matches(point, [name for name in modules if name], 4, cutoff=0.3)
        raise ConfigurationError(
            f"{given} names {point!r}, which {kind} does not have. A stage begins with a module. The nearest names are"
            f" {', '.join(map(repr, close or [name for name in modules if name][:4]))}: pass one of these."
        )
    if not has_forward(modules[point]):
        first = next((name for name in modules if name.startswith(f"{point}.")), None)
        raise ConfigurationError(
            f"{given} names {point!r}, a {class_name(modules[point])} without a forward. A stage begins when its"
            f" module is called, and this one never is. Name {first!r}."
        )
    parts = point.split(".")
    for length in range(1, len(parts)):
        around = ".".join(parts[:length])
        if around in points or isinstance(modules[around], _CLOSED):
            why = "is a split point itself" if around in points else "computes with its parts in one piece"
            raise ConfigurationError(
                f"{given} names {point!r}, which is inside of {around!r}, a {class_name(modules[around])} that"
                f" {why}. Stages follow each other, and cannot begin there. Name {around!r}, or a module beside it."
            )


def has_forward(module: nn.Module) -> bool:
    """Can it be called? A list of modules cannot."""
    return type(module).forward is not nn.Module.forward or "forward" in module.__dict__


def _units(modules: Mapping[str, nn.Module], around: set[str], points: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    opened = [""]
    for name, part in modules.items():
        if not name or name.rpartition(".")[0] not in opened:
            continue
        # A list of modules is not called; its members are.
        if name in around or not has_forward(part):
            opened.append(name)
        elif name in points or any(True for _ in part.parameters()):
            found.append(name)
    return tuple(found)


def _check_stages(modules: Mapping[str, nn.Module], cut: Cut, pipeline: Pipeline, kind: str) -> None:
    given = f"Pipeline(split_points={list(pipeline.split_points)!r})"
    if not any(cut.stage_of[name] == 0 for name in cut.units):
        raise ConfigurationError(
            f"{given} begins with the first module of {kind}. The first stage is what is defined before the first split"
            f" point, and would have nothing to do. Name a later module, up to {cut.units[-1]!r}."
        )
    owners: dict[int, str] = {}
    for name, part in modules.items():
        for own, value in part.named_parameters(recurse=False):
            full = f"{name}.{own}" if name else own
            first = owners.setdefault(id(value), full)
            if cut.stage_of_parameter(first) != cut.stage_of_parameter(full):
                raise ConfigurationError(
                    f"{given} puts {first!r} and {full!r} of {kind} into different stages, and they are one parameter."
                    " It would be trained apart. Choose split points that leave both in one stage, or do not share it."
                )
