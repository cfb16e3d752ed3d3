"""A replica of the model per process; gradients are averaged while backward runs."""

from __future__ import annotations

import inspect
import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, Literal, get_args

import torch
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.collectives.process_group import default_backend, default_pg_timeout, init_distributed
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.launchers.base import Launcher
from fulmen.fabric.launchers.script import ScriptLauncher
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.parallel import ParallelStrategy

StartMethod = Literal["popen", "spawn", "fork", "forkserver"]


class DDPStrategy(ParallelStrategy):
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
        kwargs: For `torch.nn.parallel.DistributedDataParallel`.
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
        **kwargs: Any,
    ) -> None:
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision=precision,
        )
        if start_method not in get_args(StartMethod):
            raise ConfigurationError(
                f"DDPStrategy(start_method={start_method!r}) is unknown. It says how the processes are started."
                f" Pass one of {', '.join(map(repr, get_args(StartMethod)))}."
            )
        _check_ddp_arguments(kwargs)
        self._process_group_backend = process_group_backend
        self._timeout = timeout
        self._start_method: StartMethod = start_method
        self._ddp_kwargs = kwargs

    @property
    def process_group_backend(self) -> str | None:
        """The backend: what was asked for, or what fits the device."""
        if self._process_group_backend is None and self.parallel_devices:
            return default_backend(self.root_device)
        return self._process_group_backend

    def configure_launcher(self) -> Launcher:
        """The program again for "popen", a function in new processes for the other start methods."""
        if self.cluster_environment is None:
            self.cluster_environment = LightningEnvironment()
        if self._start_method == "popen":
            return ScriptLauncher(self.cluster_environment, self.num_processes, self.num_nodes)
        return SpawnLauncher(self.cluster_environment, self.num_processes, self.num_nodes, self._start_method)

    def setup_environment(self) -> None:
        """Take the device and join the other processes."""
        if self.cluster_environment is None:
            self.cluster_environment = LightningEnvironment()
        self.set_world_ranks()
        super().setup_environment()
        _share_threads(self.num_processes)
        backend = self.process_group_backend or "gloo"
        device_id = self.root_device if backend == "nccl" else None
        init_distributed(self.cluster_environment, backend, self._timeout, device_id)

    def module_to_device(self, module: Module) -> None:
        """Move the module to the device of this process."""
        module.to(self.root_device)

    def setup_module(self, module: Module) -> Module:
        """The module in `DistributedDataParallel`; as it is where no parameter needs a gradient."""
        if not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        device = self.root_device
        device_ids = None if device.type == "cpu" else [device.index]
        return DistributedDataParallel(module, device_ids=device_ids, **self._ddp_kwargs)

    def no_backward_sync(self, module: Module, enabled: bool) -> AbstractContextManager[Any]:
        """Backward inside exchanges no gradients, if `enabled`; forward must run inside too.

        Raises:
            ArgumentTypeError: If the module has gradients to exchange and was not set up.
        """
        if not enabled:
            return nullcontext()
        if isinstance(module, DistributedDataParallel):
            return module.no_sync()
        if any(parameter.requires_grad for parameter in module.parameters()):
            raise ArgumentTypeError(
                f"no_backward_sync({type(module).__name__}) was called with a module that was not set up."
                " Only the module that setup() returned exchanges gradients."
                " Pass that one."
            )
        return nullcontext()

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


def _check_ddp_arguments(kwargs: dict[str, Any]) -> None:
    known = set(inspect.signature(DistributedDataParallel).parameters) - {"module", "device_ids"}
    unknown = sorted(set(kwargs) - known)
    if unknown:
        raise ArgumentTypeError(
            f"DDPStrategy({', '.join(f'{name}={kwargs[name]!r}' for name in unknown)}) is unknown."
            " Further arguments go to torch.nn.parallel.DistributedDataParallel, which does not take it."
            f" It takes: {', '.join(sorted(known))}."
        )


def _share_threads(num_processes: int) -> None:
    """Processes that each use all cores slow each other down; what the user has set stays."""
    if num_processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Never more than now: forked processes are held at one.
        torch.set_num_threads(min(torch.get_num_threads(), max(1, num_cores // num_processes)))
