"""Kinds of hardware."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.accelerators.base import Accelerator as Accelerator
    from fulmen.fabric.accelerators.catalog import ACCELERATOR_REGISTRY as ACCELERATOR_REGISTRY
    from fulmen.fabric.accelerators.catalog import call_register_accelerators as call_register_accelerators
    from fulmen.fabric.accelerators.cpu import CPUAccelerator as CPUAccelerator
    from fulmen.fabric.accelerators.cuda import CUDAAccelerator as CUDAAccelerator
    from fulmen.fabric.accelerators.cuda import find_usable_cuda_devices as find_usable_cuda_devices
    from fulmen.fabric.accelerators.cuda import is_cuda_available as is_cuda_available
    from fulmen.fabric.accelerators.cuda import num_cuda_devices as num_cuda_devices
    from fulmen.fabric.accelerators.mps import MPSAccelerator as MPSAccelerator
    from fulmen.fabric.accelerators.xla import XLAAccelerator as XLAAccelerator

_WHERE = {
    "ACCELERATOR_REGISTRY": "fulmen.fabric.accelerators.catalog",
    "Accelerator": "fulmen.fabric.accelerators.base",
    "CPUAccelerator": "fulmen.fabric.accelerators.cpu",
    "CUDAAccelerator": "fulmen.fabric.accelerators.cuda",
    "MPSAccelerator": "fulmen.fabric.accelerators.mps",
    "XLAAccelerator": "fulmen.fabric.accelerators.xla",
    "call_register_accelerators": "fulmen.fabric.accelerators.catalog",
    "find_usable_cuda_devices": "fulmen.fabric.accelerators.cuda",
    "is_cuda_available": "fulmen.fabric.accelerators.cuda",
    "num_cuda_devices": "fulmen.fabric.accelerators.cuda",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
