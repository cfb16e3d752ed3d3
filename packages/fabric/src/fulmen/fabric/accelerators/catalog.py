"""The accelerators we know, and which one "auto" picks."""

from __future__ import annotations

import importlib
import inspect

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.accelerators.cpu import CPUAccelerator
from fulmen.fabric.accelerators.cuda import CUDAAccelerator
from fulmen.fabric.accelerators.mps import MPSAccelerator
from fulmen.fabric.accelerators.xla import XLAAccelerator, has_only_virtual_devices
from fulmen.fabric.registry import Registry


class AcceleratorRegistry(Registry[type[Accelerator]]):
    """Names to accelerator classes; the arguments that a name presets are those of the class."""

    def __init__(self) -> None:
        super().__init__("accelerator")

    def make(self, name: str) -> Accelerator:
        """An accelerator of the class registered under `name`, with the arguments that the name presets.

        Raises:
            ConfigurationError: If the name is not registered.
        """
        entry = self[name]
        return entry.value(**entry.preset)

    def available_accelerators(self) -> set[str]:
        """All registered names, whether the hardware is here or not."""
        return set(self)


ACCELERATOR_REGISTRY = AcceleratorRegistry()
for _accelerator in (CPUAccelerator, CUDAAccelerator, MPSAccelerator, XLAAccelerator):
    _accelerator.register_accelerators(ACCELERATOR_REGISTRY)

# In order of preference; a registered kind of the user's own is taken only by name.
_GPUS = (MPSAccelerator, CUDAAccelerator)
_PREFERRED = (XLAAccelerator, *_GPUS)
# Where a name and the type of its devices differ.
_DEVICE_TYPES = {"tpu": "xla"}


def call_register_accelerators(registry: Registry[type[Accelerator]], base_module: str) -> None:
    """Let every concrete accelerator class in the module `base_module` register itself in `registry`.

    Args:
        registry: Usually `ACCELERATOR_REGISTRY`.
        base_module: Dotted name of a module, which is imported.
    """
    for _, found in inspect.getmembers(importlib.import_module(base_module), inspect.isclass):
        if issubclass(found, Accelerator) and not inspect.isabstract(found):
            found.register_accelerators(registry)


def best_gpu() -> str | None:
    """The name that "gpu" stands for here; None if there is no GPU."""
    return next((gpu.name() for gpu in _GPUS if gpu.is_available()), None)


def best_available() -> str:
    """The name that "auto" stands for here: a TPU or GPU if there is one, or else the CPU.

    XLA devices that are made of the CPU are taken by name only: wherever torch_xla is installed, they are there.
    """
    kinds = _GPUS if has_only_virtual_devices() else _PREFERRED
    return next((kind.name() for kind in kinds if kind.is_available()), CPUAccelerator.name())


def available_accelerators() -> list[str]:
    """The registered names whose hardware is here."""
    return [name for name in ACCELERATOR_REGISTRY if ACCELERATOR_REGISTRY.get(name).is_available()]


def device_type(name: str) -> str | None:
    """The `torch.device.type` of one of our own accelerators; None for a name of the user's, who alone knows it."""
    ours = {kind.name() for kind in (CPUAccelerator, *_PREFERRED)}
    return _DEVICE_TYPES.get(name, name) if name in ours else None


def accelerator_for(device_type: str) -> str:
    """The name of our accelerator for devices of this type."""
    return next((name for name, kind in _DEVICE_TYPES.items() if kind == device_type), device_type)
