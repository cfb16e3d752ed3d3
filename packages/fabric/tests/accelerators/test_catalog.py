from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fulmen.fabric.accelerators import ACCELERATOR_REGISTRY, Accelerator, CPUAccelerator, CUDAAccelerator, cuda
from fulmen.fabric.accelerators.catalog import (
    AcceleratorRegistry,
    accelerator_for,
    available_accelerators,
    best_available,
    best_gpu,
    call_register_accelerators,
    device_type,
)
from fulmen.fabric.errors import ConfigurationError


class AbacusAccelerator(Accelerator):
    """Beads on wires."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return int(devices)

    @staticmethod
    def get_parallel_devices(devices: int) -> list[torch.device]:
        return [torch.device("cpu")] * devices

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "abacus"


@pytest.fixture
def _abacus() -> Iterator[None]:
    AbacusAccelerator.register_accelerators(ACCELERATOR_REGISTRY)
    yield
    ACCELERATOR_REGISTRY.remove("abacus")


def test_every_registered_class_knows_its_name() -> None:
    assert ACCELERATOR_REGISTRY.names() == ["cpu", "cuda", "mps", "tpu"]
    assert ACCELERATOR_REGISTRY.available_accelerators() == {"cpu", "cuda", "mps", "tpu"}
    for name in ACCELERATOR_REGISTRY:
        entry = ACCELERATOR_REGISTRY[name]
        assert entry.value.name() == name
        assert entry.description
    for name in ("cpu", "cuda", "mps"):
        assert isinstance(ACCELERATOR_REGISTRY.make(name), Accelerator)


def test_names_and_types_of_devices_lead_to_each_other() -> None:
    assert {name: device_type(name) for name in ACCELERATOR_REGISTRY} == {
        "cpu": "cpu",
        "cuda": "cuda",
        "mps": "mps",
        "tpu": "xla",
    }
    assert all(accelerator_for(device_type(name) or "") == name for name in ACCELERATOR_REGISTRY)
    assert device_type("abacus") is None


@pytest.mark.parametrize(
    ("num_gpus", "has_mps", "best", "gpu"),
    [(0, False, "cpu", None), (2, False, "cuda", "cuda"), (0, True, "mps", "mps"), (1, True, "mps", "mps")],
)
def test_auto_takes_a_gpu_before_the_cpu(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, has_mps: bool, best: str, gpu: str | None
) -> None:
    monkeypatch.setattr(cuda, "num_cuda_devices", lambda: num_gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    assert best_available() == best
    assert best_gpu() == gpu
    assert ("cuda" in available_accelerators()) == CUDAAccelerator.is_available() == (num_gpus > 0)


@pytest.mark.usefixtures("_abacus")
def test_a_kind_of_the_users_own_is_found_by_name_only() -> None:
    assert ACCELERATOR_REGISTRY.get("abacus") is AbacusAccelerator
    assert ACCELERATOR_REGISTRY["abacus"].description == "Beads on wires."
    assert "abacus" in available_accelerators()
    assert best_available() != "abacus"
    assert AbacusAccelerator().get_device_stats("cpu") == {}


def test_a_name_presets_arguments() -> None:
    class Loom(AbacusAccelerator):
        def __init__(self, threads: int) -> None:
            self.threads = threads

    registry = AcceleratorRegistry()
    registry.register("loom", accelerator=Loom, description="Threads.", threads=3)
    made = registry.make("loom")
    assert isinstance(made, Loom)
    assert made.threads == 3
    assert registry["loom"].description == "Threads."


def test_the_classes_of_a_module_register_themselves() -> None:
    registry = AcceleratorRegistry()
    call_register_accelerators(registry, AbacusAccelerator.__module__)
    assert registry.available_accelerators() >= {"abacus", "cpu", "cuda"}
    assert registry.get("abacus") is AbacusAccelerator


def test_an_unknown_name_lists_the_known_ones() -> None:
    assert ACCELERATOR_REGISTRY.get("cpu") is CPUAccelerator
    with pytest.raises(ConfigurationError, match=r"accelerator='cdua' .* Did you mean 'cuda'"):
        ACCELERATOR_REGISTRY.get("cdua")
