"""Large inputs in parts: a few images at a time, or overlapping tiles whose results are blended linearly.

The parts of a kind run one after another in one loop of the compiled program, so memory is that of one part.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdiff.errors import between, expect, positive
from jaxdiff.typing import Array, Float

Grid = Float[Array, "batch _ _ _"]
"""Images or latents of any size."""

Corner = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Squares into which images are cut, with the defaults of diffusers' AutoencoderKL.

    Each tile is encoded or decoded by itself. So attention and group norms see one tile, and the result differs from
    that of the whole image. An image that is no larger than a tile stays whole.

    Attributes:
      size: side of a tile in pixels.
      overlap: part of its side that a tile shares with the next one.
    """

    size: int = 512
    overlap: float = 0.25

    def __post_init__(self):
        positive(self, "size")
        between(self, "overlap", 0.0, 1.0, open_high=True)

    @property
    def shared(self) -> float:
        """Pixels that a tile shares with the next one."""
        return self.size * self.overlap

    def check(self, factor: int) -> None:
        """Raise a `UserError` unless tiles and overlaps are whole latents of `factor` pixels a side."""
        whole = self.size % factor == 0 and self.shared % factor == 0
        expected = f"a tile and an overlap of whole latents, which are {factor} pixels wide"
        got = f"tiles of {self.size} that share {self.shared:g} pixels"
        expect(whole, "tiles", self, expected, "try size=512 with overlap=0.25", got)


def by_slices(run: Callable[[Grid], Grid], x: Grid, count: int | None) -> Grid:
    """``run(x)``, for `count` examples of the batch at a time; all at once if None."""
    if count is None or x.shape[0] <= count:
        return run(x)
    whole = x.shape[0] // count * count
    slices = x[:whole].reshape(-1, count, *x.shape[1:])
    done = jax.lax.map(run, slices)
    parts = [done.reshape(whole, *done.shape[2:])]
    if whole < x.shape[0]:
        parts.append(run(x[whole:]))
    return jnp.concatenate(parts)


def by_tiles(run: Callable[[Grid], Grid], x: Grid, tile: int, shared: int, scale: float) -> Grid:
    """`run` on overlapping tiles, blended: in the overlap, the weight of a tile rises linearly from 0.

    A tile is blended with the one above and then with the one to the left, as they are after their own blending.

    Args:
      run: a function that multiplies height and width by `scale`.
      tile: side of a tile in `x`. Tiles at the right and at the bottom may be smaller.
      shared: rows and columns that a tile shares with the next one.
      scale: side of the result divided by that of `x`.
    """
    if max(x.shape[1:3]) <= tile:
        return run(x)
    step = tile - shared
    rows, columns = (range(0, side, step) for side in x.shape[1:3])
    cut = {(i, j): x[:, i : i + tile, j : j + tile] for i in rows for j in columns}
    done, extent, kept = _mapped(run, cut), round(shared * scale), round(step * scale)
    for i, j in cut:
        if i > 0:
            done[i, j] = _blended(done[i - step, j], done[i, j], extent, axis=1)
        if j > 0:
            done[i, j] = _blended(done[i, j - step], done[i, j], extent, axis=2)
    lines = [jnp.concatenate([done[i, j][:, :kept, :kept] for j in columns], axis=2) for i in rows]
    return jnp.concatenate(lines, axis=1)


def _mapped(run: Callable[[Grid], Grid], cut: dict[Corner, Grid]) -> dict[Corner, Grid]:
    """`run` for every tile; one loop, compiled once, for all tiles of a shape."""
    done = {}
    for _, group in itertools.groupby(sorted(cut, key=lambda at: cut[at].shape), lambda at: cut[at].shape):
        corners = list(group)
        results = jax.lax.map(run, jnp.stack([cut[corner] for corner in corners]))
        done.update(zip(corners, results, strict=True))
    return done


def _blended(before: Grid, tile: Grid, extent: int, axis: int) -> Grid:
    """`tile` whose first rows (or columns) are mixed with the last ones of the tile `before` it."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    end, size = before.shape[axis], tile.shape[axis]
    old = jax.lax.slice_in_dim(before, end - extent, end, axis=axis)
    new, rest = (jax.lax.slice_in_dim(tile, *ends, axis=axis) for ends in ((0, extent), (extent, size)))
    weight = (jnp.arange(extent, dtype=tile.dtype) / extent).reshape(
        [-1 if i == axis else 1 for i in range(tile.ndim)]
    )
    return jnp.concatenate([old * (1 - weight) + new * weight, rest], axis=axis)
