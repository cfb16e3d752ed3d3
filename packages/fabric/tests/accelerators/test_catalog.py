from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fulmen.fabric.accelerators import ACCELERATOR_REGISTRY, Accelerator, CPUAccelerator, CUDAAccelerator, cuda
from fulmen.fabric.accelerators.catalog import available_accelerators, best_available, best_gpu
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


def test_every_registered_class_knows_its_name_and_can_be_made() -> None:
    assert ACCELERATOR_REGISTRY.names() == ["cpu", "cuda", "mps"]
    for name in ACCELERATOR_REGISTRY:
        entry = ACCELERATOR_REGISTRY[name]
        assert entry.value.name() == name
        assert entry.description
        assert isinstance(entry.value(), Accelerator)


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


def test_an_unknown_name_lists_the_known_ones() -> None:
    assert ACCELERATOR_REGISTRY.get("cpu") is CPUAccelerator
    with pytest.raises(ConfigurationError, match=r"accelerator='cdua' .* Did you mean 'cuda'"):
        ACCELERATOR_REGISTRY.get("cdua")
