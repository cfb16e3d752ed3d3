"""How a GPU fares, as the tools of its maker tell."""

from __future__ import annotations

import os
import shutil
import subprocess

import torch

from fulmen.fabric.accelerators.cpu import get_cpu_stats
from fulmen.fabric.errors import HardwareError
from fulmen.fabric.types import DeviceLike

# What nvidia-smi is asked, and in which unit it answers.
_NVIDIA_QUERIES = {
    "utilization.gpu": "%",
    "memory.used": "MB",
    "memory.free": "MB",
    "utilization.memory": "%",
    "fan.speed": "%",
    "temperature.gpu": "°C",
    "temperature.memory": "°C",
}


def get_nvidia_gpu_stats(device: DeviceLike) -> dict[str, float]:
    """Load, memory, fan and temperatures of an NVIDIA GPU, by nvidia-smi; what it does not know is 0.

    Raises:
        HardwareError: If there is no nvidia-smi, or it fails.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        raise HardwareError(
            f"get_nvidia_gpu_stats({str(device)!r}) finds no nvidia-smi. It is asked about the GPU."
            " Install the driver's tools, or put them on the PATH."
        )
    command = [
        program,
        f"--query-gpu={','.join(_NVIDIA_QUERIES)}",
        "--format=csv,nounits,noheader",
        f"--id={_physical_index(torch.device(device))}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HardwareError(
            f"get_nvidia_gpu_stats({str(device)!r}) failed: nvidia-smi says {(done.stdout + done.stderr).strip()!r}."
            " It cannot reach the GPU. Check that the device exists and its driver runs."
        )
    answers = done.stdout.strip().split(",")
    return {
        f"{query} ({unit})": _number(answer)
        for (query, unit), answer in zip(_NVIDIA_QUERIES.items(), answers, strict=True)
    }


def get_device_stats() -> dict[str, float]:
    """Load and memory of a machine with an Apple GPU, which shares the memory, in percent.

    Raises:
        MissingPackageError: If psutil is not installed.
    """
    found = get_cpu_stats()
    return {
        "M1_vm_percent": found["cpu_vm_percent"],
        "M1_percent": found["cpu_percent"],
        "M1_swap_percent": found["cpu_swap_percent"],
    }


def _physical_index(device: torch.device) -> str:
    """What nvidia-smi calls it: it does not follow CUDA_VISIBLE_DEVICES."""
    index = device.index or 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index].strip() if visible else str(index)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # "[N/A]": a GPU without a fan, for example
        return 0.0
