from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.fabric.accelerators import ACCELERATOR_REGISTRY, XLAAccelerator
from fulmen.fabric.accelerators.catalog import best_available
from fulmen.fabric.errors import ConfigurationError, HardwareError, MissingPackageError
from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.selection import select
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy

without_torch_xla = pytest.mark.skipif(is_installed("torch_xla"), reason="torch_xla is installed")

# What we ask of the package, and nothing that starts its runtime.
FAKE = {
    "__init__.py": "",
    "_internal/__init__.py": "",
    "_internal/tpu.py": (
        "num_chips = 0\n"
        "def num_available_chips(): return num_chips\n"
        "def num_available_devices():\n"
        "    assert num_chips, 'asks a server of Google Cloud'\n"
        "    return 2 * num_chips\n"
    ),
    "core/__init__.py": "",
    "core/xla_model.py": "def get_memory_info(device): return {'bytes_used': 3, 'bytes_limit': 7}\n",
}


@pytest.fixture
def torch_xla(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, text in FAKE.items():
        path = tmp_path / "torch_xla" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("PJRT_DEVICE", raising=False)
    import torch_xla._internal.tpu as tpu  # type: ignore[import-not-found]

    yield tpu
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_xla"]:
        del sys.modules[name]


@without_torch_xla
def test_without_the_package_it_is_known_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    assert XLAAccelerator.name() == "tpu"
    assert ACCELERATOR_REGISTRY.get("tpu") is XLAAccelerator
    assert not XLAAccelerator.is_available()
    assert XLAAccelerator.auto_device_count() == 0
    assert best_available() != "tpu"
    with pytest.raises(MissingPackageError, match="pip install torch_xla"):
        XLAAccelerator()
    with pytest.raises(HardwareError, match="TPU core"):
        XLAAccelerator.parse_devices("auto")


def test_a_machine_without_chips_is_not_asked_for_more(torch_xla: Any) -> None:
    assert not XLAAccelerator.is_available()


def test_chips_are_counted_and_preferred(torch_xla: Any) -> None:
    torch_xla.num_chips = 2
    assert XLAAccelerator.is_available()
    assert XLAAccelerator.auto_device_count() == 4
    assert best_available() == "tpu"


@pytest.mark.parametrize(("text", "count"), [(None, 1), ("4", 4), ("x", 0)])
def test_the_cpu_stands_in_for_tests(
    torch_xla: Any, monkeypatch: pytest.MonkeyPatch, text: str | None, count: int
) -> None:
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    if text is not None:
        monkeypatch.setenv("CPU_NUM_DEVICES", text)
    assert XLAAccelerator.auto_device_count() == count
    assert XLAAccelerator.is_available() == (count > 0)
    assert best_available() != "tpu"  # only by name: torch_xla sets the variable where there is nothing better


@pytest.mark.parametrize(
    ("devices", "parsed", "indices"),
    [
        (1, 1, [0]),
        (3, 3, [0, 1, 2]),
        ("2", 2, [0, 1]),
        ("auto", 4, [0, 1, 2, 3]),
        (-1, 4, [0, 1, 2, 3]),
        ([2], [2], [2]),
        ("3,", [3], [3]),
    ],
)
def test_cores_are_taken_by_number_and_one_by_index(
    torch_xla: Any, devices: Any, parsed: Any, indices: list[int]
) -> None:
    torch_xla.num_chips = 2
    assert XLAAccelerator.parse_devices(devices) == parsed
    assert XLAAccelerator.get_parallel_devices(parsed) == [torch.device("xla", index) for index in indices]


def test_mistakes_are_answered(torch_xla: Any) -> None:
    torch_xla.num_chips = 2
    with pytest.raises(ConfigurationError, match=r"devices=\[1, 2\] names 2 TPU cores"):
        XLAAccelerator.parse_devices([1, 2])
    with pytest.raises(HardwareError, match="devices=5"):
        XLAAccelerator.parse_devices(5)
    with pytest.raises(ConfigurationError, match="was given the device 'cpu'"):
        XLAAccelerator().setup_device(torch.device("cpu"))


def test_memory_is_reported(torch_xla: Any) -> None:
    accelerator = XLAAccelerator()
    assert accelerator.get_device_stats("xla:0") == {"xla_bytes_used": 3, "xla_bytes_limit": 7}
    accelerator.setup_device(torch.device("xla", 0))
    accelerator.teardown()


@pytest.mark.parametrize("strategy", ["ddp", SingleDeviceStrategy("xla:0")])
def test_strategies_that_are_not_made_for_it_are_refused(
    torch_xla: Any, monkeypatch: pytest.MonkeyPatch, strategy: Any
) -> None:
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    with pytest.raises(ConfigurationError, match="cannot run on XLA devices"):
        select(accelerator="tpu", strategy=strategy)


def test_a_strategy_of_the_users_own_may_be_made_for_it(torch_xla: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(SingleDeviceStrategy): ...

    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    chosen = select(strategy=Mine("xla:0"))
    assert isinstance(chosen.accelerator, XLAAccelerator)
    assert chosen.devices == (torch.device("xla", 0),)
