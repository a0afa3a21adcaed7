"""TPU topologies to compile for, none of which need be there. No heavy imports: a wrong name is an error at once.

The compiler is libtpu, which JAX loads into a process of the CPU. Names, layouts of hosts and links are those of
MaxText's `accelerator_to_spec_map.py`.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from jaxdiff.cost.chips import CHIPS
from jaxdiff.errors import RunFailure, UserError, expect

FLAG = "--compile"
LIBRARY = "TPU_LIBRARY_PATH"

PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
"""Slices of chips with links in two directions."""

CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
"""Slices below one cube of 4 x 4 x 4 chips; larger ones consist of cubes."""

ALONE = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""Environment of a process that compiles without a TPU: otherwise libtpu asks Google's metadata server what it has."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of TPU.

    Attributes:
      chip: its name in `jaxdiff.cost.chips.CHIPS`.
      bandwidth: of the memory, bytes a second (cloud.google.com/tpu/docs).
      axes: directions of its links: 2 or 3.
      options: names of libtpu.
    """

    chip: str
    bandwidth: float
    axes: int
    options: Mapping[str, str]

    @property
    def usable(self) -> int:
        """Bytes of memory that the compiler gives to programs."""
        return CHIPS[self.chip].memory


KINDS = {
    "v4": Kind("tpu-v4", 1228e9, 3, {"chip_config_name": "megacore"}),
    "v5e": Kind("tpu-v5e", 819e9, 2, {}),
    "v5p": Kind("tpu-v5p", 2765e9, 3, {"chip_config_name": "megacore"}),
    "v6e": Kind("tpu-v6e", 1640e9, 2, {}),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one size.

    Attributes:
      kind: one of `KINDS`.
      sides: chips along each direction of the links.
      slices: number of slices, which a slower network connects.
    """

    kind: str
    sides: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, text: str, slices: int = 1) -> "Topology":
        """The topology of a name such as v5e:4x4 or v5p:2x2x2.

        Raises:
          UserError: the kind is unknown, there is no slice of this size, or `slices` is not positive.
        """
        kind, colon, sides = text.partition(":")
        known = ", ".join(KINDS)
        expect(
            kind in KINDS and bool(colon), FLAG, text, f"KIND:SIDES with {known}", "use one such as v5e:4x4"
        )
        planar = KINDS[kind].axes == 2
        some = ", ".join(PLANES) if planar else f"{', '.join(CUBES)}, or multiples of 4 such as 4x4x8"
        fits = re.fullmatch("[0-9]{1,3}(x[0-9]{1,3})+", sides) and _exists(sides, planar)
        example = f"{kind}:{'4x4' if planar else '2x2x2'}"
        expect(bool(fits), FLAG, text, f"a slice of {kind}: {some}", f"use one such as {example}")
        expect(slices >= 1, "--slices", slices, "a number >= 1", "give at least 1")
        return cls(kind, tuple(map(int, sides.split("x"))), slices)

    @property
    def size(self) -> int:
        """Number of chips, each of them one JAX device."""
        return math.prod(self.sides) * self.slices

    @property
    def name(self) -> str:
        """As `parse` takes it."""
        return f"{self.kind}:{'x'.join(map(str, self.sides))}"

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Whether links close each direction to a ring: in cubes of 4 x 4 x 4, and along 16 chips of a plane."""
        if len(self.sides) == 2:
            return self.sides[0] == 16, self.sides[1] == 16, False
        cubes = all(side % 4 == 0 for side in self.sides)
        return cubes, cubes, cubes

    def devices(self) -> list[Any]:
        """The chips as devices of JAX for which programs can be compiled and not run.

        Raises:
          RunFailure: another process has loaded libtpu.
        """
        from jax.errors import JaxRuntimeError
        from jax.experimental import topologies

        try:
            return list(topologies.get_topology_desc(**self._request()).devices)
        except JaxRuntimeError as error:
            if "lockfile" not in str(error) and "in use" not in str(error):
                raise
            raise RunFailure(
                f"{FLAG}={self.name}: expected libtpu for this process alone, got one that another process has loaded. "
                "Fix: wait for that process; where no TPU is used, ALLOW_MULTIPLE_LIBTPU_LOAD=1 allows both; a lock "
                "that a killed process has left is /tmp/libtpu_lockfile"
            ) from error

    def _request(self) -> dict[str, Any]:
        """Arguments of `get_topology_desc`."""
        one = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(self.sides) == 1 else {}
        several = {"num_slices": self.slices} if self.slices > 1 else {}
        options = {**KINDS[self.kind].options, **one, **several}
        return {"platform": "tpu", "topology_name": self.name, "wrap": self.wrap, **options}


def prepare(topology: Topology) -> None:
    """Set the environment of a process that compiles for TPUs; to be called before JAX is imported.

    Raises:
      UserError: libtpu is not installed.
    """
    installed = LIBRARY in os.environ or importlib.util.find_spec("libtpu") is not None
    if not installed:
        raise UserError(
            f"{FLAG}={topology.name}: expected libtpu, the compiler of TPUs, got no such package. "
            "Fix: pip install 'jaxdiff[tpu]'"
        )
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)


def _exists(sides: str, planar: bool) -> bool:
    numbers = [int(side) for side in sides.split("x")]
    if planar or sides in CUBES:
        return sides in (PLANES if planar else CUBES)
    return len(numbers) == 3 and all(number % 4 == 0 and number for number in numbers)
