"""The engine of DeepSpeed: load the package for this device, start an engine, and its optimizer as torch knows one.

Nothing here assumes a GPU, and nothing is compiled unless a configuration asks for an optimizer of DeepSpeed's own.
"""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.environments.variables import environment_variables
from fulmen.fabric.errors import ConfigurationError, MissingPackageError
from fulmen.fabric.optional_packages import is_installed, require
from fulmen.fabric.strategies.deepspeed.sections import zero_stage

_NAME = "deepspeed"
_OLDEST = (0, 19)  # since then whoever calls `step` may count the batches
_ACCELERATOR = "DS_ACCELERATOR"
_LOCAL_RANK = "LOCAL_RANK"
_SHARED_MEMORY = "deepspeed_shm_comm"


def check_installed() -> None:
    """Is the package there? It is not imported, which takes seconds.

    Raises:
        MissingPackageError: With the command that installs it.
    """
    if not is_installed(_NAME):
        raise MissingPackageError(
            "DeepSpeedStrategy needs the package 'deepspeed'. It is not installed here. Install it with"
            " `python -m pip install 'deepspeed>=0.19'`, or use strategy='fsdp', which splits parameters too."
        )


def load_deepspeed(device: torch.device, logging_level: int) -> Any:
    """The package, made ready for a kind of device.

    Raises:
        MissingPackageError: If it is missing or too old.
        ConfigurationError: If it was imported for another kind of device before.
    """
    is_first = _NAME not in sys.modules
    # Left to itself it takes the GPU of this machine also for a run on the CPU.
    with environment_variables({_ACCELERATOR: device.type} if is_first and device.type in ("cpu", "cuda") else {}):
        deepspeed: Any = require(_NAME, purpose="DeepSpeedStrategy")
    version = tuple(int(part) for part in str(deepspeed.__version__).split(".")[:2])
    if version < _OLDEST:
        raise MissingPackageError(
            f"DeepSpeedStrategy needs deepspeed 0.19 or newer, and {deepspeed.__version__} is installed. Older ones"
            " count batches themselves, and would step at other times than the run."
            " Install it with `python -m pip install -U 'deepspeed>=0.19'`."
        )
    found = deepspeed.accelerator.get_accelerator().device_name()
    if found != device.type:
        raise ConfigurationError(
            f"DeepSpeedStrategy is to run on {device.type!r}, and the package deepspeed was imported for {found!r}. It"
            f" decides that once, when it is imported. Set {_ACCELERATOR}={device.type} before the program starts, or"
            f" pass accelerator={found!r}."
        )
    deepspeed.utils.logging.logger.setLevel(logging_level)
    return deepspeed


def join_deepspeed(deepspeed: Any, device: torch.device, backend: str, timeout: timedelta | None) -> None:
    """Tell the package of the process group, which is open."""
    if device.type == "cpu" and not deepspeed.git_version_info.installed_ops.get(_SHARED_MEMORY, False):
        # Its collectives in shared memory would be compiled now, for minutes. Those of the group do the same.
        deepspeed.ops.__compatible_ops__[_SHARED_MEMORY] = False
    # Names of torch that the package uses, and that have become others: nothing that a user could change.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    waits = {} if timeout is None else {"timeout": timeout}
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, **waits)


def check_disk(deepspeed: Any) -> None:
    """Can the package read a disk here?

    Raises:
        ConfigurationError: If not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error says it
        is_able = deepspeed.ops.op_builder.AsyncIOBuilder().is_compatible(verbose=False)
    if not is_able:
        raise ConfigurationError(
            "DeepSpeedStrategy(offload_params_device='nvme') or offload_optimizer_device='nvme' cannot be done here:"
            " DeepSpeed's reader of disks needs the library libaio, with its headers. They are not found. Install"
            " libaio-dev (libaio-devel), or pass 'cpu' as these devices."
        )


def check_tried(deepspeed: Any, config: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Have DeepSpeed's authors tried this optimizer, if the configuration wants no other?

    Raises:
        ConfigurationError: If not.
    """
    if config.get("zero_allow_untested_optimizer") is not False or not zero_stage(config):
        return
    if not deepspeed.runtime.zero.utils.is_zero_supported_optimizer(optimizer):
        raise ConfigurationError(
            f"DeepSpeedStrategy(zero_allow_untested_optimizer=False) cannot step with {type(optimizer).__name__}. It"
            " is none of the optimizers that DeepSpeed's authors have tried with ZeRO. Use torch.optim.AdamW or Adam,"
            " or leave zero_allow_untested_optimizer out."
        )


@contextmanager
def told_ranks(environment: ClusterEnvironment, local_rank: int | None = None) -> Iterator[None]:
    """Inside, environment variables say which process this is: the package reads its device from there.

    Args:
        environment: Says it.
        local_rank: In the place of the environment's.
    """
    ranks = {
        "RANK": environment.global_rank(),
        _LOCAL_RANK: environment.local_rank() if local_rank is None else local_rank,
        "WORLD_SIZE": environment.world_size(),
        "MASTER_ADDR": environment.main_address,
        "MASTER_PORT": environment.main_port,
    }
    with environment_variables({name: str(value) for name, value in ranks.items()}):
        yield


def start_engine(
    deepspeed: Any,
    module: Module,
    config: Mapping[str, Any],
    device: torch.device,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
) -> Any:
    """An engine that runs `module`, and trains it if there is an optimizer, or one in the configuration."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        args=Namespace(device_rank=device.index if device.index is not None else 0),
        model=module,
        model_parameters=trained,
        optimizer=optimizer,
        lr_scheduler=scheduler,
        config=dict(config),
        dist_init_required=False,
    )
    return engine


def tell_rank_in_forward(engine: Any, local_rank: int) -> None:
    """In the forward of an engine the environment says which process of its machine this is, if it does not anyway.

    With stage 3 DeepSpeed reads it there, in the first steps. For good it cannot be said: a later run in this program
    would take itself for one that was started by somebody else.
    """
    if _LOCAL_RANK in os.environ:
        return
    forward = engine.forward

    def told(*args: Any, **kwargs: Any) -> Any:
        with environment_variables({_LOCAL_RANK: str(local_rank)}):
            return forward(*args, **kwargs)

    engine.forward = told


def stop_engine(engine: Any) -> None:
    """Take an engine's hooks off its module, so that another one can run it."""
    engine.destroy()
    engine.module_forward_pre_hook.remove()
    engine.module_forward_post_hook.remove()


class Trained:
    """What a strategy knows of engines that train: their optimizers, and the names of what these step, in their order.

    Each engine keeps its own. Its optimizer it keeps weakly, so that one that nobody can step any more is told from one
    that is trained: DeepSpeed's hooks keep engines alive that everybody has let go of.
    """

    _KEY = "_trained_by_strategy"

    def __contains__(self, engine: object) -> bool:
        return self._KEY in getattr(engine, "__dict__", ())

    def __getitem__(self, engine: Any) -> tuple[EngineOptimizer, list[str]]:
        optimizer, names = engine.__dict__[self._KEY]
        return optimizer() or EngineOptimizer(engine), names

    def add(self, engine: Any, optimizer: EngineOptimizer, names: list[str]) -> None:
        """It trains."""
        engine.__dict__[self._KEY] = weakref.ref(optimizer), names

    def forget(self, engine: Any) -> None:
        """It trains no more."""
        engine.__dict__.pop(self._KEY, None)

    def can_step(self, engine: Any) -> bool:
        """Does anybody have its optimizer?"""
        return engine in self and engine.__dict__[self._KEY][0]() is not None


class EngineOptimizer(Optimizer):
    """The optimizer of an engine: `step` is the engine's, which reduces, unscales, clips, steps and sets to zero.

    Groups and options (the learning rate) are those of the torch optimizer inside, so that schedulers reach them.

    Args:
        engine: Of DeepSpeed, with an optimizer.
        client: The torch optimizer that the engine was given; None if it made one from its configuration.
    """

    def __init__(self, engine: Any, client: Optimizer | None = None) -> None:
        # Not Optimizer.__init__: this shares everything with the one inside.
        inner = getattr(engine.optimizer, "optimizer", None) or engine.optimizer
        self.__dict__.update(_engine=engine, _inner=inner, _has_gradients=False, defaults=inner.defaults)
        if client is not None and client is not inner:
            client.param_groups = inner.param_groups  # what was made for it (a scheduler) reaches the new one

    @property
    def engine(self) -> Any:
        """The engine of DeepSpeed."""
        return self.__dict__["_engine"]

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]  # an attribute there
        """The groups of the torch optimizer; their parameters are flat pieces, of this process only."""
        groups: list[dict[str, Any]] = self.__dict__["_inner"].param_groups
        return groups

    @property
    def state(self) -> Any:  # type: ignore[override]  # an attribute there
        """The state of the flat pieces."""
        return self.__dict__["_inner"].state

    def note_backward(self) -> None:
        """Gradients have come to the engine."""
        self.__dict__["_has_gradients"] = True

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the engine; what the closure returned. Without gradients, nothing is changed."""
        answer = None
        if closure is not None:
            with torch.enable_grad():
                answer = closure()
        if self.__dict__["_has_gradients"]:
            self.__dict__["_has_gradients"] = False
            self.engine.step()
        return answer

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing is left to do after a step: it sets gradients to zero.

        Raises:
            ConfigurationError: Between backward and step: what is reduced already cannot be thrown away.
        """
        if self.__dict__["_has_gradients"] and not self.engine.managed_gradient_accumulation():
            raise ConfigurationError(
                "optimizer.zero_grad() was called between backward and step, with DeepSpeed. Its engine has reduced"
                " these gradients already, and would add the next ones to them. Call it before backward or after step,"
                " or leave it out: the engine's step does it."
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(
            "optimizer.add_param_group(...) cannot be done with DeepSpeed. Its engine has laid all parameters into flat"
            " pieces when it was set up. Give the optimizer all groups from the start; those of frozen parameters cost"
            " nothing."
        )

    def state_dict(self) -> dict[str, Any]:
        """Refused, where the state is split over processes.

        Raises:
            ConfigurationError: With ZeRO.
        """
        if self.engine.zero_optimization():
            raise ConfigurationError(
                "optimizer.state_dict() was called with DeepSpeed, where no process holds the state of an optimizer."
                " A checkpoint of all processes keeps it."
                " Call fabric.save(path, {'model': model}) or trainer.save_checkpoint(path)."
            )
        state: dict[str, Any] = self.__dict__["_inner"].state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refused, where the state is split over processes.

        Raises:
            ConfigurationError: With ZeRO.
        """
        if self.engine.zero_optimization():
            raise ConfigurationError(
                "optimizer.load_state_dict(...) was called with DeepSpeed, where no process holds the state of an"
                " optimizer. It is loaded together with the module."
                " Call fabric.load(path, {'model': model}) or trainer.fit(model, ckpt_path=path)."
            )
        self.__dict__["_inner"].load_state_dict(state_dict)

    def __repr__(self) -> str:
        return f"EngineOptimizer({self.__dict__['_inner']!r})"

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("The optimizer of an engine of DeepSpeed cannot be copied: it belongs to this process.")
