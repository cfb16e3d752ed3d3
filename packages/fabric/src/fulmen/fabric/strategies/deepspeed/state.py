"""A strategy whose engines of DeepSpeed are saved and loaded: in their own layout, and as whole tensors in one file."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any

from torch.nn import Module
from torch.optim import Optimizer

from fulmen.fabric.checkpoint_io.deepspeed_folder import DeepSpeedFolder
from fulmen.fabric.checkpoint_io.sharded_names import is_deepspeed
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.strategies.base import Filter, check_keys, refuse_empty
from fulmen.fabric.strategies.deepspeed.engine import EngineOptimizer
from fulmen.fabric.strategies.deepspeed.gradients import has_gradients
from fulmen.fabric.strategies.deepspeed.loading import (
    OneFile,
    load_engine,
    load_untrained,
    load_weights,
    load_whole,
    whole_state,
)
from fulmen.fabric.strategies.deepspeed.runs import EngineStrategy
from fulmen.fabric.strategies.deepspeed.saving import save_engine
from fulmen.fabric.types import PathLike


class SavedEngineStrategy(EngineStrategy, ABC):
    """Saves one engine, module and optimizer, into one folder, and loads it in any number of processes."""

    def save_checkpoint(
        self,
        path: PathLike,
        state: dict[str, Any],
        storage_options: Any | None = None,
        filter: Filter | None = None,
    ) -> None:
        """Write one checkpoint in DeepSpeed's layout: a folder to which every process writes. All must call it.

        Args:
            path: A local folder, the same for all processes.
            state: One module that was set up; its optimizer is saved with it. Other values are saved beside it.
            storage_options, filter: Refused: the engine writes.
        """
        for name, value in (("storage_options", storage_options), ("filter", filter)):
            if value is not None:
                raise ArgumentTypeError(
                    f"save_checkpoint({name}={value!r}) cannot be used with DeepSpeed. Its engine writes the folder,"
                    " with all of module and optimizer. Leave it out."
                )
        engine = self._engine_in(state, f"save({str(path)!r}, ...)")
        if engine not in self._trained:
            raise ConfigurationError(
                f"save({str(path)!r}, ...) got a module without an optimizer, and DeepSpeed's engine saves both. Set"
                " them up together, or save the weights: `torch.save(strategy.get_module_state_dict(model), path)`."
            )
        rest = {key: self._state_of(value) for key, value in state.items() if not self._is_of_engine(value)}
        path = self.broadcast(str(path))  # names with the time in them differ between processes
        save_engine(engine, path, rest, exclude_frozen=self.exclude_frozen_parameters)

    def load_checkpoint(
        self,
        path: PathLike,
        state: Module | Optimizer | dict[str, Any] | None = None,
        strict: bool = True,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a folder of DeepSpeed, written by any number of processes, or one file; what was not asked for.

        Args:
            path: What `save_checkpoint`, Lightning or DeepSpeed wrote; or a file with whole tensors.
            state: What to fill. An optimizer is loaded with its module.
            strict: Complain about keys that are missing on either side.
            weights_only: False also loads what runs code from the files: only for those that you trust.
        """
        refuse_empty(path, state)
        path = self.broadcast(str(path))
        if not is_deepspeed(path):
            return self._load_file(path, state, strict, weights_only)
        self.check_folder(path)
        if state is None:
            return DeepSpeedFolder(path, trusted=weights_only is False).client_state()
        if isinstance(state, Optimizer):
            raise ConfigurationError(
                f"load_raw({path!r}, optimizer) cannot be done with DeepSpeed, whose folders hold module and optimizer."
                " Load both: `fabric.load(path, {'model': model})`."
            )
        targets = {"model": state} if isinstance(state, Module) else state
        engine = self._engine_in(targets, f"load({path!r}, ...)")
        client = self.load_folder(path, engine, strict=strict, trusted=weights_only is False)
        wanted = {key: value for key, value in targets.items() if not self._is_of_engine(value)}
        check_keys(path, wanted, client, strict)
        for key in [key for key in wanted if key in client]:
            self._fill(targets, key, client.pop(key), strict)
        return client if isinstance(state, dict) else {}

    def check_folder(self, path: str) -> None:
        """Refuse a folder, if one file was announced.

        Raises:
            ConfigurationError: Quoting both.
        """
        if self.load_full_weights:
            raise ConfigurationError(
                f"DeepSpeedStrategy(load_full_weights=True) is to load {path!r}, which is a folder. Full weights are"
                " those in one file. Leave load_full_weights out: what is there is seen by itself."
            )

    def load_folder(self, path: PathLike, module: Module, *, strict: bool, trusted: bool = False) -> dict[str, Any]:
        """Read a folder into an engine, optimizer and all, or into a module that is not trained; what is beside it."""
        if module in self._trained:
            # What was left out of the checkpoint cannot be asked for.
            rest = load_engine(module, path, strict=strict and not self.exclude_frozen_parameters, trusted=trusted)
            if has_gradients(module):
                self._trained[module][0].note_backward()
            return rest
        folder = DeepSpeedFolder(path, trusted=trusted)
        load_weights(self.users_module_in(module), folder.weights(), strict=strict)
        return folder.client_state()

    def get_module_state_dict(self, module: Module) -> dict[str, Any]:
        """The module's whole state dict, in every process; all must call it."""
        return whole_state(self.users_module_in(module), keep=True)

    def whole_weights(self, module: Module, *, keep: bool) -> dict[str, Any]:
        """The module's whole state dict on the CPU, with master weights where an engine has them; all must call it.

        Args:
            module: An engine, or a module.
            keep: Is it wanted in this process? If not, it is empty.
        """
        return whole_state(self.users_module_in(module), keep=keep, masters=module in self._trained)

    def load_module_state_dict(self, module: Module, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load a whole state dict; of what is split, each process takes its part."""
        self.load_whole_state(module, state_dict, None, strict=strict)

    def load_whole_state(
        self, module: Module, weights: Mapping[str, Any], optimizer: Mapping[str, Any] | None, *, strict: bool
    ) -> None:
        """Load weights, and the state of a torch optimizer if there is one, that one file holds."""
        if module not in self._trained or not module.zero_optimization():  # type: ignore[operator]  # an engine
            load_weights(self.users_module_in(module), weights, strict=strict)
            if optimizer is not None:
                self._trained[module][0].load_state_dict(dict(optimizer))
            return
        load_whole(module, OneFile(weights, optimizer, self._trained[module][1]), strict=strict)
        load_untrained(self.users_module_in(module), weights)

    def _load_file(self, path: str, state: Any, strict: bool, weights_only: bool | None) -> dict[str, Any]:
        if not isinstance(state, dict):
            return super().load_checkpoint(path, state, strict, weights_only)
        checkpoint = self.read_checkpoint(path, weights_only)
        check_keys(path, state, checkpoint, strict)
        optimizers = {key: value for key, value in state.items() if isinstance(value, EngineOptimizer)}
        for key, value in state.items():
            if key not in checkpoint or key in optimizers:
                continue
            if value in self._trained if isinstance(value, Module) else False:
                saved = next((checkpoint[one] for one in optimizers if one in checkpoint), None)
                self.load_whole_state(value, checkpoint[key], saved, strict=strict)
            else:
                self._fill(state, key, checkpoint[key], strict)
        return {key: value for key, value in checkpoint.items() if key not in state}

    def _engine_in(self, state: Mapping[str, Any], call: str) -> Any:
        found = [value for value in state.values() if isinstance(value, Module) and value in self._engines]
        if len(found) != 1:
            have = "no module that was set up" if not found else f"{len(found)} modules"
            raise ConfigurationError(
                f"{call} got {have}, and a checkpoint of DeepSpeed holds one, with its optimizer. Pass the module that"
                " setup returned, as in {'model': model}; of several, each to a path of its own."
            )
        return found[0]

    def _is_of_engine(self, value: Any) -> bool:
        return isinstance(value, EngineOptimizer) or (isinstance(value, Module) and value in self._engines)
