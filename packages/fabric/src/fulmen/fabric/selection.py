"""Flags to parts: which accelerator, devices, environment, precision and strategy.

Every contradiction between the flags, and between flags and machine, is answered here, before anything starts. No
process is started and no device is touched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.accelerators.catalog import (
    ACCELERATOR_REGISTRY,
    accelerator_for,
    available_accelerators,
    best_available,
    best_gpu,
    device_type,
)
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.environments.catalog import detect_environment
from fulmen.fabric.errors import (
    ArgumentTypeError,
    ConfigurationError,
    HardwareError,
    MisconfigurationException,
    MissingPackageError,
)
from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.catalog import make_precision, precision_name
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.capabilities import MakesPrecision
from fulmen.fabric.strategies.catalog import STRATEGY_REGISTRY
from fulmen.fabric.strategies.parallel import ParallelStrategy
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy

Plugin: TypeAlias = Precision | ClusterEnvironment | CheckpointIO


@dataclass(frozen=True)
class Selection:
    """What the flags mean on this machine."""

    strategy: Strategy  # knows accelerator, devices, environment, precision and checkpoint IO
    accelerator: Accelerator
    precision: Precision
    environment: ClusterEnvironment
    devices: tuple[torch.device, ...]  # of this node
    num_nodes: int

    @property
    def num_devices(self) -> int:
        """Devices of one node."""
        return len(self.devices)


@dataclass(frozen=True)
class _Plugins:
    """The plugins by kind, at most one of each."""

    precision: Precision | None = None
    environment: ClusterEnvironment | None = None
    checkpoint_io: CheckpointIO | None = None


def select(
    *,
    accelerator: str | Accelerator = "auto",
    strategy: str | Strategy = "auto",
    devices: list[int] | str | int = "auto",
    num_nodes: int = 1,
    precision: str | int | None = None,
    plugins: Plugin | Iterable[Plugin] | None = None,
    registry: Registry[type[Strategy]] = STRATEGY_REGISTRY,
    caller: str = "Fabric",
) -> Selection:
    """The parts that these flags ask for, bound to each other.

    Args:
        registry: The strategy names that `strategy` may be.
        caller: Quoted in errors: "Fabric(devices=0) ...".

    Raises:
        ConfigurationError: Unknown names, values out of range, flags that contradict each other.
        HardwareError: The machine does not have what is asked for.
        ArgumentTypeError: A flag of the wrong type.
        MissingPackageError: A flag needs a package that is not installed.
    """
    _check_num_nodes(num_nodes, caller)
    _check_accelerator_flag(accelerator, caller)
    _check_strategy_flag(strategy, registry, caller)
    given = _sort_plugins(plugins, caller)
    _check_given_once(accelerator, strategy, precision, given, caller)
    wanted = None if given.precision else precision_name(precision, caller)

    chosen = _choose_accelerator(accelerator, strategy, caller)
    environment = _choose_environment(strategy, given, chosen)
    on_node = _choose_devices(chosen, devices, strategy, environment, caller)
    built = (
        strategy if isinstance(strategy, Strategy) else _build_strategy(strategy, on_node, num_nodes, registry, caller)
    )
    _check_strategy_fits(built, chosen, on_node, strategy, caller)
    if _has_one_process(built):
        _check_one_process(environment, num_nodes, caller)
    elif environment.creates_processes_externally:
        environment.validate_settings(num_devices=len(on_node), num_nodes=num_nodes)

    built.accelerator = chosen
    if given.checkpoint_io is not None:
        built.checkpoint_io = given.checkpoint_io
    if given.precision is not None:
        built.precision = given.precision
    elif not _has_own(built, "precision") and isinstance(built, MakesPrecision):
        flag = f"{caller}(precision={precision!r})"
        built.precision = built.make_precision(None if precision is None else wanted, flag)
    elif not _has_own(built, "precision"):
        made = make_precision(wanted or "32-true", on_node[0].type, caller)
        try:
            built.precision = built.adapt_precision(made, on_node[0].type)
        except ConfigurationError as error:
            flags = f"strategy={type(built).__name__}, precision=..."
            raise type(error)(f"{caller}({flags}): {error}") from error
    _check_precision_fits(built, on_node[0].type, caller)
    if isinstance(built, ParallelStrategy):
        built.parallel_devices = on_node
        built.cluster_environment = environment
        built.num_nodes = num_nodes
    _check_interactive(built, strategy, caller)
    return Selection(built, chosen, built.precision, environment, tuple(on_node), num_nodes)


def _check_num_nodes(num_nodes: object, caller: str) -> None:
    if not isinstance(num_nodes, int) or isinstance(num_nodes, bool) or num_nodes < 1:
        raise ConfigurationError(
            f"{caller}(num_nodes={num_nodes!r}) is no number of machines. It has to be an int of at least 1."
            " Pass num_nodes=1 for this machine alone."
        )


def _check_accelerator_flag(accelerator: object, caller: str) -> None:
    if isinstance(accelerator, Accelerator):
        return
    known = ["auto", "gpu", *ACCELERATOR_REGISTRY.names()]
    if accelerator == "tpu" and not is_installed("torch_xla"):
        raise MissingPackageError(
            f"{caller}(accelerator='tpu') needs the package 'torch_xla'. It is not installed here."
            " Install it with `python -m pip install torch_xla`, or choose another accelerator."
        )
    if isinstance(accelerator, str) and accelerator in known:
        return
    _refuse_class(accelerator, f"{caller}(accelerator={{}})")
    raise ConfigurationError(
        f"{caller}(accelerator={accelerator!r}) names no accelerator. Known names are {', '.join(map(repr, known))}."
        " Pass one of them, or an Accelerator object."
    )


def _refuse_class(given: object, argument: str) -> None:
    if isinstance(given, type):
        name = given.__name__
        raise ConfigurationError(
            f"{argument.format(name)} is a class, not an object. The argument is a name or an object."
            f" Pass {name}(...), or one of the names."
        )


def _check_strategy_flag(strategy: object, registry: Registry[type[Strategy]], caller: str) -> None:
    if isinstance(strategy, Strategy) or strategy == "auto":
        return
    if isinstance(strategy, str) and strategy in registry:
        return
    _refuse_class(strategy, f"{caller}(strategy={{}})")
    known = ", ".join(map(repr, ["auto", *registry.names()]))
    raise ConfigurationError(
        f"{caller}(strategy={strategy!r}) names no strategy. Known names are {known}."
        " Pass one of them, or a Strategy object."
    )


def _sort_plugins(plugins: object, caller: str) -> _Plugins:
    if plugins is None:
        return _Plugins()
    found: dict[str, Any] = {}
    kinds = {"precision": Precision, "environment": ClusterEnvironment, "checkpoint_io": CheckpointIO}
    for plugin in plugins if isinstance(plugins, list | tuple) else [plugins]:
        kind = next((name for name, base in kinds.items() if isinstance(plugin, base)), None)
        if kind is None:
            kind_given = "class" if isinstance(plugin, type) else type(plugin).__name__
            raise ArgumentTypeError(
                f"{caller}(plugins=...) got {plugin!r}, a {kind_given}."
                f" A plugin is one of {', '.join(base.__name__ for base in kinds.values())}."
                " Pass objects of these types, at most one of each."
            )
        if kind in found:
            base_name = kinds[kind].__name__
            raise ConfigurationError(
                f"{caller}(plugins=...) got two {base_name} plugins,"
                f" {type(found[kind]).__name__} and {type(plugin).__name__}. Only one of them can be used."
                f" Pass one {base_name}."
            )
        found[kind] = plugin
    return _Plugins(**found)


def _check_given_once(accelerator: object, strategy: object, precision: object, given: _Plugins, caller: str) -> None:
    """What a strategy object brings must not be given beside it, nor the precision as flag and as plugin."""

    def twice(what: str, first: str, second: str) -> ConfigurationError:
        return ConfigurationError(
            f"{caller} got the {what} twice, as {first} and as {second}."
            f" A run has one {what}, and none of the two is the obvious one. Pass only one of them."
        )

    if precision is not None and given.precision is not None:
        raise twice("precision", f"precision={precision!r}", f"the plugin {type(given.precision).__name__}")
    if not isinstance(strategy, Strategy):
        return
    where = f"an argument of strategy={type(strategy).__name__}(...)"
    if accelerator != "auto" and _has_own(strategy, "accelerator"):
        raise twice("accelerator", f"accelerator={accelerator!r}", where)
    if precision is not None and _has_own(strategy, "precision"):
        raise twice("precision", f"precision={precision!r}", where)
    for name in ("precision", "checkpoint_io"):
        plugin = getattr(given, name)
        if plugin is not None and _has_own(strategy, name):
            raise twice(name.replace("_io", " IO"), f"the plugin {type(plugin).__name__}", where)
    if given.environment is not None and getattr(strategy, "cluster_environment", None) is not None:
        raise twice("cluster environment", f"the plugin {type(given.environment).__name__}", where)


def _has_own(strategy: Strategy, name: str) -> bool:
    """Was this part given when the strategy was built?"""
    # Not the property: it gives a default where there is none.
    return getattr(strategy, f"_{name}", None) is not None


def _choose_accelerator(accelerator: str | Accelerator, strategy: str | Strategy, caller: str) -> Accelerator:
    if isinstance(accelerator, Accelerator):
        chosen = accelerator
    elif accelerator == "auto" and isinstance(strategy, Strategy) and _has_own(strategy, "accelerator"):
        chosen = strategy.accelerator  # type: ignore[assignment]  # just seen that it is not None
    else:
        chosen = ACCELERATOR_REGISTRY.make(_accelerator_name(accelerator, strategy, caller))
    if not chosen.is_available():
        usable = ", ".join(map(repr, available_accelerators()))
        asked = accelerator if isinstance(accelerator, str) else chosen.name()
        raise HardwareError(
            f"{caller}(accelerator={asked!r}) asks for hardware that was not found on this machine."
            f" Usable here: {usable}. Pass one of them, or accelerator='auto'."
        )
    return chosen


def _accelerator_name(accelerator: str, strategy: str | Strategy, caller: str) -> str:
    device_types = sorted({device.type for device in _own_devices(strategy)})
    if accelerator == "auto":
        return accelerator_for(device_types[0]) if device_types else best_available()
    if accelerator == "gpu":
        name = best_gpu()
        if name is None:
            raise HardwareError(
                f"{caller}(accelerator='gpu') asks for a GPU. Neither CUDA nor MPS was found on this machine."
                " Pass accelerator='cpu', or accelerator='auto' to take what is there."
            )
        accelerator = name
    if device_types and device_type(accelerator) not in (None, *device_types):
        raise ConfigurationError(
            f"{caller}(accelerator={accelerator!r}) contradicts the devices of the strategy object."
            f" The strategy was built for {', '.join(device_types)}. Leave the accelerator out, or pass other devices."
        )
    return accelerator


def _own_devices(strategy: str | Strategy) -> list[torch.device]:
    """The devices that a strategy object was built with."""
    if isinstance(strategy, SingleDeviceStrategy):
        return [strategy.root_device]
    if isinstance(strategy, ParallelStrategy):
        return list(strategy.parallel_devices or ())
    return []


def _has_one_process(strategy: str | Strategy) -> bool:
    """Does one process use all devices?"""
    return isinstance(strategy, ParallelStrategy) and not strategy.is_distributed


def _choose_environment(strategy: str | Strategy, given: _Plugins, accelerator: Accelerator) -> ClusterEnvironment:
    if given.environment is not None:
        return given.environment
    if accelerator.name() == "tpu":
        from fulmen.fabric.environments.xla import XLAEnvironment

        return XLAEnvironment()
    if isinstance(strategy, ParallelStrategy) and strategy.cluster_environment is not None:
        return strategy.cluster_environment
    return detect_environment()


def _choose_devices(
    accelerator: Accelerator,
    devices: list[int] | str | int,
    strategy: str | Strategy,
    environment: ClusterEnvironment,
    caller: str,
) -> list[torch.device]:
    own = _own_devices(strategy)
    if devices == "auto" and own:
        return own
    count: Any = devices
    if devices == "auto":
        # Who started the processes has decided how many run here, and need not say so again.
        started = None if strategy == "dp" or _has_one_process(strategy) else environment.local_world_size()
        count = started or accelerator.auto_device_count()
    try:
        found: list[torch.device] = accelerator.get_parallel_devices(accelerator.parse_devices(count))
    except MisconfigurationException as error:
        # The accelerator does not know whose argument it was.
        flag = f"devices={count!r}"
        raise type(error)(str(error).replace(flag, f"{caller}({flag})", 1)) from error
    if not own or (isinstance(strategy, SingleDeviceStrategy) and len(found) > 1):
        return found
    is_count = isinstance(devices, int) or (isinstance(devices, str) and "," not in devices)
    if len(found) != len(own) or (found != own and not is_count):
        raise ConfigurationError(
            f"{caller}(devices={devices!r}) contradicts the devices of the strategy object."
            f" The strategy was built for {', '.join(map(str, own))}. Leave the devices out, or pass those."
        )
    return own


def _build_strategy(
    name: str, devices: list[torch.device], num_nodes: int, registry: Registry[type[Strategy]], caller: str
) -> Strategy:
    is_parallel = len(devices) > 1 or num_nodes > 1
    if name == "auto":
        if devices[0].type == "xla":
            name = "xla" if is_parallel else "single_xla"
        elif not is_parallel:
            return SingleDeviceStrategy(devices[0])
        else:
            # A notebook cannot be run again as a script.
            name = "ddp_notebook" if _is_interactive() else "ddp"
    if name == "dp" and devices[0].type == "cpu":
        name = "ddp_notebook" if _is_interactive() else "ddp"
        rank_zero_warn(
            f"{caller}(strategy='dp') uses strategy={name!r}, since a batch cannot be split over CPUs in one process."
            f" Pass strategy={name!r} to say so."
        )
    entry = registry[name]
    if not issubclass(entry.value, SingleDeviceStrategy):
        return entry.value(**entry.preset)
    if is_parallel:
        raise ConfigurationError(
            f"{caller}(strategy={name!r}) runs on one device, not on {len(devices)} devices of {num_nodes} node(s)."
            " The others would have nothing to do. Pass strategy='auto', or devices=1 and num_nodes=1."
        )
    return entry.value(devices[0], **entry.preset)


def _check_strategy_fits(
    built: Strategy, accelerator: Accelerator, devices: list[torch.device], flag: str | Strategy, caller: str
) -> None:
    shown = repr(flag) if isinstance(flag, str) else f"{type(flag).__name__}(...)"
    if isinstance(built, SingleDeviceStrategy) and len(devices) > 1:
        raise ConfigurationError(
            f"{caller}(strategy={shown}) runs on one device, and {len(devices)} devices are asked for."
            " The others would have nothing to do. Pass strategy='auto', or devices=1."
        )
    needed, found = built.device_type, devices[0].type
    if needed is not None and needed != found:
        raise ConfigurationError(
            f"{caller}(strategy={shown}) cannot run on devices of type {found!r}. It is made for {needed!r}."
            f" Pass accelerator={accelerator_for(needed)!r}, or strategy='auto'."
        )
    # Others of ours are not made for XLA; one of the user's may be.
    if found == "xla" and needed is None and type(built).__module__.startswith("fulmen."):
        raise ConfigurationError(
            f"{caller}(strategy={shown}) cannot run on XLA devices. Their operations are collected and compiled, which"
            " a strategy has to know. Pass strategy='auto', 'xla' or 'xla_fsdp', or accelerator='cpu'."
        )
    if isinstance(built, ParallelStrategy) and accelerator.name() == "mps":
        raise ConfigurationError(
            f"{caller}(strategy={shown}) cannot run on MPS. An Apple GPU is one device, and its tensors cannot be sent"
            " between processes. Pass strategy='auto', or accelerator='cpu'."
        )


def _check_precision_fits(built: Strategy, device_type: str, caller: str) -> None:
    precision = built.precision
    can, strategy = precision.parameters_may_be, type(built).__name__
    in_one_process = isinstance(built, ParallelStrategy) and not built.is_distributed  # copied anew in each forward
    if (can == "alone" and not isinstance(built, SingleDeviceStrategy)) or (
        can != "split" and (built.splits_parameters or in_one_process)
    ):
        done, instead = "splits" if built.splits_parameters else "copies", "'auto'" if can == "alone" else "'ddp'"
        raise ConfigurationError(
            f"{caller} cannot use {type(precision).__name__} with {strategy}, which {done} parameters: its quantized"
            f" weights are more than the tensors that would be sent. Pass strategy={instead}"
            f"{' and devices=1' if can == 'alone' else ''}, or precision='bf16-mixed'."
        )
    if precision.device_types and device_type not in precision.device_types:
        raise ConfigurationError(
            f"{caller} cannot use {type(precision).__name__} on devices of type {device_type!r}."
            f" It works on {', '.join(map(repr, precision.device_types))} only."
            " Choose another accelerator, or pass precision='bf16-mixed'."
        )


def _check_one_process(environment: ClusterEnvironment, num_nodes: int, caller: str) -> None:
    world_size = environment.world_size() if environment.creates_processes_externally else num_nodes
    if world_size > 1 or num_nodes > 1:
        raise ConfigurationError(
            f"{caller}(strategy='dp', num_nodes={num_nodes}) runs in one process, and there are to be {world_size}."
            " Each of them would train a module of its own, on all data."
            " Pass strategy='ddp', or start the program once, with num_nodes=1."
        )


def _is_interactive() -> bool:
    return hasattr(sys, "ps1")


def _check_interactive(built: Strategy, flag: str | Strategy, caller: str) -> None:
    launcher = built.launcher if _is_interactive() else None
    if launcher is not None and not launcher.is_interactive_compatible:
        shown = repr(flag) if isinstance(flag, str) else f"{type(flag).__name__}(...)"
        raise ConfigurationError(
            f"{caller}(strategy={shown}) cannot start processes from an interactive session."
            " It would run the script again, and there is none. Pass strategy='ddp_notebook', or run a script."
        )
