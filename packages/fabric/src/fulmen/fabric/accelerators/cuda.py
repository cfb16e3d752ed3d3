"""NVIDIA GPUs, and AMD ones with a ROCm build of torch.

Counting must not initialise CUDA: a process that has done so cannot be forked any more.
"""

from __future__ import annotations

from typing import Any

import torch

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.accelerators.parse_devices import parse_device_indices
from fulmen.fabric.errors import ConfigurationError, HardwareError
from fulmen.fabric.types import DeviceLike


def num_cuda_devices() -> int:
    """How many GPUs this process can see; respects CUDA_VISIBLE_DEVICES."""
    # Asks NVML where it can, and no context is made either way.
    return torch.cuda.device_count()


def is_cuda_available() -> bool:
    """Is there a GPU that this torch can use?"""
    # Not torch.cuda.is_available(): it makes the driver count, which is what breaks forks.
    return num_cuda_devices() > 0


def find_usable_cuda_devices(num_devices: int = -1) -> list[int]:
    """The indices of GPUs on which a tensor can be made now, in order; others may be held exclusively.

    Args:
        num_devices: How many are needed; -1 finds all.

    Raises:
        ConfigurationError: If it is below -1.
        HardwareError: If there are fewer, or fewer are free.
    """
    visible = num_cuda_devices()
    if not isinstance(num_devices, int) or isinstance(num_devices, bool) or num_devices < -1:
        raise ConfigurationError(
            f"find_usable_cuda_devices({num_devices!r}) is no number of GPUs. It must be 0 or more, or -1 for all."
            " Pass -1 to find every GPU that is free."
        )
    if num_devices > visible:
        raise HardwareError(
            f"find_usable_cuda_devices({num_devices}) asks for more GPUs than there are. This process sees {visible}."
            f" Pass {visible} or fewer, or -1 to find every GPU that is free."
        )
    wanted = visible if num_devices == -1 else num_devices
    usable: list[int] = []
    for index in range(visible):
        if len(usable) == wanted:
            break
        if _is_usable(index):
            usable.append(index)
    if num_devices != -1 and len(usable) < num_devices:
        raise HardwareError(
            f"find_usable_cuda_devices({num_devices}) found {len(usable)} free GPUs: {usable}. The other"
            f" {visible - len(usable)} are held by other processes or out of order. Wait for them, or pass"
            f" {len(usable)}."
        )
    return usable


def _is_usable(index: int) -> bool:
    try:
        torch.zeros(1, device=torch.device("cuda", index))
    except RuntimeError:
        return False
    return True


class CUDAAccelerator(Accelerator):
    """NVIDIA or AMD GPU."""

    def setup_device(self, device: torch.device) -> None:
        """Make `device` the current one.

        Raises:
            ConfigurationError: If it is no CUDA device.
        """
        if device.type != "cuda":
            raise ConfigurationError(
                f"CUDAAccelerator was given the device {str(device)!r}. It runs on 'cuda' devices only."
                " Pass torch.device('cuda', index), or the accelerator of that device."
            )
        torch.cuda.set_device(device)

    def teardown(self) -> None:
        """Give cached memory back to the driver, for other processes."""
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        """The indices of the GPUs to use; see `parse_device_indices`."""
        return parse_device_indices(devices, range(num_cuda_devices()))

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        """One device per index."""
        return [torch.device("cuda", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        """All GPUs that this process can see."""
        return num_cuda_devices()

    @staticmethod
    def is_available() -> bool:
        """See `is_cuda_available`."""
        return is_cuda_available()

    @staticmethod
    def name() -> str:
        """Its registered name, "cuda"."""
        return "cuda"

    def get_device_stats(self, device: DeviceLike) -> dict[str, Any]:
        """What the caching allocator counts; see `torch.cuda.memory_stats`."""
        return dict(torch.cuda.memory_stats(device))
