"""Degradations: from an image to what a network is shown in its place, such as a small, blurred or grey one.

Each takes an image uint8 [height, width, channels] and the generator of its draws; `data/conditions.py` makes fields
of examples with them, and `data/masks.py` has those that hide pixels. Ranges are (lowest, highest), and a strength is
drawn uniformly between the two; give the same number twice to fix it.
"""

import dataclasses
import io
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped, UInt8

from jaxdiff.data import images
from jaxdiff.errors import UserError, require

Picture = UInt8[np.ndarray, "height width channels"]
Changed = UInt8[np.ndarray, "new_height new_width new_channels"]
LEVELS = 255
TRUNCATE = 4.0  # Gaussian kernels end at so many standard deviations


@runtime_checkable
class Degradation(Protocol):
    """A random function of one image; bytes stay bytes, floats that it returns are on the scale from -1 to 1."""

    def __call__(
        self, image: Picture, rng: np.random.Generator
    ) -> Shaped[np.ndarray, "new_height new_width new_channels"]: ...


@dataclasses.dataclass(frozen=True)
class Downsample:
    """An image at a whole fraction of its size: the condition of super-resolution.

    Attributes:
      factor: how many times smaller each side becomes.
      method: "area" takes means of squares; "bilinear", "bicubic" and "lanczos" are low-passed (`images.resize`);
        "nearest" picks pixels and aliases.
    """

    factor: int = 4
    method: images.Resampling = "area"

    def __post_init__(self):
        require(self.factor > 1, "factor", self.factor, "the image would not shrink", "give at least 2")

    def __call__(self, image: Picture, rng: np.random.Generator) -> Changed:
        height, width, _ = image.shape
        if height % self.factor or width % self.factor:
            raise UserError(
                f"factor={self.factor}: it does not divide an image of {height} x {width} pixels. "
                "Fix: use a divisor of both sides, or crop before"
            )
        return images.resize(image, (height // self.factor, width // self.factor), self.method)


@dataclasses.dataclass(frozen=True)
class Blur:
    """Gaussian blur; the image is mirrored at its edges.

    Attributes:
      sigma: range of the standard deviation, in pixels; 0 leaves the image as it is.
      probability: how often the image is blurred at all; Ho et al. 2022 ("Cascaded Diffusion Models", section 4.1)
        blur the small image half of the time.
    """

    sigma: tuple[float, float] = (0.4, 0.6)
    probability: float = 1.0

    def __post_init__(self):
        _check_range("sigma", self.sigma, 0.0, np.inf)
        fits = 0 <= self.probability <= 1
        require(fits, "probability", self.probability, "it is a probability", "give a number from 0 to 1")

    def __call__(self, image: Picture, rng: np.random.Generator) -> Picture:
        from scipy import ndimage

        strikes, sigma = rng.random() < self.probability, rng.uniform(*self.sigma)
        if not strikes or sigma == 0:
            return image
        floats = image.astype(np.float32)
        return _bytes(ndimage.gaussian_filter(floats, (sigma, sigma, 0), mode="reflect", truncate=TRUNCATE))


@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """White noise, independent in each channel, rounded and clipped.

    Attributes:
      std: range of the standard deviation, in levels of 0..255.
    """

    std: tuple[float, float] = (1.0, 25.0)

    def __post_init__(self):
        _check_range("std", self.std, 0.0, np.inf)

    def __call__(self, image: Picture, rng: np.random.Generator) -> Picture:
        return _bytes(image + rng.uniform(*self.std) * rng.standard_normal(image.shape))


@dataclasses.dataclass(frozen=True)
class Jpeg:
    """What is left of an image, grey or colour, after JPEG (baseline, chroma at half the size).

    Attributes:
      quality: range of libjpeg's quality, whole numbers from 1 to 95, both ends included.
    """

    quality: tuple[int, int] = (30, 95)

    def __post_init__(self):
        _check_range("quality", self.quality, 1.0, 95.0)

    def __call__(self, image: Picture, rng: np.random.Generator) -> Picture:
        from PIL import Image

        require(image.shape[2] in (1, 3), "image", image.shape, "JPEG has 1 or 3 channels", "pick channels")
        lowest, highest = self.quality
        file = io.BytesIO()
        quality = int(rng.integers(lowest, highest + 1))
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(
            file, "JPEG", quality=quality, subsampling="4:2:0"
        )
        return np.asarray(Image.open(file)).reshape(image.shape)


@dataclasses.dataclass(frozen=True)
class Chain:
    """Several degradations, one after the other."""

    steps: tuple[Degradation, ...]

    def __call__(
        self, image: Picture, rng: np.random.Generator
    ) -> Shaped[np.ndarray, "new_height new_width new_channels"]:
        result = image
        for step in self.steps:
            result = step(result, rng)
        return result


@dataclasses.dataclass(frozen=True)
class Bsr:
    """Blur twice, shrink and add noise in a random order, then JPEG: in the manner of blind super-resolution.

    After Zhang et al. 2021, "Designing a Practical Degradation Model for Deep Blind Image Super-Resolution", section 3,
    and simplified: both blurs are isotropic, noise is white (theirs can be grey or correlated between channels, and
    imitates a camera's sensor), the image shrinks at most once, and JPEG strikes once, at the end. unCLIP's last
    upsampler was trained on such images (Ramesh et al. 2022, section 2.3). Default ranges are from memory.

    Attributes:
      factor: how many times smaller the image becomes, by a method drawn from area, bilinear and bicubic; 1 keeps the
        size.
      sigma: of each blur, see `Blur`.
      std: of the noise, see `GaussianNoise`.
      quality: see `Jpeg`.
    """

    factor: int = 1
    sigma: tuple[float, float] = (0.1, 2.4)
    std: tuple[float, float] = (1.0, 25.0)
    quality: tuple[int, int] = (30, 95)

    def __post_init__(self):
        require(self.factor >= 1, "factor", self.factor, "it would enlarge the image", "give 1 or more")
        _check_range("sigma", self.sigma, 0.0, np.inf)
        _check_range("std", self.std, 0.0, np.inf)
        _check_range("quality", self.quality, 1.0, 95.0)

    def __call__(self, image: Picture, rng: np.random.Generator) -> Changed:
        blur = Blur(self.sigma)
        steps: list[Degradation] = [blur, blur, GaussianNoise(self.std)]
        if self.factor > 1:
            methods: tuple[images.Resampling, ...] = ("area", "bilinear", "bicubic")
            steps.append(Downsample(self.factor, methods[rng.integers(len(methods))]))
        shuffled = [steps[i] for i in rng.permutation(len(steps))]
        return Chain((*shuffled, Jpeg(self.quality)))(image, rng)


@dataclasses.dataclass(frozen=True)
class Grayscale:
    """The luma of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B: the condition of colourisation.

    Attributes:
      channels: 1, or 3 equal ones.
    """

    channels: Literal[1, 3] = 1

    def __call__(self, image: Picture, rng: np.random.Generator) -> Changed:
        return _luma(image)[..., None].repeat(self.channels, axis=-1)


@dataclasses.dataclass(frozen=True)
class Edges:
    """Lines along the edges of an image, white on black: the condition of sketch to image.

    Canny 1986, "A Computational Approach to Edge Detection": derivatives of a Gaussian of the luma, maxima along the
    gradient (to the nearest of eight directions), and hysteresis. The gradient is scaled so that a long straight step
    has its height, on the scale from 0 to 1.

    Attributes:
      sigma: standard deviation of the Gaussian, in pixels.
      low, high: heights of a step: lines are where it is `low` or more, and somewhere along the line `high` or more.
      channels: 1, or 3 equal ones.
    """

    sigma: float = 1.0
    low: float = 0.1
    high: float = 0.2
    channels: Literal[1, 3] = 1

    def __post_init__(self):
        require(self.sigma > 0, "sigma", self.sigma, "a derivative needs a width", "give a number > 0")
        fits = 0 < self.low <= self.high
        require(fits, "low", self.low, f"it is not between 0 and high={self.high}", "give 0 < low <= high")

    def __call__(self, image: Picture, rng: np.random.Generator) -> Changed:
        from scipy import ndimage

        grey = _luma(image).astype(np.float64) / LEVELS
        down, across = self._derivative(grey, axis=0), self._derivative(grey, axis=1)
        radius = int(TRUNCATE * self.sigma) + 2
        unit_step = (np.arange(2 * radius) >= radius).astype(float)
        slope = self._derivative(unit_step[:, None], axis=0).max()
        height = np.hypot(down, across) / slope
        thin = np.where(_is_ridge(height, down, across), height, 0.0)
        labelled: Any = ndimage.label(thin >= self.low, np.ones((3, 3)))
        lines = labelled[0]
        strong = np.unique(lines[thin >= self.high])
        drawn = np.isin(lines, strong[strong > 0])
        return (drawn[..., None] * np.uint8(LEVELS)).repeat(self.channels, axis=-1)

    def _derivative(self, grey: np.ndarray, axis: int) -> np.ndarray:
        """Along one axis, of the image smoothed along both."""
        from scipy import ndimage

        for direction in (0, 1):
            grey = ndimage.gaussian_filter1d(
                grey, self.sigma, direction, order=int(direction == axis), mode="nearest", truncate=TRUNCATE
            )
        return grey


def _is_ridge(height: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Where `height` is the largest along its gradient; of two that are equal, the one that comes first."""
    padded = np.pad(height, 1)
    rows, columns = height.shape
    octant = np.rint(np.arctan2(down, across) / (np.pi / 4)).astype(int) % 4
    ridge = np.zeros(height.shape, bool)
    for i, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]
        behind = padded[1 - dy : 1 - dy + rows, 1 - dx : 1 - dx + columns]
        # Steps between two pixels give two slopes that are equal but for rounding.
        ridge |= (octant == i) & (height >= ahead - 1e-9) & (height > behind + 1e-9)
    return ridge


def _luma(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    require(image.shape[2] in (1, 3), "image", image.shape, "it is neither grey nor RGB", "pick channels")
    return image[..., 0] if image.shape[2] == 1 else np.asarray(Image.fromarray(image).convert("L"))


def _bytes(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(levels), 0, LEVELS).astype(np.uint8)


def _check_range(field: str, value: tuple, least: float, most: float) -> None:
    fits = len(value) == 2 and least <= value[0] <= value[1] <= most
    limits = f"from {least:g} up" if most == np.inf else f"from {least:g} to {most:g}"
    require(fits, field, value, f"this is no range (lowest, highest) {limits}", "give two numbers in order")
