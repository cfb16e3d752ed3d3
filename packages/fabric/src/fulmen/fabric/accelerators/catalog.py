"""The accelerators we know, and which one "auto" picks."""

from __future__ import annotations

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.accelerators.cpu import CPUAccelerator
from fulmen.fabric.accelerators.cuda import CUDAAccelerator
from fulmen.fabric.accelerators.mps import MPSAccelerator
from fulmen.fabric.registry import Registry

ACCELERATOR_REGISTRY: Registry[type[Accelerator]] = Registry("accelerator")
for _accelerator in (CPUAccelerator, CUDAAccelerator, MPSAccelerator):
    _accelerator.register_accelerators(ACCELERATOR_REGISTRY)

# In order of preference; a registered kind of the user's own is taken only by name.
_GPUS = (MPSAccelerator, CUDAAccelerator)


def best_gpu() -> str | None:
    """The name that "gpu" stands for here; None if there is no GPU."""
    return next((gpu.name() for gpu in _GPUS if gpu.is_available()), None)


def best_available() -> str:
    """The name that "auto" stands for here: a GPU if there is one, or else the CPU."""
    return best_gpu() or CPUAccelerator.name()


def available_accelerators() -> list[str]:
    """The registered names whose hardware is here."""
    return [name for name in ACCELERATOR_REGISTRY if ACCELERATOR_REGISTRY.get(name).is_available()]
