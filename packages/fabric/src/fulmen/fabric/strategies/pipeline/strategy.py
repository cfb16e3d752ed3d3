"""What a strategy with a mesh adds where modules are in stages: steps, norms over stages, and their state."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module
from torch.optim import LBFGS, Optimizer

from fulmen.fabric.compiled import is_compiled, plain_state, without_wrappers
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.strategies.base import users_module
from fulmen.fabric.strategies.known_here import NotesOnModulesHere
from fulmen.fabric.strategies.mesh import MeshStrategy
from fulmen.fabric.strategies.mesh_axes import PIPELINE
from fulmen.fabric.strategies.pipeline.state import gather_stages, only
from fulmen.fabric.strategies.pipeline.steps import PipelineSteps, joined
from fulmen.fabric.strategies.sharded_state import parameters_of


class PipelinedStrategy(MeshStrategy, ABC):
    """Modules may be in stages, of which each process has some.

    A subclass notes in `_steps` the modules that are.
    """

    _steps: NotesOnModulesHere[PipelineSteps]

    # ---- step

    def forward_backward(self, step: Callable[[Any, Any], Tensor], module: Module, batch: Any) -> Tensor:
        """The loss of a batch and its gradients, on every mesh; with a pipeline, a micro-batch at a time.

        Args:
            step: Gets the module and a batch, and returns the loss; the mean over samples.
            module: What setup has returned.
            batch: Of this process; processes along the pipeline axis have the same.

        Returns:
            The loss, without gradients; in every stage.

        Raises:
            ArgumentTypeError: If the step returns no loss.
            ConfigurationError: If the step cannot be cut into stages; the error says why.
        """
        steps = self.steps_of(module)
        if steps is None:
            loss = step(module, batch)
            self.backward(loss, module)
            return loss.detach()
        return steps.mean_of_last(steps.run(_name(step), partial(step, module), batch, backward=True))

    def evaluate(self, step: Callable[[Any, Any], Any], module: Module, batch: Any) -> Any:
        """What the step gives for a batch, without gradients, on every mesh and in every stage.

        With a pipeline, it gives one part for each micro-batch: numbers are averaged, samples joined.

        Args:
            step: Gets the module and a batch.
            module: What setup has returned.
            batch: Of this process; processes along the pipeline axis have the same.
        """
        steps = self.steps_of(module)
        with torch.no_grad():
            if steps is None:
                return step(module, batch)
            results = steps.run(_name(step), partial(step, module), batch, backward=False)
            return steps.from_last(joined(results) if results else None)

    def steps_of(self, module: Module) -> PipelineSteps | None:
        """What runs the stages of a module that setup has returned, or of the user's; None: it is whole."""
        if not self._steps:
            return None
        for part in [users_module(module), *module.modules()]:
            if part in self._steps:
                return self._steps[part]
            if is_compiled(part):
                raise ConfigurationError(
                    f"A pipeline was asked to run {type(part._orig_mod).__name__} inside of torch.compile. Its code is"
                    " left at each cut, and a compiled module runs to its end. Compile the modules of its stages, such"
                    " as each block, and not the whole."
                )
        return None

    def no_backward_sync(self, module: Module, enabled: bool) -> AbstractContextManager[Any]:
        """Backward inside adds up gradients without exchanging them, if `enabled`."""
        steps = self.steps_of(module) if enabled else None
        return super().no_backward_sync(module, enabled) if steps is None else steps.waiting()

    def _norm_of(self, gradients: Sequence[Tensor], norm_type: float) -> Tensor:
        norm = super()._norm_of(gradients, norm_type)
        if not self._steps:
            return norm
        is_largest = math.isinf(norm_type)
        power = norm.double() if is_largest else norm.double() ** norm_type
        operation = dist.ReduceOp.MAX if is_largest else dist.ReduceOp.SUM
        dist.all_reduce(power, op=operation, group=self.device_mesh[PIPELINE].get_group())
        return (power if is_largest else power ** (1.0 / norm_type)).to(norm)

    # ---- state

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer, stepping the parameters that are there since the module was set up.

        Raises:
            ConfigurationError: If it looks at all parameters at once, of which each process has some.
        """
        optimizer = super().setup_optimizer(optimizer)
        if isinstance(optimizer, LBFGS) and self._steps_of_optimizer(optimizer) is not None:
            raise ConfigurationError(
                f"ModelParallelStrategy(pipeline=...) cannot step with {type(optimizer).__name__}. It searches along a"
                " direction of all parameters, and each process has those of its stages only. Choose an optimizer that"
                " steps each parameter by itself, such as torch.optim.AdamW, or leave the pipeline out."
            )
        return optimizer

    def holds(self, module: Module, name: str) -> bool:
        """Is this parameter or buffer of a module that was set up in this process, or a part of it?"""
        steps = self.steps_of(module)
        return steps is None or steps.staged.holds(without_wrappers(name))

    def module_state(self, module: Module) -> dict[str, Any]:
        """The module's state dict as it is saved: what is here, or whole on rank 0 and empty elsewhere."""
        steps = self.steps_of(module)
        if steps is None:
            return super().module_state(module)
        state = plain_state(users_module(module))
        own = only(state, steps.staged.holds)
        return own if self.saves_shards else self._gather_stages(own, state)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state as it is saved: split and by name, or whole on rank 0 and empty elsewhere."""
        if self.saves_shards or self._steps_of_optimizer(optimizer) is None:
            return super().optimizer_state(optimizer)
        packed = optimizer.state_dict()
        state = self._gather_stages(packed["state"], range(len(parameters_of(optimizer))))
        return {**packed, "state": state} if self.is_global_zero else {}

    def load_module_state_dict(self, module: Module, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load a state dict, whole or split; of what is whole, each process takes its part."""
        steps = self.steps_of(module)
        if steps is not None:
            here = plain_state(users_module(module))
            state = {name: value for name, value in state_dict.items() if self._is_here(steps, name)}
            state_dict = {**state, **{name: value for name, value in here.items() if not steps.staged.has(name)}}
        super().load_module_state_dict(module, state_dict, strict)

    def load_optimizer_state(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        """Load an optimizer's state, whole or split, by name or number; of the whole, each process takes its part."""
        steps = self._steps_of_optimizer(optimizer)
        if steps is not None:
            names = self._book.names(optimizer)
            held = only(
                state_dict.get("state", {}),
                lambda key: self._is_here(steps, names[key] if isinstance(key, int) else key),
            )
            state_dict = {**state_dict, "state": held}
        super().load_optimizer_state(optimizer, state_dict)

    def _to_fill(self, where: str, value: Any, entries: list[tuple[Any, Any]], strict: bool) -> Any:
        found = super()._to_fill(where, value, entries, strict)
        if isinstance(found, dict) and isinstance(value, Optimizer):
            steps = self._steps_of_optimizer(value)
            if steps is not None and "state" in found:
                found["state"] = only(found["state"], partial(self._is_here, steps))
        elif isinstance(found, dict) and isinstance(value, Module):
            steps = self.steps_of(value)
            if steps is not None:
                found = only(found, partial(self._is_here, steps))
        return found

    @staticmethod
    def _is_here(steps: PipelineSteps, name: str) -> bool:
        return steps.staged.has(without_wrappers(name))

    def _steps_of_optimizer(self, optimizer: Optimizer) -> PipelineSteps | None:
        own = {id(parameter) for parameter in parameters_of(optimizer)}
        for steps in self._steps.values():
            if any(id(parameter) in own for parameter in steps.staged.module.parameters()):
                return steps
        return None

    def _gather_stages(self, own: Any, order: Any) -> dict[Any, Any]:
        mesh = self.device_mesh
        coordinates = dict(zip(mesh.mesh_dim_names or (), mesh.get_coordinate() or (), strict=True))
        coordinates.pop(PIPELINE)
        is_first = not any(coordinates.values())
        return gather_stages(own, order, self.root_device, mesh[PIPELINE].get_group(), is_first=is_first)


def _name(step: Callable[..., Any]) -> str:
    return getattr(step, "__qualname__", type(step).__name__)
