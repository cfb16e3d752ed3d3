"""Face: the kinds of hardware, which are those of fabric."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.accelerators.base import Accelerator as Accelerator
    from fulmen.fabric.accelerators.catalog import ACCELERATOR_REGISTRY as AcceleratorRegistry  # noqa: N811, F401  # the promised name
    from fulmen.fabric.accelerators.cpu import CPUAccelerator as CPUAccelerator
    from fulmen.fabric.accelerators.cpu import get_cpu_stats as get_cpu_stats
    from fulmen.fabric.accelerators.cuda import CUDAAccelerator as CUDAAccelerator
    from fulmen.fabric.accelerators.cuda import find_usable_cuda_devices as find_usable_cuda_devices
    from fulmen.fabric.accelerators.gpu_stats import get_device_stats as get_device_stats
    from fulmen.fabric.accelerators.gpu_stats import get_nvidia_gpu_stats as get_nvidia_gpu_stats
    from fulmen.fabric.accelerators.mps import MPSAccelerator as MPSAccelerator
    from fulmen.fabric.accelerators.xla import XLAAccelerator as XLAAccelerator

_WHERE = {
    # kinds
    "Accelerator": "fulmen.fabric.accelerators.base",
    "CPUAccelerator": "fulmen.fabric.accelerators.cpu",
    "CUDAAccelerator": "fulmen.fabric.accelerators.cuda",
    "MPSAccelerator": "fulmen.fabric.accelerators.mps",
    "XLAAccelerator": "fulmen.fabric.accelerators.xla",
    # which there are
    "AcceleratorRegistry": "fulmen.fabric.accelerators.catalog:ACCELERATOR_REGISTRY",
    "find_usable_cuda_devices": "fulmen.fabric.accelerators.cuda",
    # how they are
    "get_cpu_stats": "fulmen.fabric.accelerators.cpu",
    "get_device_stats": "fulmen.fabric.accelerators.gpu_stats",
    "get_nvidia_gpu_stats": "fulmen.fabric.accelerators.gpu_stats",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
