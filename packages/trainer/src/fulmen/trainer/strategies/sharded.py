"""Bound: what all strategies share that split parameters over processes.

Parameters are gathered when the module's own forward is called. So every step runs inside that forward, evaluation
too, and all processes make the same number of steps.
"""

import os
from abc import ABC
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from fulmen.fabric.forward_redirect import call_through_forward
from fulmen.fabric.strategies.sharded import ShardedStrategy as FabricShardedStrategy
from fulmen.fabric.strategies.sharded_tensors import is_dtensor
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies.parallel import ParallelStrategy

# The names of a run's parts in a folder of shards, as Lightning writes them too.
_MODEL, _OPTIMIZER = "model", "optimizer_"
_NO_CONTEXT: AbstractContextManager[Any] = nullcontext()


class ShardedStrategy(ParallelStrategy, ABC):
    """A module whose parameters are split over processes."""

    shards_parameters = True
    evaluates_in_step = True
    allows_inference_mode = False  # what is gathered inside of it could not be written to again

    _folder: str | None = None  # from which the run goes on, if it is one of shards

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

    def setup_model(self, *, training: bool) -> None:
        """Convert the module to the precision and split it, also if it is only evaluated."""
        model: nn.Module = self._module()
        if not any(map(is_dtensor, model.parameters())):  # what is split already was made, or converted, as it is
            model = self.precision_plugin.convert_module(model)
        if training and self.layer_sync is not None:
            self._check_layer_sync()
            model = self.layer_sync.apply(model)
        self.model = self.fabric_strategy.setup_module(model)
        self.setup_precision_plugin()

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
        self.model = self._lightning_module
        self._run_backward = self._folder = None
        self.fabric_strategy.teardown()

    def skip_gradient_sync(self, enabled: bool = True) -> AbstractContextManager[Any]:
        """Inside, backward adds up whole gradients and exchanges none: more will be added before the step."""
        if not enabled or self.model is None or not self._exchanges_gradients:
            return _NO_CONTEXT
        return self._fabric_sharded.no_backward_sync(self.model, enabled)

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
        from fulmen.fabric.checkpoint_io.sharded import is_sharded
        from fulmen.fabric.checkpoint_io.sharded_folder import ShardedFolder

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
        from torch.distributed.fsdp import FSDPModule

        return any(isinstance(part, FSDPModule) for part in self._module().modules())

    def _surrounded(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        module = self._module()
        # A backward inside of the forward would come before the module has prepared one. In manual optimization the
        # user calls the module, and not its layers.
        if name == "training_step" and not module.automatic_optimization:
            return step
        if not self._fabric_sharded.hooks_forward(module):
            return step
        return partial(call_through_forward, self.model or module, module, step)

    def _check_layer_sync(self) -> None:
        if self.root_device.type == "cpu":
            raise ConfigurationError(
                f"Trainer(sync_batchnorm=True) cannot synchronise the batch norms of {type(self._module()).__name__} on"
                " the CPU. torch.nn.SyncBatchNorm runs on GPUs only."
                " Leave out sync_batchnorm, or train with accelerator='gpu'."
            )

    def _optimizers_to(self, device: torch.device) -> None:
        """Nothing: the state of each parameter is where the parameter is."""
