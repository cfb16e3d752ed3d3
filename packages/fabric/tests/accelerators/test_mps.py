from __future__ import annotations

import pytest
import torch

from fulmen.fabric.accelerators import MPSAccelerator
from fulmen.fabric.errors import ConfigurationError, HardwareError


def test_other_devices_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="was given the device 'cpu'"):
        MPSAccelerator().setup_device(torch.device("cpu"))


@pytest.mark.parametrize("devices", [1, "1", -1, "auto", [0], "0,"])
def test_with_an_apple_gpu_every_wish_for_one_is_the_first(monkeypatch: pytest.MonkeyPatch, devices: object) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    indices = MPSAccelerator.parse_devices(devices)
    assert MPSAccelerator.get_parallel_devices(indices) == [torch.device("mps", 0)]


def test_there_are_never_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(HardwareError, match=r"asks for 2 Apple GPUs\. This machine has 1"):
        MPSAccelerator.parse_devices(2)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a machine without Apple GPU")
def test_without_one_it_says_so() -> None:
    assert not MPSAccelerator.is_available()
    assert MPSAccelerator.auto_device_count() == 0
    with pytest.raises(HardwareError, match="Apple GPU"):
        MPSAccelerator.parse_devices(1)
    MPSAccelerator().teardown()
