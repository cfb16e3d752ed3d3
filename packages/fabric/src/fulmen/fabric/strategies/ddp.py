"""A replica of the model per process; gradients are averaged while backward runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.arguments import check_amount, check_flag, check_function
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.class_names import class_name
from fulmen.fabric.collectives.process_group import default_pg_timeout
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.launchers.base import Launcher
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.known_here import ModulesKnownHere
from fulmen.fabric.strategies.parallel import ProcessGroupStrategy

StartMethod = Literal["popen", "spawn", "fork", "forkserver"]
# `DistributedDataParallel` looks into torch's compiler when it is made: seconds, in every process that imports it.
_IMPORTED_BY_DDP = ("torch._dynamo",)
CommHook = Callable[[Any, Any], Any]


class DDPStrategy(ProcessGroupStrategy):
    """Data parallel: every process trains a replica on its part of the data.

    Args:
        accelerator: The kind of hardware.
        parallel_devices: The devices of this node, one per process.
        cluster_environment: Says which process this is, and where the processes meet.
        checkpoint_io: Writes and reads checkpoints.
        precision: How numbers are held and computed.
        process_group_backend: "gloo", "nccl", ...; by default the one for the device.
        timeout: How long a collective waits for the other processes.
        start_method: "popen" runs the program again in every process; the others run a function.
        ddp_comm_hook: How gradients are reduced; see torch's `register_comm_hook`.
        ddp_comm_state: Handed to the hook.
        ddp_comm_wrapper: Called with the hook; what it returns is registered.
        kwargs: For `torch.nn.parallel.DistributedDataParallel`, such as `find_unused_parameters` or `static_graph`.
    """

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
        start_method: StartMethod = "popen",
        *,
        ddp_comm_state: object | None = None,
        ddp_comm_hook: CommHook | None = None,
        ddp_comm_wrapper: Callable[[CommHook], CommHook] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision=precision,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        if start_method not in get_args(StartMethod):
            raise ConfigurationError(
                f"DDPStrategy(start_method={start_method!r}) is unknown. It says how the processes are started."
                f" Pass one of {', '.join(map(repr, get_args(StartMethod)))}."
            )
        _check_comm_hook(ddp_comm_hook, ddp_comm_state, ddp_comm_wrapper)
        _check_ddp_arguments(kwargs)
        self._start_method: StartMethod = start_method
        self._ddp_kwargs = kwargs
        self._comm_state = ddp_comm_state
        self._comm_hook = ddp_comm_hook
        self._comm_wrapper = ddp_comm_wrapper
        self._has_exchanged = ModulesKnownHere()  # of those with a static graph

    @property
    def ddp_arguments(self) -> dict[str, Any]:
        """What `DistributedDataParallel` is given beside the module and its device."""
        return dict(self._ddp_kwargs)

    def configure_launcher(self) -> Launcher:
        """The program again for "popen", a function in new processes for the other start methods."""
        launcher = super().configure_launcher()
        if self._start_method == "popen":
            return launcher
        return SpawnLauncher(
            self.joined_environment(), self.num_processes, self.num_nodes, self._start_method, preload=_IMPORTED_BY_DDP
        )

    def module_to_device(self, module: Module) -> None:
        """Move the module to the device of this process."""
        module.to(self.root_device)

    def setup_module(self, module: Module) -> Module:
        """The module in `DistributedDataParallel`; as it is where no parameter needs a gradient."""
        if not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        device = self.root_device
        device_ids = None if device.type == "cpu" else [device.index]
        wrapped = DistributedDataParallel(module, device_ids=device_ids, **self._ddp_kwargs)
        for tensor in self.precision.beside_parameters(module):
            dist.broadcast(tensor, 0)  # as the parameters were
        if self._comm_hook is not None:
            hook = self._comm_hook if self._comm_wrapper is None else self._comm_wrapper(self._comm_hook)
            wrapped.register_comm_hook(self._comm_state, hook)
        return wrapped

    def no_backward_sync(self, module: Module, enabled: bool) -> AbstractContextManager[Any]:
        """Backward inside exchanges no gradients, if `enabled`; forward must run inside too.

        With `static_graph`, the first block exchanges them all the same: torch learns the graph from an exchange. Means
        of parts add up to the mean of all, so gradients are what they would have been.

        Raises:
            ArgumentTypeError: If the module has gradients to exchange and was not set up.
        """
        if not enabled:
            return nullcontext()
        if isinstance(module, DistributedDataParallel):
            if module.static_graph and module not in self._has_exchanged:
                return self._exchanging_once(module)
            return module.no_sync()
        if any(parameter.requires_grad for parameter in module.parameters()):
            raise ArgumentTypeError(
                f"no_backward_sync({class_name(module)}) was called with a module that was not set up."
                " Only the module that setup() returned exchanges gradients."
                " Pass that one."
            )
        return nullcontext()

    @contextmanager
    def _exchanging_once(self, module: Module) -> Iterator[None]:
        yield
        if any(parameter.grad is not None for parameter in module.parameters()):
            self._has_exchanged.add(module)

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[type[Strategy]]) -> None:
        """Register "ddp" and its variants."""
        for name, start_method, description in (
            ("ddp", "popen", "A replica per process; the program runs again in every process."),
            ("ddp_spawn", "spawn", "A replica per process; a function runs in new Python processes."),
            ("ddp_fork", "fork", "A replica per process; a function runs in forked processes."),
            ("ddp_notebook", "fork", "A replica per process, from a notebook or a prompt."),
        ):
            strategy_registry.register(name, cls, description=description, start_method=start_method)
        strategy_registry.register(
            "ddp_find_unused_parameters_true",
            cls,
            description="As ddp, for modules that leave out parameters in some steps.",
            find_unused_parameters=True,
            start_method="popen",
        )


def _check_comm_hook(hook: object, state: object, wrapper: object) -> None:
    given = {"ddp_comm_hook": hook, "ddp_comm_wrapper": wrapper}
    for name, value in given.items():
        check_function("DDPStrategy", name, value, "It reduces gradients, as torch's fp16_compress_hook does.")
    if hook is None and (state is not None or wrapper is not None):
        raise ConfigurationError(
            f"DDPStrategy({'ddp_comm_state' if state is not None else 'ddp_comm_wrapper'}=...) has no hook to go with."
            " It changes what a communication hook does. Pass ddp_comm_hook, too."
        )


def _check_ddp_arguments(kwargs: dict[str, Any]) -> None:
    parameters = inspect.signature(DistributedDataParallel).parameters
    known = set(parameters) - {"module", "device_ids"}
    unknown = sorted(set(kwargs) - known)
    if unknown:
        raise ArgumentTypeError(
            f"DDPStrategy({', '.join(f'{name}={kwargs[name]!r}' for name in unknown)}) is unknown."
            " Further arguments go to torch.nn.parallel.DistributedDataParallel, which does not take it."
            f" It takes: {', '.join(sorted(known))}."
        )
    for name, value in kwargs.items():
        if isinstance(parameters[name].default, bool):
            check_flag("DDPStrategy", name, value)
    check_amount("DDPStrategy", "bucket_cap_mb", kwargs.get("bucket_cap_mb"), "It is the size of a bucket in MiB.")
