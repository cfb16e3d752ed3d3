"""A step of a module in stages, over the schedules of `torch.distributed.pipelining`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fulmen.fabric.collectives import process_group
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.strategies.pipeline.answers import Answers
from fulmen.fabric.strategies.pipeline.cuts import (
    DUAL_PIPE_V,
    GPIPE,
    INTERLEAVED,
    LOOPED,
    ONE_F_ONE_B,
    ZERO_BUBBLE,
    ZERO_BUBBLE_V,
)
from fulmen.fabric.strategies.pipeline.parts import Crossing, StagedModule
from fulmen.fabric.strategies.pipeline.stage import stage_class
from fulmen.fabric.trees import leaves, map_tree

# Of sizes of batches for which buffers are kept.
_NUM_KEPT = 8
TORCH_NAMES = {
    GPIPE: "ScheduleGPipe",
    ONE_F_ONE_B: "Schedule1F1B",
    LOOPED: "ScheduleLoopedBFS",
    INTERLEAVED: "ScheduleInterleaved1F1B",
    ZERO_BUBBLE: "ScheduleInterleavedZeroBubble",
    ZERO_BUBBLE_V: "ScheduleZBVZeroBubble",
    DUAL_PIPE_V: "ScheduleDualPipeV",
}


class StageRunner(nn.Module):
    """One stage as torch's schedules and `fully_shard` see it: its parameters, and a forward.

    Args:
        stage: Which.
        staged: The module that it is of.
    """

    def __init__(self, stage: int, staged: StagedModule) -> None:
        super().__init__()
        self.stage = stage
        self.units = nn.ModuleList(staged.units_of(stage))
        self.loose = nn.Module()
        self._places: list[tuple[nn.Module, str]] = staged.loose_of(stage)
        for place, (container, name) in enumerate(self._places):
            self.loose.register_parameter(f"p{place}", container._parameters[name])
        # Set for each step: what the stage does with a micro-batch.
        self.work: Callable[..., Any] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_places":  # containers are no parts of this
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def loose_now(self) -> dict[tuple[int, str], Any]:
        """Parameters of containers, whole while forward runs."""
        return {
            (id(container), name): self.loose._parameters[f"p{place}"]
            for place, (container, name) in enumerate(self._places)
        }

    def give_back(self) -> None:
        """Let the containers have their parameters as they are since they were split."""
        for (container, name), value in zip(self._places, self.loose._parameters.values(), strict=True):
            container._parameters[name] = value

    def forward(self, *arrived: Tensor, place: Tensor) -> Any:
        """What goes to the next stage, or the loss."""
        assert self.work is not None
        return self.work(self, arrived, int(place))


class PipelineSteps:
    """Runs steps of one module in stages.

    Args:
        staged: The module.
        runners: Its stages of this process.
        group: The processes along the pipeline axis.
        size: How many.
    """

    def __init__(self, staged: StagedModule, runners: Sequence[StageRunner], group: Any, size: int) -> None:
        self.staged, self.runners = staged, list(runners)
        self._group, self._size = group, size
        self._schedules: OrderedDict[Any, tuple[Any, dict[int, Crossing]]] = OrderedDict()
        self._waits = False
        self._key: Any = None  # of the step that ran last

    @property
    def last_rank(self) -> int:
        """The process with the last stage."""
        return dist.get_global_rank(self._group, self.staged.pipeline.place_of(-1, self._size))

    @property
    def has_last(self) -> bool:
        """Is the last stage here?"""
        return self.staged.num_stages - 1 in self.staged.stages

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, gradients are added up and not exchanged."""
        outside, self._waits = self._waits, True
        try:
            yield
        finally:
            self._waits = outside

    def run(self, name: str, step: Callable[[Any], Any], batch: Any, *, backward: bool) -> list[Any]:
        """All micro-batches through all stages; what the step gives for each of them, where the last stage is.

        Args:
            name: Of the step: what it calls is rehearsed once for each name and each form of the batch.
            step: Gets a micro-batch. With `backward`, it gives a loss, and backward is that of their mean.
            batch: All processes along the axis have the same.
            backward: Compute gradients?
        """
        micro_batches = cut_batch(batch, self.staged.pipeline.parts_of)
        results: dict[int, Any] = {}
        # The same in all stages: in each, or in none, a new schedule is made.
        frozen = hash(tuple(parameter.requires_grad for parameter in self.staged.module.parameters()))
        modes = self.staged.module.training, torch.is_autocast_enabled(self.staged.device.type)
        self._key = key = name, backward, frozen, modes, _form(micro_batches)
        with self.staged.cut_open():
            schedule, crossings = self._schedule(key, step, micro_batches, backward)
            failure: list[Exception] = []
            for runner in self.runners:
                runner.work = partial(self._work, step, micro_batches, crossings, backward, results, failure)
            places = torch.arange(len(micro_batches))
            try:
                # torch cuts what it gets into as many parts; each stage is told the number of its micro-batch.
                schedule.step(place=places, target=places if backward else None)
            except RuntimeError as error:
                # torch puts what a stage says into an error of its own.
                if failure:
                    raise failure[0] from None
                raise error
            finally:
                for runner in self.runners:
                    runner.work = None
        return [results[place] for place in range(len(micro_batches))] if self.has_last else []

    def mean_of_last(self, losses: list[Any]) -> Tensor:
        """The mean of what the last stage has, in every process."""
        device = self.staged.device
        mean = torch.zeros((), dtype=torch.float64, device=_for_group(device))
        if self.has_last:
            mean = torch.stack([one.detach().to(mean) for one in losses]).mean()
        dist.broadcast(mean, self.last_rank, group=self._group)
        return mean.to(device, torch.get_default_dtype())

    def from_last(self, value: Any) -> Any:
        """What the process with the last stage has for the step that ran last, in every process."""
        return self._answers.share(self._key, value)

    @cached_property
    def _answers(self) -> Answers:
        device = self.staged.device
        return Answers(self._group, self.last_rank, device, _for_group(device))

    def _work(
        self,
        step: Callable[[Any], Any],
        micro_batches: list[Any],
        crossings: dict[int, Crossing],
        backward: bool,
        results: dict[int, Any],
        failure: list[Exception],
        runner: StageRunner,
        arrived: tuple[Tensor, ...],
        place: int,
    ) -> Any:
        stage, is_last = runner.stage, runner.stage == self.staged.num_stages - 1
        try:
            result = self.staged.run(stage, arrived, crossings, lambda: step(micro_batches[place]), runner.loose_now())
            if not is_last:
                return result
            if backward:
                _check_loss(result)
                results[place] = result.detach()
                return result
        except Exception as error:
            failure.append(error)
            raise
        results[place] = result
        return torch.zeros(())

    def _schedule(self, key: Any, step: Callable[[Any], Any], micro_batches: list[Any], backward: bool) -> Any:
        if key in self._schedules:
            self._schedules.move_to_end(key)
            return self._schedules[key]
        with torch.set_grad_enabled(backward):
            crossings = self.staged.rehearse(lambda: step(micro_batches[0]))
        found = self._make_schedule(crossings, len(micro_batches), backward), crossings
        self._schedules[key] = found
        if len(self._schedules) > _NUM_KEPT:
            self._schedules.popitem(last=False)
        return found

    def _make_schedule(self, crossings: dict[int, Crossing], num: int, backward: bool) -> Any:
        import torch.distributed.pipelining as pipelining

        num_stages, device = self.staged.num_stages, self.staged.device
        scalar = torch.zeros((), device=device)

        def like(stage: int) -> tuple[Tensor, ...]:
            if stage in (0, num_stages):
                return () if stage == 0 else (scalar,)
            return tuple(
                torch.empty(one.shape, dtype=one.dtype, device="meta", requires_grad=one.requires_grad)
                for one in crossings[stage].shapes
            )

        stages = [
            stage_class()(
                lambda: self._waits,
                runner,
                runner.stage,
                num_stages,
                device,
                input_args=like(runner.stage),
                output_args=like(runner.stage + 1),
                group=self._group,
            )
            for runner in self.runners
        ]
        loss = partial(_part_of_mean, num) if backward else None
        pipeline = self.staged.pipeline
        name = pipeline.schedule_for(num, self._size) if backward else pipeline.schedule_without_backward
        if name == GPIPE and num < num_stages:
            name = LOOPED  # the same with one stage here; GPipe of torch 2.9 refuses so few
        kind = getattr(pipelining, TORCH_NAMES[name])
        in_order = getattr(pipelining.schedules, "_PipelineScheduleRuntime", object)  # torch 2.9 has others
        if pipeline.loops and num < self._size and not issubclass(kind, in_order):
            raise ConfigurationError(
                f"Pipeline(schedule={pipeline.schedule!r}) got a batch of {num} micro-batches for {self._size}"
                f" processes. With several stages on each, torch {torch.__version__} computes wrong gradients of so"
                " few. Pass a batch size that micro_batches divides and drop_last=True, or use a newer torch."
            )
        given = stages if pipeline.loops or name == LOOPED else stages[0]
        return kind(given, num, loss_fn=loss, output_merge_spec=(), scale_grads=False)


def cut_batch(batch: Any, parts_of: Callable[[int], int]) -> list[Any]:
    """The batch in equal parts along the first axis of its tensors.

    Args:
        batch: Nested tensors. Those without axes are in every part, as is what is no tensor; a list without tensors
            that is as long as the batch is cut.
        parts_of: How many parts for so many samples.

    Raises:
        ConfigurationError: If tensors are not of the same length.
    """
    sizes = {leaf.shape[0] for leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim}
    if len(sizes) != 1:
        raise ConfigurationError(
            f"A batch for a pipeline has {'no tensor' if not sizes else f'tensors of {sorted(sizes)} samples'}. It is"
            " cut into micro-batches along the first axis of all of its tensors. Let the collate function make tensors"
            " whose first axis counts samples."
        )
    (size,) = sizes
    num = parts_of(size) if size else 1
    length = size // num

    def part(tree: Any, begin: int) -> Any:
        if isinstance(tree, Tensor):
            return tree.narrow(0, begin, length) if tree.ndim else tree
        if type(tree) in (list, tuple) and len(tree) == size and not any(map(_holds_tensor, tree)):
            return tree[begin : begin + length]
        if type(tree) in (list, tuple):
            return type(tree)(part(one, begin) for one in tree)
        if type(tree) is dict:
            return {key: part(one, begin) for key, one in tree.items()}
        return map_tree(tree, lambda leaf: leaf if leaf is tree else part(leaf, begin))

    return [part(batch, place * length) for place in range(num)]


def _holds_tensor(tree: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in leaves(tree))


def joined(results: list[Any]) -> Any:
    """What a step gave for micro-batches, for all of them: the mean of numbers, samples after each other.

    >>> joined([{"loss": 1.0}, {"loss": 3.0}])
    {'loss': 2.0}
    """
    first = results[0]
    if isinstance(first, Tensor):
        if first.ndim:
            return torch.cat(results)
        stacked = torch.stack(results)
        return stacked.mean() if stacked.is_floating_point() or stacked.is_complex() else stacked.double().mean()
    if isinstance(first, int | float) and not isinstance(first, bool):
        return sum(results) / len(results)
    if isinstance(first, dict):
        return {key: joined([one[key] for one in results]) for key in first}
    if type(first) is tuple:
        return tuple(joined([one[place] for one in results]) for place in range(len(first)))
    return first if first is None else [item for one in results for item in (one if type(one) is list else [one])]


def _form(micro_batches: list[Any]) -> tuple[Any, ...]:
    first = [leaf for leaf in leaves(micro_batches[0]) if isinstance(leaf, Tensor)]
    return len(micro_batches), tuple((tuple(leaf.shape), leaf.dtype) for leaf in first)


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        shown = f"a tensor of {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ArgumentTypeError(
            f"forward_backward(step, ...) got {shown} from the step. Backward begins with the loss of a micro-batch."
            " Return a tensor with one number, which depends on parameters."
        )


def _part_of_mean(num: int, loss: Tensor, _: Tensor) -> Tensor:
    return loss / num


def _for_group(device: torch.device) -> torch.device:
    return device if device.type != "cpu" and process_group.is_initialized() else torch.device("cpu")
