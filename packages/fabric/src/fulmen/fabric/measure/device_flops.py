"""Peak FLOPs of known devices: what their makers promise for dense matrix products, by type.

Where a data sheet has numbers with and without sparsity, these are without. Products of 8 and 16 bits add up in
float32, as torch lets them: GeForce cards do that at half the speed that their boxes name.

| devices | table of the maker |
| --- | --- |
| B300, B200 | data sheets of HGX B300 and HGX B200, a part of eight |
| GB300, GB200 | data sheets of GB300 NVL72 and GB200 NVL72, a part of 72 |
| H200, GH200, H100, A100, A30, A40, A10, A2, L40S, L40, L4, T4, V100 | the product's own data sheet |
| A10G | not sold by NVIDIA alone: as AWS gives it out for its G5 instances |
| RTX PRO, RTX 6000 Ada, RTX A6000, Quadro RTX, GeForce | appendices of the white papers on the GPU's architecture |
| RTX A5000 and A4000, GeForce SUPER | data sheet, or product page |
| AMD Instinct, Radeon | data sheet (matrix cores), or product page |
| TPU | cloud.google.com/tpu/docs, page of each version |

They are promises, and nothing here was measured. The tests hold the figures of float32 against cores times clock, and
the others against how many operations tensor cores do beside one of float32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from fulmen.fabric.errors import ArgumentTypeError
from fulmen.fabric.optional_packages import require
from fulmen.fabric.rank_zero import rank_zero_warn

Peaks = Mapping[str, float]  # TFLOPs per second by type; "tf32" is float32 on tensor cores
_TERA = 10**12


def _peaks(
    fp32: float,
    half: float,
    *,
    fp64: float | None = None,
    tf32: float | None = None,
    bf16: bool = True,
    fp8: float | None = None,
    int8: float | None = None,
) -> Peaks:
    """`half`: float16, and bfloat16 unless the chip has none."""
    peaks = {"float64": fp64, "float32": fp32, "tf32": tf32, "bfloat16": half if bf16 else None, "float16": half}
    return {name: peak for name, peak in {**peaks, "float8": fp8, "int8": int8}.items() if peak is not None}


def _geforce_ampere(fp32: float) -> Peaks:
    """GA10x: by its white paper, tensor cores do per float32 operation 2 in 16 bits, 1 in TF32, 8 in int8."""
    return _peaks(fp32, 2 * fp32, tf32=fp32, int8=8 * fp32)


def _geforce_ada(fp32: float) -> Peaks:
    """AD10x and GB20x: as GA10x, and 4 in fp8."""
    return _peaks(fp32, 2 * fp32, tf32=fp32, fp8=4 * fp32, int8=8 * fp32)


_H100_SXM = _peaks(67, 989.4, fp64=67, tf32=494.7, fp8=1978.9, int8=1978.9)
_H100_NVL = _peaks(60, 835.5, fp64=60, tf32=417.5, fp8=1670.5, int8=1670.5)

# The whole name of a device, as its driver gives it in lower case and without the maker, to its peaks. A slice of a
# GPU ("... MIG 1g.10gb") and a laptop's GPU have names of their own and are not here.
_GPUS: dict[str, Peaks] = {
    # --- NVIDIA, data centre
    # GB300 NVL72 data sheet, a part of 72.
    r"gb300": _peaks(80, 2500, tf32=1250, fp8=5000),
    # HGX B300 data sheet, a part of eight.
    r"b300( sxm6)?( ac)?": _peaks(75, 2250, tf32=1125, fp8=4500),
    # GB200 NVL72 data sheet, a half of the superchip.
    r"gb200": _peaks(80, 2500, fp64=40, tf32=1250, fp8=5000, int8=5000),
    # HGX B200 data sheet, a part of eight.
    r"b200": _peaks(75, 2250, fp64=37, tf32=1125, fp8=4500, int8=4500),
    # H200 Tensor Core GPU data sheet; GH200 Grace Hopper Superchip data sheet; H100 Tensor Core GPU data sheet.
    r"h200|gh200( \d+gb)?|h100( sxm5?)?( \d+gb)? hbm3|h100 sxm5?( \d+gb)?": _H100_SXM,
    r"h200 nvl|h100 nvl": _H100_NVL,
    r"h100 pcie": _peaks(51, 756, fp64=51, tf32=378, fp8=1513, int8=1513),
    # A100 Tensor Core GPU data sheet.
    r"a100([ -](sxm4|pcie))?([ -]\d+gb)?( pcie)?": _peaks(19.5, 312, fp64=19.5, tf32=156, int8=624),
    # Data sheets of A30, A40, A10, A10G (as AWS gives it out) and A2.
    r"a30( pcie)?": _peaks(10.3, 165, fp64=10.3, tf32=82, int8=330),
    r"a40( pcie)?": _peaks(37.4, 149.7, tf32=74.8, int8=299.3),
    r"a10( pcie)?": _peaks(31.2, 125, tf32=62.5, int8=250),
    r"a10g": _peaks(31.52, 70, tf32=35, int8=140),
    r"a2( pcie)?": _peaks(4.5, 18, tf32=9, int8=36),
    # Data sheets of L40S, L40 and L4.
    r"l40s": _peaks(91.6, 362.05, tf32=183, fp8=733, int8=733),
    r"l40": _peaks(90.5, 181.05, tf32=90.5, fp8=362, int8=362),
    r"l4": _peaks(30.3, 121, tf32=60, fp8=242.5, int8=242.5),
    # T4 data sheet; V100 and V100S data sheet.
    r"t4": _peaks(8.1, 65, bf16=False, int8=130),
    r"v100s-pcie-\d+gb": _peaks(16.4, 130, fp64=8.2, bf16=False),
    r"v100-sxm[23]-\d+gb": _peaks(15.7, 125, fp64=7.8, bf16=False),
    r"v100-pcie-\d+gb": _peaks(14, 112, fp64=7, bf16=False),
    # --- NVIDIA, workstation
    # RTX PRO Blackwell GPU architecture white paper.
    r"rtx pro 6000 blackwell workstation edition": _peaks(126, 503.8, tf32=251.9, fp8=1007.6, int8=1007.6),
    # Ada GPU architecture white paper, appendix on RTX 6000.
    r"rtx 6000 ada generation": _peaks(91.1, 364.2, tf32=182.1, fp8=728.5, int8=728.5),
    # GA102 GPU architecture white paper, appendix on RTX A6000; data sheets of RTX A5000 and A4000.
    r"rtx a6000": _peaks(38.7, 154.8, tf32=77.4, int8=309.7),
    r"rtx a5000": _peaks(27.8, 111.1, tf32=55.6, int8=222.2),
    r"rtx a4000": _peaks(19.2, 76.7, tf32=38.4, int8=153.4),
    # Turing GPU architecture white paper, appendices.
    r"quadro rtx [68]000|titan rtx": _peaks(16.3, 130.5, bf16=False, int8=261),
    # --- NVIDIA, GeForce
    # RTX Blackwell GPU architecture white paper, appendices.
    r"geforce rtx 5090": _geforce_ada(104.8),
    r"geforce rtx 5080": _geforce_ada(56.3),
    r"geforce rtx 5070 ti": _geforce_ada(43.9),
    r"geforce rtx 5070": _geforce_ada(30.9),
    # Ada GPU architecture white paper, appendices; the SUPER models by their product pages.
    r"geforce rtx 4090": _geforce_ada(82.6),
    r"geforce rtx 4080 super": _geforce_ada(52.2),
    r"geforce rtx 4080": _geforce_ada(48.7),
    r"geforce rtx 4070 ti super": _geforce_ada(44.1),
    r"geforce rtx 4070 ti": _geforce_ada(40.1),
    r"geforce rtx 4070 super": _geforce_ada(35.5),
    r"geforce rtx 4070": _geforce_ada(29.1),
    # GA102 GPU architecture white paper, appendices; 3090 Ti by the Ada white paper, which compares with it.
    r"geforce rtx 3090 ti": _geforce_ampere(40),
    r"geforce rtx 3090": _geforce_ampere(35.6),
    r"geforce rtx 3080 ti": _geforce_ampere(34.1),
    r"geforce rtx 3080": _geforce_ampere(29.8),
    r"geforce rtx 3070": _geforce_ampere(20.3),
    # Turing GPU architecture white paper, appendices: reference boards, float32 accumulation.
    r"geforce rtx 2080 ti": _peaks(13.4, 53.8, bf16=False, int8=215.2),
    r"geforce rtx 2080": _peaks(10, 40.3, bf16=False, int8=161.1),
    r"geforce rtx 2070": _peaks(7.5, 29.9, bf16=False, int8=119.4),
    # --- AMD; torch sees each of the two dies of an MI250 as a device
    # Data sheets of Instinct MI355X, MI350X, MI325X, MI300X, MI300A, MI250X, MI250, MI210 and MI100: matrix cores.
    r"instinct mi355x": _peaks(157.3, 2516.6, fp64=78.6, fp8=5033.2, int8=5033.2),
    r"instinct mi350x": _peaks(144.2, 2306.9, fp64=72.1, fp8=4613.7, int8=4613.7),
    r"instinct mi3(00|25)x": _peaks(163.4, 1307.4, fp64=163.4, tf32=653.7, fp8=2614.9, int8=2614.9),
    r"instinct mi300a": _peaks(122.6, 980.6, fp64=122.6, tf32=490.3, fp8=1961.2, int8=1961.2),
    r"instinct mi250x": _peaks(47.85, 191.5, fp64=47.85, int8=191.5),
    r"instinct mi250": _peaks(45.25, 181.05, fp64=45.25, int8=181.05),
    r"instinct mi210": _peaks(45.3, 181, fp64=45.3, int8=181),
    r"instinct mi100": {"float64": 11.5, "float32": 46.1, "bfloat16": 92.3, "float16": 184.6, "int8": 184.6},
    # Product pages of Radeon RX 7900 XTX and XT.
    r"radeon rx 7900 xtx": _peaks(61.4, 122.8, int8=122.8),
    r"radeon rx 7900 xt": _peaks(51.6, 103.2, int8=103.2),
}

# cloud.google.com/tpu/docs, page of each version, per chip. A device of torch_xla is one of the two cores of a v2 or v3
# chip, and one of the two halves of a TPU7x, which are no longer joined to one core. A float32 product is computed in
# bfloat16 unless XLA is told otherwise.
_TPUS: dict[str, Peaks] = {
    r"v2": {"bfloat16": 45 / 2, "float32": 45 / 2},
    r"v3": {"bfloat16": 123 / 2, "float32": 123 / 2},
    r"v4": {"bfloat16": 275, "float32": 275, "int8": 275},
    r"v5lite(_?pod)?|v5e": {"bfloat16": 197, "float32": 197, "int8": 393},
    r"v5p?": {"bfloat16": 459, "float32": 459, "int8": 918},
    r"v6e": {"bfloat16": 918, "float32": 918, "int8": 1836},
    r"(tpu)?7x?": {"bfloat16": 2307 / 2, "float32": 2307 / 2, "float8": 4614 / 2},
}


def get_available_flops(device: torch.device, dtype: torch.dtype | str) -> int | None:
    """How many FLOPs per second `device` promises in matrix products of `dtype`; None if that is not known.

    Warns where a GPU or TPU is not in the table. float32 counts as TF32 where torch may use it for products.

    Args:
        device: A device of this machine.
        dtype: A type of torch, or its name ("bfloat16", "tf32", "int8").

    Raises:
        ArgumentTypeError: If it is no device or no type.
    """
    if not isinstance(device, torch.device) or not isinstance(dtype, torch.dtype | str):
        raise ArgumentTypeError(
            f"get_available_flops(device={device!r}, dtype={dtype!r}) got something else than a device and a type. A"
            " figure is known for each pair. Pass torch.device('cuda', 0) and torch.bfloat16, for example."
        )
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peaks = find_peaks(name)
    elif device.type == "xla":
        name = _tpu_name()
        peaks = _look_up(_TPUS, name.lower())
    else:
        return None
    if peaks is None:
        rank_zero_warn(f"The peak FLOPs of {name!r} are not known: the part of them that is used (MFU) is left out.")
        return None
    wanted = _type_name(dtype)
    if wanted == "float32" and "tf32" in peaks and torch.backends.cuda.matmul.fp32_precision == "tf32":
        wanted = "tf32"
    if wanted not in peaks:
        rank_zero_warn(f"{name!r} is not made for products of {wanted}: the part of its peak FLOPs is left out.")
        return None
    return round(peaks[wanted] * _TERA)


def find_peaks(device_name: str) -> Peaks | None:
    """TFLOPs per second by type, of a GPU named as its driver does; None if it is not known.

    >>> find_peaks("NVIDIA A100-SXM4-80GB")["bfloat16"]
    312
    """
    return _look_up(_GPUS, re.sub(r"^((nvidia|amd|tesla) )+| oam$", "", device_name.strip().lower()))


def _look_up(table: Mapping[str, Peaks], name: str) -> Peaks | None:
    return next((peaks for pattern, peaks in table.items() if re.fullmatch(pattern, name)), None)


def _type_name(dtype: torch.dtype | str) -> str:
    name = str(dtype).removeprefix("torch.")
    return "float8" if name.startswith("float8") else name


def _tpu_name() -> str:
    tpu: Any = require("torch_xla._internal.tpu", purpose="get_available_flops()", pip="torch_xla")
    environment = tpu.get_tpu_env()
    # "v4-16" and the like: version and number of cores.
    return str(environment.get("TYPE") or environment["ACCELERATOR_TYPE"]).partition("-")[0]
