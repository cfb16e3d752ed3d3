from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from fulmen.fabric.measure import device_flops
from fulmen.fabric.measure.device_flops import find_peaks, get_available_flops

# As the drivers name them.
KNOWN = {
    "NVIDIA B200": 2250,
    "NVIDIA GB200": 2500,
    "NVIDIA B300 SXM6 AC": 2250,
    "NVIDIA GB300": 2500,
    "NVIDIA H200": 989.4,
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA GH200 480GB": 989.4,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA A30": 165,
    "NVIDIA A10G": 70,
    "NVIDIA A10": 125,
    "NVIDIA L40S": 362.05,
    "NVIDIA L40": 181.05,
    "NVIDIA L4": 121,
    "NVIDIA RTX 6000 Ada Generation": 364.2,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA GeForce RTX 5090": 209.6,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 4080": 97.4,
    "NVIDIA GeForce RTX 4080 SUPER": 104.4,
    "NVIDIA GeForce RTX 3090": 71.2,
    "NVIDIA GeForce RTX 3090 Ti": 80,
    "AMD Instinct MI300X": 1307.4,
    "AMD Instinct MI325X OAM": 1307.4,
    "AMD Instinct MI250X": 191.5,
    "AMD Radeon RX 7900 XTX": 122.8,
}
WITHOUT_BFLOAT16 = {
    "Tesla T4": 65,
    "Tesla V100-SXM2-16GB": 125,
    "Tesla V100-PCIE-32GB": 112,
    "Tesla V100S-PCIE-32GB": 130,
    "NVIDIA TITAN RTX": 130.5,
    "NVIDIA GeForce RTX 2080 Ti": 53.8,
}
UNKNOWN = [
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce GTX 1080",
    "NVIDIA A1000",
    "",
]


@pytest.mark.parametrize("name", KNOWN)
def test_devices_are_known_by_the_names_of_their_drivers(name: str) -> None:
    peaks = find_peaks(name)
    assert peaks is not None
    assert peaks["bfloat16"] == pytest.approx(KNOWN[name])
    assert peaks["bfloat16"] == peaks["float16"]


@pytest.mark.parametrize("name", WITHOUT_BFLOAT16)
def test_older_ones_have_no_bfloat16(name: str) -> None:
    peaks = find_peaks(name)
    assert peaks is not None
    assert "bfloat16" not in peaks
    assert peaks["float16"] == WITHOUT_BFLOAT16[name]


@pytest.mark.parametrize("name", UNKNOWN)
def test_others_are_not_guessed(name: str) -> None:
    assert find_peaks(name) is None


@pytest.mark.parametrize("table", [device_flops._GPUS, device_flops._TPUS])
def test_fewer_bits_are_never_slower(table: dict[str, Any]) -> None:
    order = ["float64", "float32", "tf32", "bfloat16", "float16", "float8", "int8"]
    for pattern, peaks in table.items():
        assert set(peaks) <= set(order)
        # AMD's MI100 has bfloat16 at half the speed of float16; matrix cores of the others have float64 as float32.
        speeds = [peaks[name] for name in order if name in peaks]
        assert speeds == sorted(speeds), pattern
        assert 4 < peaks["float32"] < 6000


# A second road to the figures for float32: cores that each do a multiplication and an addition per clock, and their
# boost clock in MHz, as the same makers publish them. A matrix core of AMD does as much as 128 such.
CORES = {
    "NVIDIA B200": (148 * 128, 1965),
    "NVIDIA H100 80GB HBM3": (132 * 128, 1980),
    "NVIDIA H100 NVL": (132 * 128, 1785),
    "NVIDIA H100 PCIe": (114 * 128, 1755),
    "NVIDIA A100-SXM4-80GB": (6912, 1410),
    "NVIDIA A30": (3584, 1440),
    "NVIDIA A40": (10752, 1740),
    "NVIDIA A10": (9216, 1695),
    "NVIDIA A10G": (9216, 1710),
    "NVIDIA A2": (1280, 1770),
    "NVIDIA L40S": (18176, 2520),
    "NVIDIA L40": (18176, 2490),
    "NVIDIA L4": (7424, 2040),
    "Tesla T4": (2560, 1590),
    "Tesla V100S-PCIE-32GB": (5120, 1597),
    "Tesla V100-SXM2-16GB": (5120, 1530),
    "Tesla V100-PCIE-16GB": (5120, 1380),
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": (24064, 2617),
    "NVIDIA RTX 6000 Ada Generation": (18176, 2505),
    "NVIDIA RTX A6000": (10752, 1800),
    "NVIDIA RTX A5000": (8192, 1695),
    "NVIDIA RTX A4000": (6144, 1560),
    "Quadro RTX 8000": (4608, 1770),
    "NVIDIA GeForce RTX 5090": (21760, 2407),
    "NVIDIA GeForce RTX 5080": (10752, 2617),
    "NVIDIA GeForce RTX 5070 Ti": (8960, 2452),
    "NVIDIA GeForce RTX 5070": (6144, 2512),
    "NVIDIA GeForce RTX 4090": (16384, 2520),
    "NVIDIA GeForce RTX 4080 SUPER": (10240, 2550),
    "NVIDIA GeForce RTX 4080": (9728, 2505),
    "NVIDIA GeForce RTX 4070 Ti SUPER": (8448, 2610),
    "NVIDIA GeForce RTX 4070 Ti": (7680, 2610),
    "NVIDIA GeForce RTX 4070 SUPER": (7168, 2475),
    "NVIDIA GeForce RTX 4070": (5888, 2475),
    "NVIDIA GeForce RTX 3090 Ti": (10752, 1860),
    "NVIDIA GeForce RTX 3090": (10496, 1695),
    "NVIDIA GeForce RTX 3080 Ti": (10240, 1665),
    "NVIDIA GeForce RTX 3080": (8704, 1710),
    "NVIDIA GeForce RTX 3070": (5888, 1725),
    "NVIDIA GeForce RTX 2080 Ti": (4352, 1545),
    "NVIDIA GeForce RTX 2080": (2944, 1710),
    "NVIDIA GeForce RTX 2070": (2304, 1620),
    "AMD Instinct MI355X": (256 * 128, 2400),
    "AMD Instinct MI350X": (256 * 128, 2200),
    "AMD Instinct MI300X": (304 * 128, 2100),
    "AMD Instinct MI300A": (228 * 128, 2100),
    "AMD Instinct MI250X": (110 * 128, 1700),
    "AMD Instinct MI250": (104 * 128, 1700),
    "AMD Instinct MI210": (104 * 128, 1700),
    "AMD Instinct MI100": (120 * 128, 1502),
    "AMD Radeon RX 7900 XTX": (96 * 128, 2500),
    "AMD Radeon RX 7900 XT": (84 * 128, 2400),
}


@pytest.mark.parametrize("name", CORES)
def test_float32_is_cores_times_clock(name: str) -> None:
    cores, mhz = CORES[name]
    peaks = find_peaks(name)
    assert peaks is not None
    assert peaks["float32"] == pytest.approx(cores * 2 * mhz / 1e6, rel=0.02)


def test_figures_are_without_sparsity() -> None:
    # A figure with sparsity among others without would be twice what its neighbours make it.
    for pattern, peaks in device_flops._GPUS.items():
        half = peaks["float16"]
        if "tf32" in peaks:
            assert peaks["tf32"] == pytest.approx(half / 2, rel=0.02), pattern
        if "float8" in peaks:
            assert peaks["float8"] == pytest.approx(2 * half, rel=0.02), pattern
        if "int8" in peaks:
            times = 4 if "geforce" in pattern and "20" not in pattern else peaks["int8"] / half
            assert peaks["int8"] == pytest.approx(times * half, rel=0.02), pattern
            assert round(times, 1) in (1, 2, 4), pattern


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    def become(name: str) -> torch.device:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        return torch.device("cuda", 0)

    yield become
    torch.backends.cuda.matmul.fp32_precision = "none"


def test_a_gpu_has_a_peak_for_each_type(gpu: Any) -> None:
    device = gpu("NVIDIA H100 80GB HBM3")
    expected = {
        torch.float64: 67,
        torch.float32: 67,
        torch.float16: 989.4,
        torch.bfloat16: 989.4,
        torch.float8_e4m3fn: 1978.9,
        torch.float8_e5m2: 1978.9,
        torch.int8: 1978.9,
        "tf32": 494.7,
        "int8": 1978.9,
        "bfloat16": 989.4,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = {dtype: get_available_flops(device, dtype) for dtype in expected}
    assert measured == {dtype: round(peak * 1e12) for dtype, peak in expected.items()}
    assert all(type(peak) is int for peak in measured.values())


@pytest.mark.parametrize(("name", "peak"), [("NVIDIA A100-SXM4-80GB", 156e12), ("Tesla V100-SXM2-16GB", 15.7e12)])
def test_float32_is_tf32_where_torch_may_use_it(gpu: Any, name: str, peak: float) -> None:
    device = gpu(name)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert get_available_flops(device, torch.float32) == peak
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert get_available_flops(device, torch.float32) in (19.5e12, 15.7e12)


def test_what_is_not_known_is_said(gpu: Any) -> None:
    with pytest.warns(UserWarning, match="peak FLOPs of 'NVIDIA GeForce GTX 1080' are not known"):
        assert get_available_flops(gpu("NVIDIA GeForce GTX 1080"), torch.float32) is None
    with pytest.warns(UserWarning, match="'Tesla T4' is not made for products of bfloat16"):
        assert get_available_flops(gpu("Tesla T4"), torch.bfloat16) is None


@pytest.mark.parametrize("kind", ["cpu", "mps", "meta"])
def test_other_devices_promise_nothing(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert get_available_flops(torch.device(kind), torch.float32) is None


@pytest.mark.parametrize(
    ("environment", "peak"),
    [
        ({"TYPE": "V5LITE_POD", "ACCELERATOR_TYPE": "v5litepod-4"}, 197e12),
        ({"ACCELERATOR_TYPE": "v4-16"}, 275e12),
        ({"ACCELERATOR_TYPE": "v3-8"}, 61.5e12),
        ({"ACCELERATOR_TYPE": "v5p-8"}, 459e12),
        ({"ACCELERATOR_TYPE": "v6e-1"}, 918e12),
        ({"ACCELERATOR_TYPE": "tpu7x-8"}, 1153.5e12),
    ],
)
def test_tpus_are_known_by_their_version(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], peak: float
) -> None:
    class Tpu:
        get_tpu_env = staticmethod(lambda: environment)

    monkeypatch.setattr(device_flops, "require", lambda *_, **__: Tpu)
    assert get_available_flops(torch.device("xla", 0), torch.bfloat16) == peak
