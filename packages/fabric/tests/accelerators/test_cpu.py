from __future__ import annotations

import pytest
import torch

from fulmen.fabric.accelerators import CPUAccelerator
from fulmen.fabric.errors import ConfigurationError, MissingPackageError
from fulmen.fabric.optional_packages import is_installed


def test_it_is_always_there_as_often_as_asked_for() -> None:
    assert CPUAccelerator.is_available()
    assert CPUAccelerator.auto_device_count() == 1
    assert CPUAccelerator.get_parallel_devices(CPUAccelerator.parse_devices("3")) == [torch.device("cpu")] * 3


def test_it_takes_the_cpu_only() -> None:
    accelerator = CPUAccelerator()
    accelerator.setup_device(torch.device("cpu"))
    accelerator.teardown()
    with pytest.raises(ConfigurationError, match="was given the device 'cuda:0'"):
        accelerator.setup_device(torch.device("cuda", 0))


def test_its_stats_are_percentages_or_say_what_to_install() -> None:
    accelerator = CPUAccelerator()
    if not is_installed("psutil"):
        with pytest.raises(MissingPackageError, match="pip install psutil"):
            accelerator.get_device_stats("cpu")
        return
    stats = accelerator.get_device_stats("cpu")
    assert set(stats) == {"cpu_vm_percent", "cpu_percent", "cpu_swap_percent"}
    assert all(0 <= value <= 100 for value in stats.values())
