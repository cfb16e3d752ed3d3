"""Kinds of hardware."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.accelerators.base import Accelerator as Accelerator
    from fulmen.fabric.accelerators.catalog import ACCELERATOR_REGISTRY as ACCELERATOR_REGISTRY
    from fulmen.fabric.accelerators.cpu import CPUAccelerator as CPUAccelerator
    from fulmen.fabric.accelerators.cuda import CUDAAccelerator as CUDAAccelerator
    from fulmen.fabric.accelerators.cuda import find_usable_cuda_devices as find_usable_cuda_devices
    from fulmen.fabric.accelerators.mps import MPSAccelerator as MPSAccelerator

__all__ = [
    "ACCELERATOR_REGISTRY",
    "Accelerator",
    "CPUAccelerator",
    "CUDAAccelerator",
    "MPSAccelerator",
    "find_usable_cuda_devices",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "ACCELERATOR_REGISTRY": "fulmen.fabric.accelerators.catalog",
        "Accelerator": "fulmen.fabric.accelerators.base",
        "CPUAccelerator": "fulmen.fabric.accelerators.cpu",
        "CUDAAccelerator": "fulmen.fabric.accelerators.cuda",
        "MPSAccelerator": "fulmen.fabric.accelerators.mps",
        "find_usable_cuda_devices": "fulmen.fabric.accelerators.cuda",
    },
)
