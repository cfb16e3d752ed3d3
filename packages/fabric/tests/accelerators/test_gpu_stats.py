import pytest
import torch

from fulmen.fabric.accelerators import gpu_stats
from fulmen.fabric.errors import HardwareError


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A program of that name, which notes what it was asked."""

    def make(answer, code=0):
        program = tmp_path / "nvidia-smi"
        program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho "{answer}"\nexit {code}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return lambda: (tmp_path / "asked").read_text()

    return make


def test_what_nvidia_smi_says_has_names_and_units(nvidia_smi):
    asked = nvidia_smi("12, 3000, 77000, 4, [N/A], 35, 41")
    stats = gpu_stats.get_nvidia_gpu_stats(torch.device("cuda", 1))
    assert stats == {
        "utilization.gpu (%)": 12.0,
        "memory.used (MB)": 3000.0,
        "memory.free (MB)": 77000.0,
        "utilization.memory (%)": 4.0,
        "fan.speed (%)": 0.0,
        "temperature.gpu (°C)": 35.0,
        "temperature.memory (°C)": 41.0,
    }
    assert "--id=1" in asked()


def test_the_gpu_is_the_one_that_this_process_sees(nvidia_smi, monkeypatch):
    asked = nvidia_smi("1, 1, 1, 1, 1, 1, 1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    gpu_stats.get_nvidia_gpu_stats("cuda:1")
    assert "--id=7" in asked()


def test_a_failure_is_told(nvidia_smi, monkeypatch, tmp_path):
    nvidia_smi("No devices were found", code=6)
    with pytest.raises(HardwareError, match="No devices were found"):
        gpu_stats.get_nvidia_gpu_stats("cuda:0")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(HardwareError, match="no nvidia-smi"):
        gpu_stats.get_nvidia_gpu_stats("cuda:0")


def test_a_mac_shares_its_memory(monkeypatch):
    found = {"cpu_vm_percent": 1.0, "cpu_percent": 2.0, "cpu_swap_percent": 3.0}
    monkeypatch.setattr(gpu_stats, "get_cpu_stats", lambda: found)
    assert gpu_stats.get_device_stats() == {"M1_vm_percent": 1.0, "M1_percent": 2.0, "M1_swap_percent": 3.0}
