"""Fabric: your own training loop on any hardware.

It sets up what you have (modules, optimizers, loaders), and hands back things that behave as before on the devices that
you chose. The loop stays yours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.arguments import check_flag
from fulmen.fabric.checks import (
    check_callbacks,
    check_clipping,
    check_differentiable,
    check_hook_name,
    check_launchable,
    check_load_flags,
    check_loggers,
    check_metric_name,
    check_metrics,
    check_path,
    check_raw,
    check_source,
    check_state,
    warn_about_strangers,
)
from fulmen.fabric.class_names import class_name
from fulmen.fabric.collectives.tensors import parse_reduce_op
from fulmen.fabric.compiled import unwrap_compiled
from fulmen.fabric.data.resumable import ResumableLoader
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, NotLaunchedError
from fulmen.fabric.flag_meanings import flag_meaning
from fulmen.fabric.launchers.script import ScriptLauncher
from fulmen.fabric.loggers.base import Logger
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.run_flags import is_run_by_command, resolve
from fulmen.fabric.seeding import run_seed, seed_everything
from fulmen.fabric.selection import Plugin, select
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.batch_mover import batch_mover
from fulmen.fabric.strategies.capabilities import ShardsAtInit, SkipsGradientSync
from fulmen.fabric.trees import convert_to_scalars, convert_to_tensors, map_tensors, move_to_device
from fulmen.fabric.types import CollectibleGroup, Optimizable, ReduceOp
from fulmen.fabric.wrappers import (
    FabricDataLoader,
    FabricModule,
    FabricOptimizer,
    backward_through_strategy,
    check_wrappable,
    compiled_like,
    overrides_backward,
    unwrap,
)

T = TypeVar("T")


def _do_nothing(*_: Any) -> None:
    pass


class Fabric:
    """Your own loop, on any hardware.

    >>> fabric = Fabric(accelerator="cpu")
    >>> model, optimizer = fabric.setup(net := nn.Linear(2, 1), torch.optim.SGD(net.parameters(), lr=0.1))
    >>> fabric.backward(model(torch.ones(4, 2)).sum())
    >>> optimizer.step()
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        strategy: str | Strategy = "auto",
        devices: list[int] | str | int = "auto",
        num_nodes: int = 1,
        precision: str | int | None = None,
        plugins: Plugin | list[Plugin] | None = None,
        callbacks: list[Any] | Any | None = None,
        loggers: Logger | list[Logger] | None = None,
    ) -> None:
        """Choose the hardware and how to use it.

        Args:
            accelerator: "cpu", "cuda", "mps", "gpu" (whichever is there), "auto", or an object.
            strategy: How a model runs on several devices: "ddp", "ddp_spawn", ..., "auto", or an object.
            devices: How many per machine, or which; "auto" takes what is there (one, on CPU).
            num_nodes: How many machines.
            precision: "32-true" (None), "bf16-mixed", "16-mixed", "64-true", ...
            plugins: A precision, a cluster environment, a checkpoint IO of your own.
            callbacks: Objects whose methods `call` calls.
            loggers: Where `log` sends metrics.

        Raises:
            MisconfigurationException: The arguments contradict each other or the machine; see `selection.select`.
        """
        flags = {
            "accelerator": accelerator,
            "strategy": strategy,
            "devices": devices,
            "num_nodes": num_nodes,
            "precision": precision,
        }
        caller = type(self).__name__
        selection = select(**resolve(flags, caller, flag_meaning), plugins=plugins, caller=caller)
        self._strategy = selection.strategy
        self._accelerator = selection.accelerator
        self._precision = selection.precision
        check_callbacks(_as_list(callbacks), caller)
        check_loggers(_as_list(loggers), caller)
        self._callbacks: list[Any] = _as_list(callbacks)
        self._loggers: list[Logger] = _as_list(loggers)
        self._unheard_hooks: set[str] = set()
        self._is_launched = False
        self._backward_is_plain = not overrides_backward(self._strategy)
        if type(self).run is not Fabric.run:
            # A subclass that brings its own run() is launched by calling it.
            # The function of the class: a bound method would be pickled by its name, and found here again.
            self.__dict__["run"] = partial(self._launch, partial(type(self).run, self))
        if is_run_by_command() and isinstance(self._strategy.launcher, ScriptLauncher | None):
            # Whoever starts a script by the command need not call `launch`.
            self._launch(_do_nothing)

    @property
    def accelerator(self) -> Accelerator:
        """The kind of hardware."""
        return self._accelerator

    @property
    def strategy(self) -> Strategy:
        """How models run on the devices."""
        return self._strategy

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self._strategy.root_device

    @property
    def global_rank(self) -> int:
        """Which process this is, of all."""
        return self._strategy.global_rank

    @property
    def local_rank(self) -> int:
        """Which process this is, of those on this machine."""
        return self._strategy.local_rank

    @property
    def node_rank(self) -> int:
        """Which machine this is."""
        return self._strategy.node_rank

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return self._strategy.world_size

    @property
    def is_global_zero(self) -> bool:
        """Is this the process that prints, logs and writes?"""
        return self._strategy.is_global_zero

    @property
    def loggers(self) -> list[Logger]:
        """All loggers."""
        return self._loggers

    @property
    def logger(self) -> Logger:
        """The first logger.

        Raises:
            ConfigurationError: There is none.
        """
        if not self._loggers:
            raise ConfigurationError(
                "`fabric.logger` was read and there is no logger. Fabric was built without loggers."
                " Pass Fabric(loggers=CSVLogger('logs')), or read `fabric.loggers`, which may be empty."
            )
        return self._loggers[0]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Yours to override: calling it starts the processes and runs your code in each of them."""

    def launch(self, function: Callable[..., Any] = _do_nothing, *args: Any, **kwargs: Any) -> Any:
        """Start the processes.

        Args:
            function: Runs in each process as `function(fabric, *args, **kwargs)`. With strategies that run the script
                again ("ddp"), and under torchrun, it can be left out: what follows this call runs in each process.

        Returns:
            What `function` returned in the first process.

        Raises:
            ArgumentTypeError: `function` cannot be called so, or is needed and not given.
        """
        check_launchable(function)
        launcher = self._strategy.launcher
        if function is _do_nothing and launcher is not None and not isinstance(launcher, ScriptLauncher):
            raise ArgumentTypeError(
                f"fabric.launch() got no function, with the strategy {type(self._strategy).__name__} that starts new"
                " processes from this one. They would have nothing to run. Write `fabric.launch(train)`."
            )
        return self._launch(partial(function, self), *args, **kwargs)

    def _launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._is_launched = True
        launcher = self._strategy.launcher
        if launcher is None:
            return self._run_in_process(function, *args, **kwargs)
        return launcher.launch(self._run_in_process, function, *args, **kwargs)

    def _run_in_process(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._strategy.setup_environment()
        return function(*args, **kwargs)

    def _check_launched(self, caller: str) -> None:
        if self._strategy.is_distributed and not self._is_launched:
            raise NotLaunchedError(
                f"fabric.{caller}() was called before the processes were started."
                f" The strategy {type(self._strategy).__name__} runs several of them."
                " Call `fabric.launch()` first, or `fabric.launch(train)` with your function."
            )

    def setup(
        self,
        module: nn.Module,
        *optimizers: Optimizer,
        scheduler: Any = None,
        move_to_device: bool = True,
        _reapply_compile: bool = True,
    ) -> Any:
        """Set up a module and its optimizers.

        Args:
            scheduler: Of the optimizers, if the strategy has to know it.
            move_to_device: Move the module to the device; False if it was placed there already.

        Returns:
            The module; with optimizers a tuple of module and optimizers, and the scheduler if one was given.

        Raises:
            ConfigurationError: Something was set up before, or has parameters without data.
            NotLaunchedError: `launch` has to be called first.
        """
        self._check_launched("setup")
        check_flag("fabric.setup", "move_to_device", move_to_device)
        check_wrappable("setup", nn.Module, module)
        check_wrappable("setup", Optimizable, *optimizers)
        if optimizers:
            self._precision.check_training(self.device.type, "fabric.setup(module, optimizer)")
        warn_about_strangers(module, optimizers)
        original = self._precision.convert_module(unwrap_compiled(module))
        if move_to_device:
            self.to_device(original)
        converted, torch_optimizers = original, list(optimizers)
        if torch_optimizers:
            converted, torch_optimizers, scheduler = self._strategy.setup_module_and_optimizers(
                converted, torch_optimizers, scheduler
            )
        else:
            converted = self._strategy.setup_module(converted)
        if module is not unwrap_compiled(module) and _reapply_compile:
            converted = compiled_like(module, converted)
        wrapped = FabricModule(converted, self._strategy, original_module=original)
        wrapped_optimizers = [FabricOptimizer(one, self._strategy, self._callbacks) for one in torch_optimizers]
        self._attach(original, wrapped_optimizers)
        self.call("on_after_setup", fabric=self, module=wrapped)
        if not optimizers:
            return wrapped
        return (wrapped, *wrapped_optimizers) if scheduler is None else (wrapped, *wrapped_optimizers, scheduler)

    def _attach(self, module: nn.Module, optimizers: list[FabricOptimizer]) -> None:
        """Tell a module that asks for it (by a settable property `fabric`) who runs it."""
        if getattr(getattr(type(module), "fabric", None), "fset", None) is None:
            return
        module.fabric = cast(Any, self)
        module.__dict__["_fabric_optimizers"] = optimizers
        if all(callback is not module for callback in self._callbacks):
            self._callbacks.append(module)

    def setup_module(
        self, module: nn.Module, move_to_device: bool = True, _reapply_compile: bool = True
    ) -> FabricModule:
        """Set up a module alone; its optimizers follow with `setup_optimizers`, or it is not trained."""
        return cast(FabricModule, self.setup(module, move_to_device=move_to_device, _reapply_compile=_reapply_compile))

    def setup_optimizers(self, *optimizers: Optimizer) -> Any:
        """Set up optimizers of a module that `setup_module` has set up: one comes back as it is, several as a tuple."""
        self._check_launched("setup_optimizers")
        if not optimizers:
            raise ConfigurationError(
                "fabric.setup_optimizers() got no optimizer. There is nothing to set up."
                " Pass at least one, as in `fabric.setup_optimizers(optimizer)`."
            )
        check_wrappable("setup_optimizers", Optimizable, *optimizers)
        self._precision.check_training(self.device.type, "fabric.setup_optimizers(optimizer)")
        wrapped = tuple(
            FabricOptimizer(self._strategy.setup_optimizer(one), self._strategy, self._callbacks) for one in optimizers
        )
        return wrapped[0] if len(wrapped) == 1 else wrapped

    def setup_dataloaders(
        self,
        *dataloaders: DataLoader[Any],
        use_distributed_sampler: bool = True,
        move_to_device: bool = True,
        each_sample_once: bool = False,
    ) -> Any:
        """Set up loaders: one comes back as it is, several as a list.

        Args:
            use_distributed_sampler: Give each process its own share of the samples.
            move_to_device: Move each batch to the device.
            each_sample_once: Where samples do not go round, some processes read one more, instead of all processes
                some twice. For exact evaluation: a loop over such shares must not communicate at each step. Gather the
                results afterwards with `collectives.gather_uneven`.
        """
        self._check_launched("setup_dataloaders")
        if not dataloaders:
            raise ConfigurationError(
                "fabric.setup_dataloaders() got no loader. There is nothing to set up."
                " Pass at least one, as in `fabric.setup_dataloaders(loader)`."
            )
        check_flag("fabric.setup_dataloaders", "use_distributed_sampler", use_distributed_sampler)
        check_flag("fabric.setup_dataloaders", "move_to_device", move_to_device)
        check_flag("fabric.setup_dataloaders", "each_sample_once", each_sample_once)
        check_wrappable("setup_dataloaders", DataLoader, *dataloaders)
        wrapped = [
            self._setup_dataloader(one, use_distributed_sampler, move_to_device, repeats=not each_sample_once)
            for one in dataloaders
        ]
        return wrapped[0] if len(wrapped) == 1 else wrapped

    def _setup_dataloader(self, dataloader: Any, shard: bool, moves: bool, *, repeats: bool) -> FabricDataLoader:
        sharing = (self._strategy.distributed_sampler_kwargs if shard else None) or {"num_replicas": 1, "rank": 0}
        processed = self._strategy.process_dataloader(dataloader)
        view = ResumableLoader(
            processed, rank=sharing["rank"], world_size=sharing["num_replicas"], repeats=repeats, seed=run_seed()
        )
        if not moves:
            return FabricDataLoader(view)
        return FabricDataLoader(view, self.device, batch_mover(self._strategy, self.device))

    def backward(self, tensor: Tensor, *args: Any, model: FabricModule | None = None, **kwargs: Any) -> None:
        """`tensor.backward(...)`, with what strategy and precision have to do around it (such as loss scaling).

        Args:
            model: Which module, for strategies that run several.
        """
        if not isinstance(tensor, Tensor):
            raise ArgumentTypeError(
                f"fabric.backward({tensor!r}) got a {type(tensor).__name__}. Only a tensor can be differentiated."
                " Pass the loss as a tensor, not its `.item()`."
            )
        if self._backward_is_plain:
            try:
                tensor.backward(*args, **kwargs)
            except RuntimeError:
                check_differentiable(tensor)
                raise
            return
        check_differentiable(tensor)
        module = None if model is None else cast(nn.Module, unwrap(model))
        with backward_through_strategy():
            self._strategy.backward(tensor, module, *args, **kwargs)

    def clip_gradients(
        self,
        module: nn.Module | FabricModule,
        optimizer: Optimizer | FabricOptimizer,
        clip_val: float | int | None = None,
        max_norm: float | int | None = None,
        norm_type: float | int = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor | None:
        """Clip the gradients of an optimizer's parameters, each to `clip_val`, or all together to `max_norm`.

        Returns:
            The norm before clipping, with `max_norm`.
        """
        check_clipping(unwrap(module), unwrap(optimizer), clip_val, max_norm, norm_type)
        check_flag("fabric.clip_gradients", "error_if_nonfinite", error_if_nonfinite)
        if clip_val is not None:
            self._strategy.clip_gradients_value(unwrap(module), unwrap(optimizer), clip_val=clip_val)
            return None
        return self._strategy.clip_gradients_norm(
            unwrap(module),
            unwrap(optimizer),
            max_norm=cast(float, max_norm),
            norm_type=norm_type,
            error_if_nonfinite=error_if_nonfinite,
        )

    def no_backward_sync(self, module: FabricModule, enabled: bool = True) -> AbstractContextManager[Any]:
        """Inside, gradients stay in their process: for all but the last batch of an accumulation.

        Args:
            enabled: False to synchronise as always.
        """
        if not isinstance(unwrap_compiled(module), FabricModule):
            raise ArgumentTypeError(
                f"fabric.no_backward_sync({class_name(module)}(...)) got a module that is not set up."
                " Only the strategy's wrapper synchronises gradients. Pass the module that `fabric.setup` returned."
            )
        if isinstance(self._strategy, SkipsGradientSync):
            return self._strategy.no_backward_sync(unwrap(module), enabled)
        if enabled and self.world_size > 1:
            rank_zero_warn(f"fabric.no_backward_sync() has no effect: {type(self._strategy).__name__} cannot skip it.")
        return nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside, operations run in the chosen precision, as they do in the forward of a module that was set up."""
        return self._precision.forward_context()

    def to_device(self, obj: Any) -> Any:
        """A module, tensor or nested batch on the device of this process."""
        if isinstance(obj, nn.Module):
            self._accelerator.setup_device(self.device)
            self._strategy.module_to_device(obj)
            return obj
        return move_to_device(obj, self.device)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print once per machine."""
        if self.local_rank == 0:
            print(*args, **kwargs)

    def barrier(self, name: str | None = None) -> None:
        """Wait until all processes are here."""
        self._check_launched("barrier")
        self._strategy.barrier(name=name)

    def broadcast(self, obj: T, src: int = 0) -> T:
        """The object that process `src` has."""
        self._check_launched("broadcast")
        check_source(src, self.world_size)
        return self._strategy.broadcast(obj, src=src)

    def all_gather(self, data: Any, group: CollectibleGroup | None = None, sync_grads: bool = False) -> Any:
        """The data of all processes: each tensor with one more, leading axis of size `world_size`."""
        self._check_launched("all_gather")
        tensors = convert_to_tensors(data, self.device)
        return map_tensors(tensors, self._strategy.all_gather, group=group, sync_grads=sync_grads)

    def all_reduce(self, data: Any, group: CollectibleGroup | None = None, reduce_op: ReduceOp | None = "mean") -> Any:
        """The data of all processes, reduced to one: "mean" or "sum"."""
        self._check_launched("all_reduce")
        if isinstance(reduce_op, str):
            parse_reduce_op(reduce_op)  # refuses an unknown name, also where one process has nothing to reduce
        tensors = convert_to_tensors(data, self.device)
        return map_tensors(tensors, self._strategy.all_reduce, group=group, reduce_op=reduce_op)

    @contextmanager
    def rank_zero_first(self, local: bool = False) -> Iterator[None]:
        """The first process runs the block, then all others do; for downloads and caches.

        Args:
            local: The first process of each machine, where machines share no disk.
        """
        check_flag("fabric.rank_zero_first", "local", local)
        is_first = (self.local_rank if local else self.global_rank) == 0
        if not is_first:
            self.barrier("rank_zero_first")
        try:
            yield
        finally:
            # Also after an error: the others must not wait for ever.
            if is_first:
                self.barrier("rank_zero_first")

    def init_tensor(self) -> AbstractContextManager[Any]:
        """Inside, new tensors are on the device and have the type of the precision."""
        return self._strategy.tensor_init_context()

    def init_module(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Inside, new modules are on the device and have the type of the precision.

        Args:
            empty_init: Leave the parameters as the memory was, since a checkpoint will be loaded.
        """
        self._check_launched("init_module")
        if empty_init is not None:
            check_flag("fabric.init_module", "empty_init", empty_init)
        return self._strategy.module_init_context(empty_init=empty_init)

    def sharded_model(self) -> AbstractContextManager[Any]:
        """Inside, strategies that shard parameters do so as modules are built; for others, nothing."""
        self._check_launched("sharded_model")
        return self._strategy.module_sharded_context() if isinstance(self._strategy, ShardsAtInit) else nullcontext()

    def save(
        self,
        path: str | Path,
        state: dict[str, Any],
        filter: dict[str, Callable[[str, Any], bool]] | None = None,  # promised name
    ) -> None:
        """Save modules, optimizers and plain values, all or nothing. All processes call it; as many write as must.

        Args:
            filter: For keys of `state`, a function of name and value that says what of it is saved.
        """
        check_path(path, "save")
        check_state(state, "save")
        unwrapped = {name: unwrap(value) for name, value in state.items()}
        self._strategy.save_checkpoint(path=path, state=unwrapped, filter=filter)
        self.barrier()

    def load(
        self,
        path: str | Path,
        state: dict[str, Any] | None = None,
        strict: bool = True,
        *,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load what `save` has saved, into `state`: modules and optimizers in place, plain values replaced.

        Returns:
            What is in the file besides; all of it without `state`.
        """
        check_path(path, "load")
        check_load_flags("load", strict, weights_only)
        if state is not None:
            check_state(state, "load")
        unwrapped = None if state is None else {name: unwrap(value) for name, value in state.items()}
        rest = self._strategy.load_checkpoint(path=path, state=unwrapped, strict=strict, weights_only=weights_only)
        self.barrier()
        for name, loaded in (unwrapped or {}).items():
            # Modules and optimizers were filled in place, and the user keeps the wrapped ones.
            if state is not None and loaded is not unwrap(state[name]):
                state[name] = loaded
        return rest

    def load_raw(
        self, path: str | Path, obj: nn.Module | Optimizer, strict: bool = True, *, weights_only: bool | None = None
    ) -> None:
        """Load a file that holds one bare state dict, into a module or an optimizer."""
        check_path(path, "load_raw")
        check_load_flags("load_raw", strict, weights_only)
        check_raw(unwrap(obj))
        self._strategy.load_checkpoint(path=path, state=unwrap(obj), strict=strict, weights_only=weights_only)
        self.barrier()

    def log(self, name: str, value: Any, step: int | None = None) -> None:
        """Send one metric to all loggers."""
        check_metric_name(name)
        self.log_dict({name: value}, step=step)

    def log_dict(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send metrics to all loggers; tensors become numbers."""
        check_metrics(metrics, step)
        if self._loggers:
            scalars = convert_to_scalars(metrics)
            for logger in self._loggers:
                logger.log_metrics(metrics=scalars, step=step)

    def call(self, hook_name: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of this name on all callbacks that have it."""
        is_heard = isinstance(hook_name, str) and hook_name in self._unheard_hooks
        for callback in self._callbacks if isinstance(hook_name, str) else ():
            hook = getattr(callback, hook_name, None)
            if hook is None:
                continue
            is_heard = True
            if callable(hook):
                hook(*args, **kwargs)
            else:
                rank_zero_warn(
                    f"fabric.call({hook_name!r}) skipped {type(callback).__name__}: its attribute of this name is a"
                    f" {type(hook).__name__} and cannot be called. Make it a method, or rename it."
                )
        if not is_heard:  # a name that nobody listens to is nothing wrong, and one with a typing error is
            check_hook_name(hook_name, self._callbacks)
            self._unheard_hooks.add(hook_name)

    @staticmethod
    def seed_everything(seed: int | None = None, workers: bool | None = None, verbose: bool = True) -> int:
        """Seed Python, NumPy and torch; with `workers` (the default) the loaders' workers too."""
        return seed_everything(seed=seed, workers=workers is None or workers, verbose=verbose)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
