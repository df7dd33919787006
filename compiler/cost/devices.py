"""Name -> GPU: the numbers the model uses of it, each with where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnc.compiler.ir.plan import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU as the model sees it: ``units`` equal processors beside one memory.

    Units: ``matrix_flops`` (bf16 and fp16 operands, fp32 sums, dense) and ``plain_flops`` (fp32 on
    the plain units) are operations a clock and unit, ``exponentials`` results a clock and unit,
    ``clock_mhz`` what the published peak implies, ``hbm_bytes_us`` and ``l2_bytes_us`` bytes a
    microsecond (``l2_bytes_us`` None: not known, the model leaves the L2 cache out),
    ``shared_bytes`` the shared memory a program may take, ``l2_bytes`` the cache.
    ``sources`` says for each of them where it is from.
    """

    name: str
    title: str
    target: Target
    units: int
    matrix_flops: int
    plain_flops: int
    exponentials: int
    clock_mhz: float
    shared_bytes: int
    l2_bytes: int
    l2_bytes_us: float | None
    hbm_bytes_us: float
    sources: Mapping[str, str]

    @property
    def peak_tflops(self) -> float:
        """Dense bf16 operations, in 10**12 a second."""
        return self.units * self.matrix_flops * self.clock_mhz / 1e6


_SFU = "16 special-function results a clock and SM: CUDA C++ Programming Guide, throughput table"
_LANES = "128 fp32 lanes a SM, 2 operations each: architecture white paper"
_IMPLIED = "derived: the clock at which units x operations give the data sheet's dense bf16 peak"
_CACHE_RATE = (
    "derived: the least rate that cuDNN's published dense speed on the H200 needs, 64 KB of keys "
    "and values for each of 132 SMs in 1.55 us"
)
_HOPPER = {
    "units": "NVIDIA H100 data sheet: 132 SMs (SXM)",
    "matrix_flops": "NVIDIA Hopper white paper: 4096 dense bf16 operations a clock and SM",
    "plain_flops": _LANES,
    "exponentials": _SFU,
    "clock_mhz": f"{_IMPLIED}, 989 TFLOP/s",
    "shared_bytes": "CUDA C++ Programming Guide: 227 KB a block, compute capability 9.0",
    "l2_bytes": "NVIDIA H100 data sheet: 50 MB",
    "l2_bytes_us": _CACHE_RATE,
}

_KNOWN = (
    Device(
        name="a100", title="NVIDIA A100 80 GB SXM", target="sm_80", units=108, matrix_flops=2048,
        plain_flops=128, exponentials=16, clock_mhz=1410, shared_bytes=163 << 10,
        l2_bytes=40 << 20, l2_bytes_us=None, hbm_bytes_us=2.039e6,
        sources={
            "units": "NVIDIA A100 data sheet: 108 SMs",
            "matrix_flops": "derived: 312 TFLOP/s at 1410 MHz on 108 SMs, NVIDIA A100 data sheet",
            "plain_flops": "64 fp32 lanes a SM, 2 operations each: NVIDIA A100 white paper",
            "exponentials": _SFU,
            "clock_mhz": "NVIDIA A100 data sheet: boost clock",
            "shared_bytes": "CUDA C++ Programming Guide: 163 KB a block, compute capability 8.0",
            "l2_bytes": "NVIDIA A100 data sheet: 40 MB",
            "l2_bytes_us": "no source: left out",
            "hbm_bytes_us": "NVIDIA A100 data sheet: 2,039 GB/s (80 GB SXM)",
        },
    ),
    Device(
        name="h100", title="NVIDIA H100 SXM", target="sm_90", units=132, matrix_flops=4096,
        plain_flops=256, exponentials=16, clock_mhz=1830, shared_bytes=227 << 10,
        l2_bytes=50 << 20, l2_bytes_us=5.6e6, hbm_bytes_us=3.35e6,
        sources={**_HOPPER, "hbm_bytes_us": "NVIDIA H100 data sheet: 3.35 TB/s (SXM)"},
    ),
    Device(
        name="h200", title="NVIDIA H200 SXM", target="sm_90", units=132, matrix_flops=4096,
        plain_flops=256, exponentials=16, clock_mhz=1830, shared_bytes=227 << 10,
        l2_bytes=50 << 20, l2_bytes_us=5.6e6, hbm_bytes_us=4.8e6,
        sources={
            **_HOPPER,
            "units": "NVIDIA H200 data sheet: the processors of the H100 SXM",
            "hbm_bytes_us": "NVIDIA H200 data sheet: 4.8 TB/s (a copy was measured at 4.3)",
        },
    ),
    Device(
        name="b200", title="NVIDIA B200", target="sm_100", units=148, matrix_flops=8192,
        plain_flops=256, exponentials=16, clock_mhz=1860, shared_bytes=227 << 10,
        l2_bytes=126 << 20, l2_bytes_us=None, hbm_bytes_us=7.7e6,
        sources={
            "units": "74 SMs on each of two dies: Chips and Cheese on the B200",
            "matrix_flops": "FlashAttention-4 write-up: 8192 dense bf16 operations a clock and SM",
            "plain_flops": _LANES,
            "exponentials": "FlashAttention-4 write-up: 16 a clock and SM",
            "clock_mhz": f"{_IMPLIED}, 2250 TFLOP/s",
            "shared_bytes": "CUDA C++ Programming Guide: 227 KB a block, compute capability 10.0",
            "l2_bytes": "Chips and Cheese on the B200: 126 MB, unverified",
            "l2_bytes_us": "no source: left out",
            "hbm_bytes_us": "NVIDIA HGX B200 data sheet: 7.7 TB/s a GPU",
        },
    ),
    Device(
        name="mi300x", title="AMD Instinct MI300X", target="gfx942", units=304, matrix_flops=2048,
        plain_flops=256, exponentials=16, clock_mhz=2100, shared_bytes=64 << 10,
        l2_bytes=256 << 20, l2_bytes_us=None, hbm_bytes_us=5.3e6,
        sources={
            "units": "AMD Instinct MI300X data sheet: 304 compute units",
            "matrix_flops": "derived: 1307 TFLOP/s at 2100 MHz on 304 units, MI300X data sheet",
            "plain_flops": "derived: 163.4 TFLOP/s fp32 vector, MI300X data sheet",
            "exponentials": "a quarter-rate transcendental of 64 lanes, CDNA 3 ISA; unverified",
            "clock_mhz": "AMD Instinct MI300X data sheet: peak engine clock",
            "shared_bytes": "AMD CDNA 3 ISA: 64 KB of local data share",
            "l2_bytes": "AMD Instinct MI300X data sheet: 256 MB Infinity Cache",
            "l2_bytes_us": "no source: left out",
            "hbm_bytes_us": "AMD Instinct MI300X data sheet: 5.3 TB/s",
        },
    ),
)

DEVICES: Mapping[str, Device] = {device.name: device for device in _KNOWN}

HBM_SHARE = 0.9
"""Part of the published memory rate that a copy reaches: 4.3 of 4.8 TB/s, measured on an H200."""
