"""Fréchet distances with names of their own: FID, sFID and FD-DINOv2. A name belongs to one feature space.

The same formula in another space is a Fréchet distance, `frechet.Frechet`, and has no such name.
"""

import dataclasses
from typing import Any, ClassVar

from jaxdiff.errors import expect
from jaxdiff.evaluation.metrics import reference_files
from jaxdiff.evaluation.metrics.frechet import Frechet, _State

FEWEST = 2048
"""Fewest samples of a FID. With fewer than its 2048 dimensions the covariance is singular, and the bias dominates."""


class _Named(Frechet):
    """A Fréchet distance that is refused in other feature spaces, and for few samples."""

    name: ClassVar[str]
    space: ClassVar[str]
    """What the name of the feature space contains. Inception with other weights than the published ones lacks it, and
    so does a DINOv2 of other sizes; the hash of the weights stands next to the value."""
    spatial: ClassVar[bool] = False
    few: bool

    def __post_init__(self):
        super().__post_init__()
        known = self.space in self.features.name
        wanted = f"a feature space with {self.space!r} in its name, that of {self.name}"
        fix = f"use it, or metrics.frechet:Frechet, which is not called {self.name}"
        expect(known, "features", self.features.name, wanted, fix)

    @property
    def figure(self) -> str:
        return self.name

    def stored(self) -> reference_files.Reference:
        found = reference_files.load(self.reference, self.spatial).of(self.features)
        n, expected = found.gaussian.n, f"statistics of at least {FEWEST} images for {self.name}"
        fix = (
            f"use a larger one, or set few=True for a number that is comparable with no published {self.name}"
        )
        expect(self.few or not 0 < n < FEWEST, "reference", self.reference, expected, fix, str(n))
        return found

    def check(self, samples: int) -> None:
        fix = f"generate 50000, or set few=True for a number that is comparable with no published {self.name}"
        enough = self.few or samples >= FEWEST
        expect(enough, "samples", samples, f"at least {FEWEST} for {self.name}", fix)

    def compute(self, state: _State) -> dict[str, Any]:
        """The values. The distance is None for fewer than `FEWEST` images, such as a small real set, without `few`."""
        enough = self.few or (state.samples is not None and state.samples.n >= FEWEST)
        found = super().compute(state if enough else state._replace(rows=(), samples=None))
        numbers = {**found[f"{self.key}_n"], "samples": 0 if state.samples is None else state.samples.n}
        return {**found, f"{self.key}_n": numbers}


@dataclasses.dataclass(frozen=True)
class Fid(_Named):
    """FID: Fréchet inception distance (Heusel et al. 2017), on the 2048 pooled features of Inception-v3.

    Attributes:
      features, reference, key, resamples: see `Frechet`; the features must be those of Inception-v3.
      few: accept fewer than 2048 samples.
    """

    name: ClassVar[str] = "FID"
    space: ClassVar[str] = "Inception-v3 (FID)"
    key: str = "fid"
    few: bool = False


@dataclasses.dataclass(frozen=True)
class SpatialFid(_Named):
    """sFID: the same on 7 channels of a convolution of Inception-v3, 2023 numbers (Nash et al. 2021, section 4.1).

    Attributes:
      features, reference, key, resamples: see `Frechet`; the features must be the spatial ones of Inception-v3.
      few: accept fewer than 2048 samples.
    """

    name: ClassVar[str] = "sFID"
    space: ClassVar[str] = "Inception-v3 spatial (sFID)"
    spatial: ClassVar[bool] = True
    key: str = "sfid"
    few: bool = False


@dataclasses.dataclass(frozen=True)
class FdDinov2(_Named):
    """FD-DINOv2: Fréchet distance of DINOv2's features (Stein et al. 2023), closer to human judgement than FID.

    Attributes:
      features, reference, key, resamples: see `Frechet`; the features must be those of a DINOv2.
      few: accept fewer than 2048 samples.
    """

    name: ClassVar[str] = "FD-DINOv2"
    space: ClassVar[str] = "DINOv2 ViT"
    key: str = "fd_dinov2"
    few: bool = False
