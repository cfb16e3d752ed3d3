from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fulmen.fabric.accelerators import CUDAAccelerator, cuda, find_usable_cuda_devices
from fulmen.fabric.errors import ConfigurationError, HardwareError

has_gpu = torch.cuda.device_count() > 0
needs_gpu = pytest.mark.skipif(not has_gpu, reason="needs a CUDA GPU")


def test_availability_follows_the_count() -> None:
    assert CUDAAccelerator.auto_device_count() == torch.cuda.device_count()
    assert CUDAAccelerator.is_available() == has_gpu


def test_other_devices_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="was given the device 'cpu'"):
        CUDAAccelerator().setup_device(torch.device("cpu"))


@pytest.mark.skipif(has_gpu, reason="needs a machine without GPU")
def test_without_a_gpu_wishes_are_answered() -> None:
    assert find_usable_cuda_devices() == find_usable_cuda_devices(0) == []
    with pytest.raises(HardwareError, match=r"find_usable_cuda_devices\(1\) asks for more GPUs than there are"):
        find_usable_cuda_devices(1)
    with pytest.raises(HardwareError, match="Pass accelerator='cpu'"):
        CUDAAccelerator.parse_devices("auto")
    CUDAAccelerator().teardown()


def test_below_minus_one_is_no_number() -> None:
    with pytest.raises(ConfigurationError, match="no number of GPUs"):
        find_usable_cuda_devices(-2)


@pytest.mark.parametrize(("wanted", "found"), [(-1, [1, 3]), (0, []), (1, [1]), (2, [1, 3])])
def test_devices_held_by_others_are_passed_over(monkeypatch: pytest.MonkeyPatch, wanted: int, found: list[int]) -> None:
    monkeypatch.setattr(cuda, "num_cuda_devices", lambda: 4)
    monkeypatch.setattr(cuda, "_is_usable", lambda index: index in (1, 3))
    assert find_usable_cuda_devices(wanted) == found
    with pytest.raises(HardwareError, match=r"found 2 free GPUs: \[1, 3\]"):
        find_usable_cuda_devices(3)


def test_indices_become_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "num_cuda_devices", lambda: 4)
    indices = CUDAAccelerator.parse_devices("1,3")
    assert CUDAAccelerator.get_parallel_devices(indices) == [torch.device("cuda", 1), torch.device("cuda", 3)]


# A machine with two GPUs whose driver must not be asked: the only thing that is made up.
UNTOUCHED = """
import torch
torch.cuda.device_count = lambda: 2
def refuse(*_):
    raise SystemExit("CUDA was initialised")
torch.cuda._lazy_init = torch._C._cuda_init = torch._C._cuda_getDeviceCount = refuse
from fulmen.fabric import Fabric
from fulmen.fabric.accelerators.catalog import available_accelerators
assert available_accelerators() == ["cpu", "cuda"]
for flags in (
    {},
    {"accelerator": "gpu", "devices": [1], "precision": "16-mixed"},
    {"accelerator": "cuda", "devices": 2, "strategy": "ddp_spawn", "precision": "bf16-true"},
    {"devices": "0,1", "strategy": "ddp_fork", "precision": "16-true"},
    {"devices": -1, "precision": "64-true"},
):
    assert Fabric(**flags).accelerator.name() == "cuda"
    assert not torch.cuda.is_initialized()
print("untouched")
"""


@pytest.mark.skipif(has_gpu, reason="the real thing is tested below")
def test_building_a_fabric_does_not_touch_the_driver() -> None:
    done = subprocess.run([sys.executable, "-c", UNTOUCHED], capture_output=True, text=True, timeout=170)
    assert done.stdout.strip() == "untouched", done.stderr


@needs_gpu
def test_counting_leaves_a_process_able_to_fork() -> None:
    program = (
        "import os, torch\n"
        "from fulmen.fabric.accelerators.catalog import best_available\n"
        "assert best_available() == 'cuda' and not torch.cuda.is_initialized()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if torch.ones(2, device='cuda').sum().item() == 2 else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=170)


@needs_gpu
def test_a_gpu_is_set_up_measured_and_given_back() -> None:
    accelerator = CUDAAccelerator()
    (device,) = accelerator.get_parallel_devices(accelerator.parse_devices(1))
    accelerator.setup_device(device)
    assert torch.cuda.current_device() == device.index
    tensor = torch.zeros(1000, device=device)
    assert accelerator.get_device_stats(device)["allocated_bytes.all.current"] >= tensor.numel() * 4
    assert find_usable_cuda_devices(1) == [0]
    del tensor
    accelerator.teardown()
