"""Limits of a sampling request: memory and disk that its images need at least, compared with what is free."""

import math
import pathlib

from jaxdiff.cli.output import Output, readable
from jaxdiff.errors import expect

COPIES = 2
"""Copies of the result in memory: the batches, and all of them together."""

PER_IMAGE = 64
"""Bytes for the conditions and the number of an image."""

FLOATS = 4 * 8
"""Bytes for each value of a batch in a network: at least eight arrays of its size."""

BLOCK = 4096
"""Bytes that the smallest file takes on a disk."""


def check(out: Output, n: int, shape: tuple[int, ...], batch: int = 1) -> None:
    """Raise `UserError` if n images [height, width, channels] cannot fit into memory, or on the disk.

    Args:
      batch: the number of images that are sampled at once.
    """
    size, free = math.prod(shape), free_memory()
    if free is not None:
        dimensions = "x".join(map(str, shape[:2]))
        needed, room = FLOATS * size * min(n, batch), f"images that fit into {readable(free)} of free memory"
        expect(
            needed < free, "--size", dimensions, room, "give a smaller size", f"at least {readable(needed)}"
        )
        needed, fix = (
            n * (COPIES * size + PER_IMAGE),
            "sample fewer at a time, with another --seed for each part",
        )
        expect(needed < free, "--n", n, room, fix, readable(needed))
    out.check_space(n * max(size, BLOCK if out.is_folder else 0))


def free_memory() -> int | None:
    """Bytes of memory that are free on this machine; None where the system does not say."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        found = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return 1024 * (found["MemAvailable"] + found["SwapFree"])
    except (OSError, LookupError, ValueError):
        return None
