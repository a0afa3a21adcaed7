"""Accelerators: memory and peak rates from the manufacturers' data sheets. No heavy imports: ``--help`` is instant."""

import dataclasses
from collections.abc import Mapping

from jaxdiff.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device.

    Attributes:
      memory: device memory that programs can use, bytes.
      flops: peak rate by type, floating-point operations a second without sparsity. "float32" is JAX's default for
        float32 matrix products: TF32 on NVIDIA's chips since Ampere, one pass of bfloat16 on TPUs. Types that are not
        listed run at the float32 rate.
      tiled: whether its compiler fuses elementwise operations and stores arrays in tiles, see `jaxdiff.cost.fusion`.
    """

    memory: int
    flops: Mapping[str, float]
    tiled: bool = False


def _chip(memory: float, float32: float, bfloat16: float | None = None, float16: float | None = None) -> Chip:
    rates = {"float32": float32, "bfloat16": bfloat16, "float16": float16}
    return Chip(int(memory), {name: 1e12 * rate for name, rate in rates.items() if rate is not None})


def _tpu(memory: float, rate: float) -> Chip:
    return Chip(int(memory), {"float32": 1e12 * rate, "bfloat16": 1e12 * rate}, tiled=True)


GB, GiB = 1e9, 2.0**30

CHIPS = {
    # NVIDIA data sheets, SXM boards; half of the rate with sparsity where only that is printed.
    "b200": _chip(180 * GB, 1100.0, 2250.0, 2250.0),  # HGX B200
    "h200": _chip(141 * GB, 494.7, 989.4, 989.4),  # H200 Tensor Core GPU
    "h100": _chip(80 * GB, 494.7, 989.4, 989.4),  # H100 Tensor Core GPU
    "a100": _chip(80 * GB, 156.0, 312.0, 312.0),  # A100 80GB
    "a100-40gb": _chip(40 * GB, 156.0, 312.0, 312.0),
    "v100": _chip(32 * GB, 15.7, None, 125.0),  # V100: no TF32 and no bfloat16
    "l4": _chip(24 * GB, 60.0, 121.0, 121.0),  # L4
    "t4": _chip(16 * GB, 8.1, None, 65.0),  # T4
    # Google, cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e}. A device of v3 is one of the chip's two cores. Memory since
    # v4 is what the compiler gives to programs, by its errors (libtpu 0.0.42.1).
    "tpu-v3": _tpu(16 * GiB, 61.5),
    "tpu-v4": _tpu(30.75 * GiB, 275.0),
    "tpu-v5e": _tpu(15.75 * GiB, 197.0),
    "tpu-v5p": _tpu(95.74 * GiB, 459.0),
    "tpu-v6e": _tpu(31.25 * GiB, 918.0),
    # Two AVX-512 cores at 3 GHz, 32 multiply-adds a cycle each: an order of magnitude.
    "cpu": _chip(16 * GB, 0.384),
}


def chip_of(name: str) -> Chip:
    """The chip of that name; a `UserError` if it is not one of `CHIPS`."""
    if name not in CHIPS:
        known = ", ".join(CHIPS)
        raise UserError(f"--chip={name}: expected a known chip, got {name!r}. Fix: use one of {known}")
    return CHIPS[name]
