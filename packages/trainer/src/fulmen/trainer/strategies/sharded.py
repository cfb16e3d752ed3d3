"""Bound: what all strategies share that split parameters over processes.

Parameters are gathered when the module's own forward is called. So every step runs inside that forward, evaluation
too, and all processes make the same number of steps.
"""

import os
from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from fulmen.fabric.class_names import class_name
from fulmen.fabric.compiled import plain_parameters
from fulmen.fabric.forward_redirect import call_through_forward
from fulmen.fabric.precision.base import Precision, UniformPrecision
from fulmen.fabric.precision.fsdp import FSDPPrecision
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.strategies.sharded import ShardedStrategy as FabricShardedStrategy
from fulmen.fabric.strategies.sharded_tensors import is_split, split_again
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies import half_summed
from fulmen.trainer.strategies.half_summed import Gradients
from fulmen.trainer.strategies.parallel import ParallelStrategy

# The names of a run's parts in a folder of shards, as Lightning writes them too.
_MODEL, _OPTIMIZER = "model", "optimizer_"
# Before the name of a parameter: the sum of whole gradients of this process.
_WHOLE = "whole:"
# These change the types of parameters, and nothing else.
_CASTS = (Precision.convert_module, UniformPrecision.convert_module, FSDPPrecision.convert_module)
_TRUE = ("16-true", "bf16-true", "64-true")
_NO_CONTEXT: AbstractContextManager[Any] = nullcontext()


class ShardedStrategy(ParallelStrategy, ABC):
    """A module whose parameters are split over processes."""

    shards_parameters = True
    evaluates_in_step = True
    allows_inference_mode = False  # what is gathered inside of it could not be written to again

    _folder: str | None = None  # from which the run goes on, if it is one of shards
    _came_split = False  # was the module split before the run?

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Always: each process loads its part, and what its part is, is known then."""
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Never: the strategy gives each process its part."""
        return False

    @property
    def is_distributed(self) -> bool:
        """Always: also one process is a group."""
        return True

    def check_fit(self, module: Any, flags: Any) -> None:
        """Refuse batch norms that would have to be synchronised on the CPU.

        Raises:
            ConfigurationError: If they would.
        """
        super().check_fit(module, flags)
        if self.layer_sync is not None:
            self._refuse_layer_sync(module)

    def setup_model(self, *, training: bool) -> None:
        """Convert the module to the precision and split it, also if it is only evaluated."""
        model: nn.Module = self._module()
        if self._is_converted_now(model):
            model = self.precision_plugin.convert_module(model)
        if training and self.layer_sync is not None:
            self._refuse_layer_sync(model)
            model = self.layer_sync.apply(model)
        self.model = self.fabric_strategy.setup_module(model)
        self.setup_precision_plugin()

    def connect(self, model: LightningModule) -> None:
        """Bind the module, before its configure_model runs."""
        super().connect(model)
        self._came_split = is_split(model)

    def _is_converted_now(self, model: nn.Module) -> bool:
        """Is the module still to be converted? Parameters that are split change their type where they are.

        Raises:
            ConfigurationError: If the precision puts other layers in the place of those that are split, or would change
                the type of what a run before has split.
        """
        precision = self.precision_plugin
        if not is_split(model):
            return True
        if type(precision).convert_module in _CASTS:
            if self._came_split and precision.precision in _TRUE:
                self._refuse_another_type(model, precision.compute_dtype)
            return not self._came_split
        if not self._came_split:
            raise ConfigurationError(
                f"Trainer(precision={precision.precision!r}) exchanges layers, and {class_name(model)} has split its"
                " own in configure_model(). A new layer would not be split. Exchange the layers before you split them,"
                " or choose a precision that leaves them as they are, such as 'bf16-true'."
            )
        return False  # it was, before it was split: in a run before this

    def _refuse_another_type(self, model: nn.Module, dtype: torch.dtype) -> None:
        held = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()} - {dtype}
        if held:
            raise ConfigurationError(
                f"Trainer(precision={self.precision_plugin.precision!r}) got {class_name(model)}, which was split"
                f" before this run, and has parameters in {', '.join(sorted(map(str, held)))}. What is split goes on in"
                " the type that it had when it ran first. Fit with the precision of the run before, or make the module"
                " anew and load its weights."
            )

    def model_to_device(self) -> None:
        """Nothing: a module that fits on no device moves while it is split."""

    def take_optimizers(self, optimizers: list[Optimizer], schedulers: list[Any]) -> None:
        """Take over optimizers and schedulers; an optimizer that was made before the split follows its parameters."""
        fabric = self._fabric_sharded
        super().take_optimizers([fabric.setup_optimizer(optimizer) for optimizer in optimizers], schedulers)

    def teardown(self) -> None:
        """Let go of the run. The parameters stay split: the whole module may fit into no process."""
        if self._lightning_module is not None and self.layer_sync is not None:
            self.layer_sync.revert(self._lightning_module)
        if self._lightning_module is not None:
            split_again(self._lightning_module)
        self.model = self._lightning_module
        self._run_backward = self._folder = None
        self.fabric_strategy.teardown()

    def skip_gradient_sync(self, enabled: bool = True) -> AbstractContextManager[Any]:
        """Inside, backward adds up whole gradients and exchanges none: more will be added before the step."""
        if not enabled or self.model is None or not self._exchanges_gradients:
            return _NO_CONTEXT
        return self._fabric_sharded.no_backward_sync(self.model, enabled)

    # Gradients inside an accumulation window: sums of whole ones, and parts of those that were exchanged already

    def gather_gradients(self, module: nn.Module) -> list[Gradients]:
        """The gradients that wait: of each process its parts, and of sums the mean, in the memory of the first."""
        own = half_summed.take(module)
        for unit in self._units():
            with _gathered(module, unit) as parameters:
                waiting = {name: one.grad for name, one in parameters.items() if one.grad is not None}
                for name in sorted({name for names in self.gather_objects(list(waiting)) for name in names}):
                    if half_summed.is_sharded(parameters[name]):  # of each process another part, also when gathered
                        if name in waiting:
                            own[_WHOLE + name] = half_summed.in_memory(waiting[name])
                        continue
                    grad = waiting.get(name)
                    mean = self.reduce(torch.zeros_like(parameters[name]) if grad is None else grad, reduce_op="mean")
                    if self.is_global_zero:
                        own[half_summed.MEAN + name] = half_summed.in_memory(mean)
        if not any(self.gather_objects(bool(own))):
            rank_zero_warn(
                f"The checkpoint is written inside an accumulation window, and {type(self).__name__} cannot reach the"
                " gradients of its first batches: they are added up in another type than the parameters have."
                " A resume goes on without them. Save where a window ends to go on exactly."
            )
        return self.gather_objects(own)

    def put_back_gradients(self, module: nn.Module, saved: Sequence[Gradients]) -> bool:
        """Give the parameters their gradients again. Was it possible? Parts need as many processes as there were."""
        sums, own = half_summed.apart(saved)
        split = plain_parameters(module)
        if all(name in split and split[name].shape == grad.shape for one in own for name, grad in one.items()):
            # Where nothing was split, each process had whole ones.
            sums |= own[self.global_rank] if len(own) == self.world_size else half_summed.mean_of(own)
        else:
            if len(own) != self.world_size:
                return False
            mine = own[self.global_rank]
            parts = {name: grad for name, grad in mine.items() if not name.startswith(_WHOLE)}
            if not half_summed.put(split, parts):
                return False
            sums |= {name.removeprefix(_WHOLE): grad for name, grad in mine.items() if name.startswith(_WHOLE)}
        fits = True
        for unit in self._units() if sums else []:
            with _gathered(module, unit) as parameters:
                fits &= half_summed.put(parameters, {name: sums.pop(name) for name in parameters if name in sums})
        return fits and not sums

    # State

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state: each process its part, or where one file is saved, all of it on the first."""
        return self._fabric_sharded.module_state(self._module())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of one optimizer: each process its part, or where one file is saved, all of it on the first."""
        return self._fabric_sharded.optimizer_state(optimizer)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint: a folder to which every process writes, or a file that the first writes."""
        fabric = self._fabric_sharded
        if not fabric.saves_shards:
            super().save_checkpoint(checkpoint, filepath, storage_options=storage_options)
            return
        rest = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
        parts = {_MODEL: checkpoint["state_dict"]}
        for index, state in enumerate(checkpoint.get("optimizer_states", [])):
            parts[f"{_OPTIMIZER}{index}"] = state
        fabric.save_checkpoint(filepath, {**parts, **rest}, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint. Of a folder, weights and optimizers stay where they are until they are asked for."""
        from fulmen.fabric.checkpoint_io.sharded_folder import ShardedFolder
        from fulmen.fabric.checkpoint_io.sharded_names import is_sharded

        path = self.broadcast(os.fspath(checkpoint_path))
        self._folder = None
        if not is_sharded(path):
            return dict(self.fabric_strategy.read_checkpoint(path, weights_only))
        folder = ShardedFolder(path)
        keys = {str(folder.real_path(name)[0]) for name in folder.names()}
        keys.update(folder.plain())
        optimizers = [key for key in keys if key.startswith(_OPTIMIZER)]
        checkpoint: dict[str, Any] = dict.fromkeys(sorted(keys - {_MODEL, *optimizers}))
        if checkpoint:
            self.fabric_strategy.load_checkpoint(path, checkpoint, strict=False)
        self._folder = path
        checkpoint["state_dict"] = {}  # each process takes its part from the folder
        if "lr_schedulers" in checkpoint:
            checkpoint["optimizer_states"] = [{} for _ in optimizers]
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Put the weights of the checkpoint into the module: each process takes its part."""
        if self._folder is None:
            super().load_model_state_dict(checkpoint, strict)
        else:
            self.fabric_strategy.load_checkpoint(self._folder, {_MODEL: self._module()}, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Put the states of the checkpoint into the optimizers, in order: each process takes its part."""
        self._check_states(checkpoint["optimizer_states"])
        if self._folder is None:
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                self.fabric_strategy.load_optimizer_state(optimizer, state)
        elif self.optimizers:
            wanted = {f"{_OPTIMIZER}{index}": optimizer for index, optimizer in enumerate(self.optimizers)}
            self.fabric_strategy.load_checkpoint(self._folder, wanted)

    # For the strategies of this folder

    @property
    def _fabric_sharded(self) -> FabricShardedStrategy:
        return cast(FabricShardedStrategy, self.fabric_strategy)

    @property
    def _exchanges_gradients(self) -> bool:
        return bool(self._units())

    def _units(self) -> list[Any]:
        from torch.distributed.fsdp import FSDPModule

        return [part for part in self._module().modules() if isinstance(part, FSDPModule)]

    def _surrounded(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        module = self._module()
        # A backward inside of the forward would come before the module has prepared one. In manual optimization the
        # user calls the module, and not its layers.
        if name == "training_step" and not module.automatic_optimization:
            return step
        if not self._fabric_sharded.hooks_forward(module):
            return step
        return partial(call_through_forward, self.model or module, module, step)

    def _refuse_layer_sync(self, module: nn.Module) -> None:
        if self.root_device.type == "cpu":
            raise ConfigurationError(
                f"Trainer(sync_batchnorm=True) cannot synchronise the batch norms of {class_name(module)} on"
                " the CPU. torch.nn.SyncBatchNorm runs on GPUs only."
                " Leave out sync_batchnorm, or train with accelerator='gpu'."
            )

    def _optimizers_to(self, device: torch.device) -> None:
        """Nothing: the state of each parameter is where the parameter is."""


@contextmanager
def _gathered(module: nn.Module, unit: Any) -> Iterator[dict[str, nn.Parameter]]:
    """Inside, the parameters of `unit` are whole: they by name. Those of other units inside of it are not."""
    split = plain_parameters(module)
    unit.unshard()
    try:
        yield {name: one for name, one in plain_parameters(module).items() if one is not split.get(name)}
    finally:
        unit.reshard()
