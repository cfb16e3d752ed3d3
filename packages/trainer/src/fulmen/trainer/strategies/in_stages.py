"""Steps of a LightningModule in the stages of a pipeline.

Each stage runs the user's step, from its own cut to the next, once for every micro-batch. What is logged and returned
is that of the last stage; the others hear of it, so that it is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fulmen.fabric.class_names import class_name
from fulmen.fabric.compiled import plain_parameters
from fulmen.fabric.strategies.mesh_axes import TENSOR
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy
from fulmen.fabric.strategies.pipeline.parts import users_part
from fulmen.fabric.strategies.pipeline.steps import PipelineSteps, joined
from fulmen.fabric.strategies.sharded_tensors import gather, split_like
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.signature import is_overridden
from fulmen.trainer.strategies import half_summed
from fulmen.trainer.strategies.half_summed import Gradients

_REDUCED: dict[Any, Callable[[Tensor], Tensor]] = {"sum": torch.sum, "min": torch.amin, "max": torch.amax}
_REDUCED |= {sum: torch.sum, min: torch.amin, max: torch.amax, torch.sum: torch.sum}
_REDUCED |= {torch.min: torch.amin, torch.max: torch.amax}


def check_module(module: LightningModule) -> None:
    """Refuse what a pipeline cannot do.

    Raises:
        ConfigurationError: For manual optimization, and for a `backward` of the module's own.
    """
    name = class_name(module)
    if not module.automatic_optimization:
        raise ConfigurationError(
            f"{name} optimizes by hand (automatic_optimization=False), and ModelParallelStrategy(pipeline=...) computes"
            " gradients itself, a micro-batch after the other. A step that calls backward has no place for that."
            " Return the loss from training_step, or leave the pipeline out."
        )
    if is_overridden("backward", module, LightningModule):
        raise ConfigurationError(
            f"{name} overrides backward(), and ModelParallelStrategy(pipeline=...) computes gradients itself, stage"
            " after stage. It would not be called. Leave backward() out, or the pipeline."
        )


class InStages:
    """One of the module's steps, for whole batches.

    Args:
        module: The user's.
        steps: Runs its stages.
        step: Its method, with the context of the precision.
        name: Of the method.
        divisor: By what the loss is divided, asked before each step.
    """

    def __init__(
        self,
        module: LightningModule,
        steps: PipelineSteps,
        step: Callable[..., Any],
        name: str,
        divisor: Callable[[], int],
    ) -> None:
        self._module, self._steps, self._step, self._name = module, steps, step, name
        self._divisor = divisor
        self._is_training = name == "training_step"

    def __call__(self, batch: Any, *where: Any) -> Any:
        """What the step gives for the batch; of a training step the loss without gradients, which are there then."""
        module, sink = self._module, self._module._sink
        records: list[_Record] = []

        def step(micro_batch: Any) -> Any:
            record.calls = []
            output = self._step(micro_batch, *where)
            records.append(_Record(record.calls, _detached(output)))
            return self._divided(output) if self._is_training else None

        record = _Recorder()
        trainer: Any = module._trainer
        module.attach(trainer, record)
        try:
            self._steps.run(self._name, step, batch, backward=self._is_training)
        finally:
            module.attach(trainer, sink)
        last = self._last(records) if self._steps.has_last else None
        calls, output = self._steps.from_last(last)
        if sink is not None:
            for name, value, options in calls:
                if isinstance(value, _Metric):
                    value = module.get_submodule(value)
                sink.log(name, value, **options)
        return output

    def _divided(self, output: Any) -> Any:
        loss = output["loss"] if isinstance(output, dict) and "loss" in output else output
        if output is None:
            raise ConfigurationError(
                f"{class_name(self._module)}.training_step() returned None, which skips a batch. In a pipeline the"
                " other stages have begun with it. Return the loss of every batch."
            )
        return loss / self._divisor() if isinstance(loss, Tensor) else loss

    def _last(self, records: list[_Record]) -> tuple[list[Any], Any]:
        paths = {id(part): name for name, part in self._module.named_modules()}
        return _merged([one.calls for one in records], paths), joined([one.output for one in records])


def whole_gradients(module: LightningModule | nn.Module, strategy: ModelParallelStrategy) -> Gradients:
    """The gradients of the stages that are here, whole, for one of the processes that have them. All must call it."""
    found: Gradients = {}
    keeps = not strategy.sizes.data_rank(strategy.global_rank)
    keeps &= not strategy.sizes.coordinates(strategy.global_rank)[TENSOR]
    for name, parameter in plain_parameters(module).items():
        if parameter.grad is not None:
            whole = gather(parameter.grad, strategy.root_device, keep=keeps)
            if whole is not None:
                found[half_summed.MEAN + name] = whole.clone()
    return found


def put_whole_gradients(module: nn.Module, saved: Sequence[Gradients]) -> bool:
    """Give the parameters of the stages that are here their gradients. Did all fit?"""
    means, own = half_summed.apart(saved)
    wholes = {**half_summed.mean_of(own), **means}
    parameters = plain_parameters(module)
    if any(name not in parameters or parameters[name].shape != grad.shape for name, grad in wholes.items()):
        return False
    for name, grad in wholes.items():
        parameter = parameters[name]
        if not parameter.is_meta:  # else it is in another stage
            parameter.grad = split_like(grad.to(parameter.device), parameter)
    return True


@dataclass
class _Record:
    calls: list[tuple[str, Any, dict[str, Any]]]
    output: Any


class _Metric(str):
    """A metric object, by its name in the module."""


class _Recorder:
    """Keeps what is logged, in the place of the run."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, dict[str, Any]]] = []

    def log(self, name: str, value: Any, **options: Any) -> None:
        """Take one value."""
        value = users_part(value)
        self.calls.append((name, value.detach().clone() if isinstance(value, Tensor) else value, options))


def _detached(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, dict):
        return {key: _detached(value) for key, value in output.items()}
    return type(output)(map(_detached, output)) if type(output) in (list, tuple) else output


def _merged(records: list[list[tuple[str, Any, dict[str, Any]]]], paths: dict[int, str]) -> list[Any]:
    """What was logged for all micro-batches, as if once for the batch."""
    found: dict[str, list[tuple[Any, dict[str, Any]]]] = {}
    for calls in records:
        for name, value, options in calls:
            found.setdefault(name, []).append((value, options))
    merged: list[Any] = []
    for name, logged in found.items():
        value, options = logged[-1][0], dict(logged[0][1])
        if id(value) in paths:
            value = _Metric(paths[id(value)])
        elif isinstance(value, Tensor | int | float):
            values = torch.stack([torch.as_tensor(one, dtype=torch.float64) for one, _ in logged])
            value = _REDUCED.get(options.get("reduce_fx"), torch.mean)(values)
            value = value.to(logged[0][0].dtype) if _is_real(logged[0][0]) else value.to(torch.get_default_dtype())
        if options.get("batch_size") is not None:
            options["batch_size"] = sum(one["batch_size"] for _, one in logged)
        merged.append((name, value, options))
    return merged


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
