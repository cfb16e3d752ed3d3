"""Parameters split over XLA devices: by torch_xla's wrapper, or by XLA itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.arguments import check_flag
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.optional_packages import require
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Filter, Strategy
from fulmen.fabric.strategies.fsdp_units import Policy, check_policy, choose
from fulmen.fabric.strategies.xla.shards import gather_whole, is_wrapped, read_shards, write_shards, write_whole
from fulmen.fabric.strategies.xla.strategy import XLAParallelStrategy
from fulmen.fabric.types import PathLike

# Of the wrapper, those that the strategy gives itself.
_OURS = ("module", "auto_wrap_policy", "auto_wrapper_callable")


class XLAFSDPStrategy(XLAParallelStrategy):
    """Fully sharded data parallel on XLA devices.

    Without `spmd`, every device has a process, and `torch_xla.distributed.fsdp.XlaFullyShardedDataParallel` wraps the
    module: set it up first, and make optimizers from the parameters of what setup returns. With `spmd=True` there is
    one process, the module stays as it is, and each parameter is divided along one of its axes; a checkpoint is one
    ordinary file then.

    Args:
        accelerator: The kind of hardware.
        parallel_devices: The devices of this machine.
        checkpoint_io: A `XLACheckpointIO`, or one that wraps it.
        precision: A `XLAPrecision`.
        auto_wrap_policy: Which parts of the module are units, gathered and let go one after the other: classes of
            modules, or a function of (module, recurse, nonwrapped_numel). By default the whole module is one.
        activation_checkpointing_policy: Which parts forget their activations, and compute them again in backward.
        state_dict_type: Save a folder to which every process writes its shards, or one file with whole weights, from
            which a module that is not set up yet can be filled.
        sequential_save: Let the processes write one after the other, where their memory is short.
        kwargs: Of the wrapper, such as `reshard_after_forward`, `flatten_parameters`, `compute_dtype`.
        spmd: One process for all devices of one machine. Batches are as large as all devices together shall take.

    Raises:
        MissingPackageError: If torch_xla is not installed.
    """

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
        auto_wrap_policy: Policy | None = None,
        activation_checkpointing_policy: Policy | None = None,
        state_dict_type: Literal["full", "sharded"] = "sharded",
        sequential_save: bool = False,
        *,
        spmd: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(accelerator, parallel_devices, checkpoint_io, precision, spmd=spmd)
        check_flag(self, "sequential_save", sequential_save)
        if state_dict_type not in ("full", "sharded"):
            raise ConfigurationError(
                f"XLAFSDPStrategy(state_dict_type={state_dict_type!r}) is unknown. It says how checkpoints are saved."
                " Pass 'sharded' for a folder to which every process writes, or 'full' for one file of weights."
            )
        check_policy("auto_wrap_policy", auto_wrap_policy, "XLAFSDPStrategy")
        check_policy("activation_checkpointing_policy", activation_checkpointing_policy, "XLAFSDPStrategy")
        _check_kwargs(kwargs)
        if spmd:
            _check_goes_with_spmd({**kwargs, "auto_wrap_policy": auto_wrap_policy, "sequential_save": sequential_save})
        self._unit_policy = auto_wrap_policy
        self._recompute_policy = activation_checkpointing_policy
        self._state_dict_type = state_dict_type
        self._sequential_save = sequential_save
        self._kwargs = kwargs

    def setup_environment(self) -> None:
        """Take the device of this process, or make a mesh of all.

        Raises:
            ConfigurationError: If parameters are to have 16 bits, and the wrapper is to split them.
        """
        if not self.spmd and self.precision.precision != "32-true":
            raise ConfigurationError(
                f"XLAFSDPStrategy with precision={self.precision.precision!r} would split 16-bit parameters."
                " torch_xla's wrapper keeps them in 32 bits, and computes in the type that it is told. Pass"
                " XLAFSDPStrategy(compute_dtype=torch.bfloat16), or XLAFSDPStrategy(spmd=True), which divides any."
            )
        super().setup_environment()

    # ---- make modules

    @contextmanager
    def module_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Modules made inside have the right type, and are on the CPU until they are split.

        Args:
            empty_init: Make them on the meta device, without memory; the wrapper gives them values when it splits them.

        Raises:
            ConfigurationError: With `spmd=True` and `empty_init`: nobody would give them values.
        """
        if empty_init and self.spmd:
            raise ConfigurationError(
                "init_module(empty_init=True) was called with XLAFSDPStrategy(spmd=True). Parameters are made on the"
                " CPU, and go to their devices in parts; nothing would fill empty ones. Leave out empty_init."
            )
        device = torch.device("meta") if empty_init else torch.device("cpu")
        with device, self.precision.module_init_context(), self.module_sharded_context():
            yield

    def module_sharded_context(self) -> AbstractContextManager[Any]:
        """Inside, `torch.distributed.fsdp.wrap.wrap(module)` splits a module at once, as a unit."""
        if self.spmd:
            return nullcontext()
        from torch.distributed.fsdp.wrap import enable_wrap

        return enable_wrap(wrapper_cls=_fsdp().XlaFullyShardedDataParallel, **self._kwargs)

    def module_to_device(self, module: Module) -> None:
        """Move the module, if XLA divides it; the wrapper moves what it splits."""
        if self.spmd:
            super().module_to_device(module)

    def setup_module(self, module: Module) -> Module:
        """The module, its parameters split.

        Raises:
            ConfigurationError: If the user has split it all, and asks for units beside.
        """
        for part in choose(module, self._recompute_policy):
            _fsdp().checkpoint_module(part)
        if self._mesh is not None:
            self._mesh.divide(module)
            self.end_graph()
            return module
        if is_wrapped(module):
            if self._unit_policy is not None:
                raise ConfigurationError(
                    "XLAFSDPStrategy(auto_wrap_policy=...) got a module that is wrapped already,"
                    f" {type(module).__name__}. The policy could change nothing. Leave it out, or pass the module as it"
                    " was before."
                )
            return module
        units = set(map(id, choose(module, self._unit_policy)))

        def is_unit(module: Module, recurse: bool, **_: Any) -> bool:
            return recurse or id(module) in units

        policy = None if self._unit_policy is None else is_unit
        wrapped: Module = _fsdp().XlaFullyShardedDataParallel(module, auto_wrap_policy=policy, **self._kwargs)
        return wrapped

    def setup_module_and_optimizers(
        self, module: Module, optimizers: list[Optimizer], scheduler: LRScheduler | None = None
    ) -> tuple[Module, list[Optimizer], LRScheduler | None]:
        """Module and optimizers, ready to train together; only with `spmd=True`.

        Raises:
            ConfigurationError: Where the wrapper takes the parameters out of the module, and optimizers lose them.
        """
        if self.spmd or not optimizers:
            return super().setup_module_and_optimizers(module, optimizers, scheduler)
        raise ConfigurationError(
            f"XLAFSDPStrategy got {type(module).__name__} together with {type(optimizers[0]).__name__}. The wrapper"
            " puts shards in the place of the parameters, and the optimizer would step what nobody uses. Write"
            " `model = fabric.setup_module(model)`, make the optimizer from model.parameters(), and then"
            " `optimizer = fabric.setup_optimizers(optimizer)`."
        )

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer.

        Raises:
            ConfigurationError: If none of its parameters is a shard.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if not self.spmd and parameters and not any(hasattr(one, "_is_sharded") for one in parameters):
            raise ConfigurationError(
                f"{type(optimizer).__name__} steps no shard of a module that XLAFSDPStrategy has set up. It was made"
                " from parameters as they were before, which nobody uses any more."
                " Set up the module first, and make the optimizer from the parameters of what setup returns."
            )
        return optimizer

    # ---- step

    def no_backward_sync(self, module: Module, enabled: bool) -> AbstractContextManager[Any]:
        """Backward inside adds up gradients without exchanging them, if `enabled`. They stay whole, which takes memory.

        Raises:
            ArgumentTypeError: If the module is not split.
        """
        if not enabled or self.spmd:
            return nullcontext()
        if not is_wrapped(module):
            raise ArgumentTypeError(
                f"no_backward_sync({type(module).__name__}) was called with a module that was not set up."
                " Only the wrapper exchanges gradients. Pass the module that setup() returned."
            )
        context: AbstractContextManager[Any] = module.no_sync()  # type: ignore[operator]  # a method of the wrapper
        return context

    def clip_gradients_norm(
        self,
        module: Module,
        optimizer: Optimizer,
        max_norm: float | int,
        norm_type: float | int = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor:
        """Scale the gradients so that the norm of all, over all processes, is at most `max_norm`; the norm before.

        Args:
            module: The whole module; all its gradients are clipped.
            optimizer, max_norm, norm_type: See `Strategy.clip_gradients_norm`.
            error_if_nonfinite: Reads the norm, for which the device has to be waited for.
        """
        if not is_wrapped(module):
            return super().clip_gradients_norm(module, optimizer, max_norm, norm_type, error_if_nonfinite)
        norm: Tensor = module.clip_grad_norm_(max_norm=max_norm, norm_type=norm_type)  # type: ignore[operator]
        if error_if_nonfinite and not torch.isfinite(norm):
            raise RuntimeError(
                f"The norm of the gradients is {norm.item()}, so they cannot be clipped to {max_norm}. A loss or an"
                " activation has overflowed on some process. Pass error_if_nonfinite=False to go on, or look for it."
            )
        return norm

    # ---- save and load

    def save_checkpoint(
        self,
        path: PathLike,
        state: dict[str, Any],
        storage_options: Any | None = None,
        filter: Filter | None = None,
    ) -> None:
        """Write one checkpoint. All processes must call it.

        Raises:
            ConfigurationError: For optimizers in one file of whole weights; for anything but one module that is split.
        """
        if self.spmd:
            super().save_checkpoint(path, state, storage_options, filter)
            return
        self.end_graph()
        path = self.broadcast(str(path))
        name, module = _the_module(state)
        collected = self._collect(state, {} if filter is None else filter)
        if self._state_dict_type == "sharded":
            write_shards(self, path, collected, module, one_by_one=self._sequential_save, options=storage_options)
            return
        if any(isinstance(value, Optimizer) for value in state.values()):
            raise ConfigurationError(
                "XLAFSDPStrategy(state_dict_type='full') was asked to save an optimizer. One file holds whole weights,"
                " and the state of optimizers is that of shards."
                " Leave it out of the state, or pass state_dict_type='sharded' or spmd=True."
            )
        collected[name] = gather_whole(self, collected[name], module)
        write_whole(self, path, collected, options=storage_options)

    def load_checkpoint(
        self,
        path: PathLike,
        state: Module | Optimizer | dict[str, Any] | None = None,
        strict: bool = True,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote: a folder by as many processes, or a file into a module not yet set up."""
        if self.spmd:
            return super().load_checkpoint(path, state, strict, weights_only)
        path = self.broadcast(str(path))
        if self._state_dict_type == "sharded":
            return read_shards(self, path, state, strict=strict, weights_only=weights_only)
        modules = state.values() if isinstance(state, Mapping) else [state]
        if any(isinstance(one, Module) and is_wrapped(one) for one in modules):
            raise ConfigurationError(
                f"load({path!r}) was called with a module that is split, and XLAFSDPStrategy(state_dict_type='full')."
                " Whole weights fit into a whole module. Load them before `fabric.setup_module(model)`."
            )
        return super().load_checkpoint(path, state, strict, weights_only)

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[type[Strategy]]) -> None:
        """Register "xla_fsdp"."""
        strategy_registry.register("xla_fsdp", cls, description="Parameters are split over XLA devices.")


def _the_module(state: Mapping[str, Any]) -> tuple[str, Module]:
    wrapped = [(name, value) for name, value in state.items() if isinstance(value, Module) and is_wrapped(value)]
    if len(wrapped) != 1:
        raise ConfigurationError(
            f"save(...) got {len(wrapped)} modules that are split, under the names {[name for name, _ in wrapped]}."
            " XLAFSDPStrategy writes one per checkpoint. Pass the one module that setup returned, in {'model': model}."
        )
    return wrapped[0]


def _check_kwargs(kwargs: Mapping[str, Any]) -> None:
    parameters = inspect.signature(_fsdp().XlaFullyShardedDataParallel).parameters
    known = [name for name in parameters if name not in _OURS and not name.startswith("_")]
    unknown = sorted(set(kwargs) - set(known))
    if unknown:
        raise ArgumentTypeError(
            f"XLAFSDPStrategy({', '.join(f'{name}={kwargs[name]!r}' for name in unknown)}) is unknown. Further"
            " arguments go to torch_xla's XlaFullyShardedDataParallel, which does not take it."
            f" It takes: {', '.join(known)}."
        )


def _check_goes_with_spmd(given: Mapping[str, Any]) -> None:
    ignored = [name for name, value in given.items() if value not in (None, False)]
    if ignored:
        raise ConfigurationError(
            f"XLAFSDPStrategy(spmd=True, {', '.join(f'{name}=...' for name in ignored)}) asks for two ways to split"
            f" parameters. With spmd=True XLA divides them, and no wrapper is there to be told {ignored[0]!r}."
            " Leave it out, or leave out spmd=True."
        )


def _fsdp() -> Any:
    return require("torch_xla.distributed.fsdp", purpose="XLAFSDPStrategy()", pip="torch_xla")
