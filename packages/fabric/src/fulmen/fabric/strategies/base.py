"""How a model runs on devices: set up, communicate, save, load.

A strategy has an accelerator, a precision and a checkpoint IO. It knows no trainer, and holds no module: whoever calls
it passes the module along.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.arguments import check_part
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.compiled import load_plain_state, plain_state
from fulmen.fabric.errors import ArgumentTypeError, CheckpointKeyError, ConfigurationError
from fulmen.fabric.launchers.base import Launcher
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.registry import Registry
from fulmen.fabric.trees import move_data_to_device
from fulmen.fabric.types import Optimizable, PathLike, ReduceOp, Stateful

_PLAIN = Precision()
_WRAPPERS = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
TBroadcast = TypeVar("TBroadcast")
Filter = Mapping[str, Callable[[str, Any], bool]]


class Strategy(ABC):
    """The base of all strategies. Users may subclass it and override any public method.

    Args:
        accelerator: The kind of hardware; may be set later.
        checkpoint_io: Writes and reads checkpoints; `TorchCheckpointIO` by default.
        precision: How numbers are held and computed; 32-bit by default.

    Raises:
        ArgumentTypeError: If a part is none.
    """

    # Do its processes talk to each other? Then they must be launched before anything is set up.
    is_distributed: ClassVar[bool] = False
    # The only type of device that it runs on. None: all but XLA, whose operations a strategy has to know.
    device_type: ClassVar[str | None] = None
    splits_parameters: ClassVar[bool] = False  # over processes

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
    ) -> None:
        check_part(self, "accelerator", accelerator, method="setup_device", kind="Accelerator")
        check_part(self, "checkpoint_io", checkpoint_io, method="save_checkpoint", kind="CheckpointIO")
        check_part(self, "precision", precision, method="forward_context", kind="Precision")
        self._accelerator = accelerator
        self._checkpoint_io = checkpoint_io
        self._precision = precision
        self._launcher: Launcher | None = None
        self._launcher_is_configured = False

    # ---- parts

    @property
    @abstractmethod
    def root_device(self) -> torch.device:
        """The device of this process."""

    @property
    @abstractmethod
    def is_global_zero(self) -> bool:
        """Is this the process of rank 0, which prints, logs and saves?"""

    @property
    def accelerator(self) -> Accelerator | None:
        """The kind of hardware."""
        return self._accelerator

    @accelerator.setter
    def accelerator(self, accelerator: Accelerator | None) -> None:
        self._accelerator = accelerator

    @property
    def precision(self) -> Precision:
        """How numbers are held and computed."""
        return _PLAIN if self._precision is None else self._precision

    @precision.setter
    def precision(self, precision: Precision | None) -> None:
        self._precision = precision

    def adapt_precision(self, precision: Precision, device_type: str) -> Precision:
        """The form of `precision` that this strategy needs, where it applies precision in a way of its own.

        Raises:
            ConfigurationError: There is none.
        """
        return precision

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """What writes and reads checkpoints."""
        return _plain_io() if self._checkpoint_io is None else self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO | None) -> None:
        self._checkpoint_io = io

    @property
    def launcher(self) -> Launcher | None:
        """What starts the processes; None where there is nothing to start. Made at the first look."""
        if not self._launcher_is_configured:
            self._launcher = self.configure_launcher()
            self._launcher_is_configured = True
        return self._launcher

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any] | None:
        """`num_replicas` and `rank` for samplers; None if every process is to see all data."""
        return None

    @property
    def global_rank(self) -> int:
        """Rank of this process over all nodes."""
        return 0

    @property
    def local_rank(self) -> int:
        """Rank of this process within its node."""
        return 0

    @property
    def node_rank(self) -> int:
        """Rank of this node."""
        return 0

    @property
    def world_size(self) -> int:
        """Number of processes over all nodes."""
        return 1

    # ---- set up

    def configure_launcher(self) -> Launcher | None:
        """Make the launcher. Everything that the strategy needs to know has been set when this is called."""
        return None

    def setup_environment(self) -> None:
        """Make device and connections ready; runs in every process, before anything is set up on a device."""
        if self.accelerator is not None:
            self.accelerator.setup_device(self.root_device)

    def process_dataloader(self, dataloader: DataLoader[Any]) -> Any:
        """The loader as this strategy needs it."""
        return dataloader

    @contextmanager
    def tensor_init_context(self) -> Iterator[None]:
        """Tensors made inside lie on this device, in this precision."""
        with self.root_device, self.precision.tensor_init_context():
            yield

    @contextmanager
    def module_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Modules made inside lie on this device, in this precision.

        Args:
            empty_init: Leave out the initial values of parameters, which a checkpoint will fill in.
        """
        with ExitStack() as stack:
            stack.enter_context(self.root_device)
            stack.enter_context(self.precision.module_init_context())
            if empty_init:
                stack.enter_context(_NoInitialValues())
            yield

    def setup_module_and_optimizers(
        self, module: Module, optimizers: list[Optimizer], scheduler: LRScheduler | None = None
    ) -> tuple[Module, list[Optimizer], LRScheduler | None]:
        """Module and optimizers, ready to train together."""
        return self.setup_module(module), [self.setup_optimizer(optimizer) for optimizer in optimizers], scheduler

    def setup_module(self, module: Module) -> Module:
        """The module, wrapped as this strategy needs it. It is on its device already."""
        return module

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer, as this strategy needs it."""
        return optimizer

    @abstractmethod
    def module_to_device(self, module: Module) -> None:
        """Move the module to the device of this process."""

    def batch_to_device(self, batch: Any, device: torch.device | None = None) -> Any:
        """The batch, any nesting of tensors, on `device` or the device of this process."""
        return move_data_to_device(batch, device or self.root_device)

    # ---- step

    def backward(self, tensor: Tensor, module: Module | None, *args: Any, **kwargs: Any) -> None:
        """Backward of the loss `tensor`; `args` and `kwargs` are those of `Tensor.backward`."""
        precision = self.precision
        precision.pre_backward(tensor, module)
        precision.backward(tensor, module, *args, **kwargs)
        precision.post_backward(tensor, module)

    def optimizer_step(self, optimizer: Optimizable, **kwargs: Any) -> Any:
        """One step; `kwargs` are those of `optimizer.step`."""
        return self.precision.optimizer_step(optimizer, **kwargs)

    def clip_gradients_norm(
        self,
        module: Module,
        optimizer: Optimizer,
        max_norm: float | int,
        norm_type: float | int = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor:
        """Scale the gradients of the optimizer's parameters so that their norm is at most `max_norm`; the norm before.

        Raises:
            RuntimeError: If the norm is not finite, unless `error_if_nonfinite` is False.
        """
        self.precision.unscale_gradients(optimizer)
        parameters = list(self.precision.main_params(optimizer))
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite)

    def clip_gradients_value(self, module: Module, optimizer: Optimizer, clip_val: float | int) -> None:
        """Bring every gradient of the optimizer's parameters into [-clip_val, clip_val]."""
        self.precision.unscale_gradients(optimizer)
        torch.nn.utils.clip_grad_value_(list(self.precision.main_params(optimizer)), clip_val)

    # ---- communicate

    @abstractmethod
    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        """The tensors of all processes on a new first axis; `tensor` when alone. `sync_grads`: with gradients."""

    @abstractmethod
    def all_reduce(self, tensor: Any, group: Any | None = None, reduce_op: ReduceOp | None = "mean") -> Any:
        """The reduction of the tensor over all processes; what is no tensor comes back as it is."""

    @abstractmethod
    def barrier(self, name: str | None = None) -> None:
        """Wait until all processes are here."""

    @abstractmethod
    def broadcast(self, obj: TBroadcast, src: int = 0) -> TBroadcast:
        """The `obj` of rank `src`."""

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Do all processes say yes (or any, with `all=False`)?"""
        return decision

    # ---- save and load

    def save_checkpoint(
        self,
        path: PathLike,
        state: dict[str, Any],
        storage_options: Any | None = None,
        filter: Filter | None = None,
    ) -> None:
        """Write one checkpoint. Every process must call it; rank 0 writes.

        Args:
            path: Where to; a file.
            state: Modules, optimizers and anything else with a `state_dict` are saved by it, the rest as it is.
            storage_options: For the checkpoint IO.
            filter: For keys of `state`: which entries of the state dict to keep, by name and value.
        """
        checkpoint = self._collect(state, {} if filter is None else filter)
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(
        self,
        path: PathLike,
        state: Module | Optimizer | dict[str, Any] | None = None,
        strict: bool = True,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read one checkpoint into `state`; what was not asked for comes back.

        Args:
            path: A file that `save_checkpoint` wrote; for a bare module or optimizer, one that holds its state dict.
            state: What to fill. In a dictionary, what has `load_state_dict` is loaded, other values are replaced.
            strict: Complain about keys that are missing on either side.
            weights_only: False also loads what runs code from the file: only for files that you trust.

        Raises:
            CheckpointKeyError: If `strict` and a key of `state` is not in the file.
            ConfigurationError: If `state` is an empty dictionary.
        """
        refuse_empty(path, state)
        checkpoint = self.read_checkpoint(path, weights_only)
        if state is None:
            return checkpoint
        if isinstance(state, Module):
            self.load_module_state_dict(state, checkpoint, strict=strict)
            return {}
        if isinstance(state, Optimizer):
            self.load_optimizer_state(state, checkpoint)
            return {}
        check_keys(path, state, checkpoint, strict)
        for key in [key for key in state if key in checkpoint]:
            self._fill(state, key, checkpoint.pop(key), strict)
        return checkpoint

    def read_checkpoint(self, path: PathLike, weights_only: bool | None = None) -> dict[str, Any]:
        """What is in a file, on the CPU; a strategy that needs only a part of it may leave tensors in the file."""
        return self.checkpoint_io.load_checkpoint(path, weights_only=weights_only)

    def get_module_state_dict(self, module: Module) -> dict[str, Any]:
        """The module's state dict, under the names of the user's own module."""
        return plain_state(users_module(module))

    def load_module_state_dict(self, module: Module, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load what `get_module_state_dict` gave."""
        load_plain_state(users_module(module), state_dict, strict)

    def get_optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's whole state dict."""
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        """Load what `get_optimizer_state` gave, here or in another number of processes."""
        optimizer.load_state_dict(state_dict)

    def teardown(self) -> None:
        """Release what the run held. The strategy may be set up again."""
        self.precision.teardown()
        if self.accelerator is not None:
            self.accelerator.teardown()
        if self._checkpoint_io is not None:
            self._checkpoint_io.teardown()

    @classmethod  # noqa: B027 (no names is an answer)
    def register_strategies(cls, strategy_registry: Registry[type[Strategy]]) -> None:
        """Register the names under which this strategy can be asked for."""

    def _collect(self, state: dict[str, Any], filters: Filter) -> dict[str, Any]:
        if not isinstance(filters, Mapping):
            raise ArgumentTypeError(
                f"filter={filters!r} is no dictionary. It has a function for some of the keys of the state."
                " Pass {key: function}, or leave it out to save everything."
            )
        for key, keep in filters.items():
            if key not in state:
                raise ConfigurationError(
                    f"filter={{{key!r}: ...}} names nothing in the state. The state has: {', '.join(map(repr, state))}."
                    " Name one of these."
                )
            if not callable(keep):
                raise ArgumentTypeError(
                    f"filter={{{key!r}: {keep!r}}} is no function. It is asked for every entry of the state dict."
                    " Pass a function of (name, value) that returns True for what to keep."
                )
        collected: dict[str, Any] = {}
        for key, value in state.items():
            saved = self._state_of(value)
            if key in filters and isinstance(saved, Mapping):
                saved = {name: part for name, part in saved.items() if filters[key](name, part)}
            collected[key] = saved
        return collected

    def _state_of(self, value: Any) -> Any:
        if isinstance(value, Module):
            return self.get_module_state_dict(value)
        if isinstance(value, Optimizer):
            return self.get_optimizer_state(value)
        return value.state_dict() if isinstance(value, Stateful) else value

    def _fill(self, state: dict[str, Any], key: str, loaded: Any, strict: bool) -> None:
        value = state[key]
        if isinstance(value, Module):
            self.load_module_state_dict(value, loaded, strict=strict)
        elif isinstance(value, Optimizer):
            self.load_optimizer_state(value, loaded)
        elif isinstance(value, Stateful):
            value.load_state_dict(loaded)
        else:
            state[key] = loaded


def refuse_empty(path: PathLike, state: Any) -> None:
    """Refuse to load into an empty dictionary."""
    if isinstance(state, dict) and not state:
        raise ConfigurationError(
            f"load({str(path)!r}, state={{}}) names nothing to load into. The state says what is wanted."
            " Pass the objects to fill, or leave the state out to get everything back."
        )


def check_keys(path: PathLike, state: Mapping[str, Any], held: Collection[str], strict: bool) -> None:
    """If `strict`, refuse keys of `state` that the checkpoint does not hold."""
    missing = [key for key in state if key not in held]
    if strict and missing:
        raise CheckpointKeyError(
            f"{str(path)!r} does not hold {', '.join(map(repr, missing))}."
            f" It holds: {', '.join(map(repr, held))}."
            " Leave these keys out of the state, or pass strict=False to keep what they have."
        )


def users_module(module: Module) -> Module:
    """The user's own module inside `torch.compile` and torch's data-parallel wrappers, in whichever order."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, _WRAPPERS):
            inner = module.module
        if inner is None:
            return module
        module = inner


class _NoInitialValues(TorchFunctionMode):
    """Inside, the functions of `torch.nn.init` leave tensors as they are."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@cache
def _plain_io() -> CheckpointIO:
    """The one that is used where nobody chose; it has no state, and is not imported before it is needed."""
    from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO

    return TorchCheckpointIO()
