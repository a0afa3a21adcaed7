"""Degradations: random functions of an image that make the input of restoration tasks, such as a blurred image.

Each takes an image uint8 [height, width, channels] and the generator of its draws. `data/conditions.py` stores the
results as fields of examples; `data/masks.py` has degradations that hide pixels, and `data/marks.py` one that keeps
positions only. A strength is drawn uniformly from a range (lowest, highest); give the same number twice to fix it.
"""

import dataclasses
import io
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped, UInt8

from jaxdiff.data import images
from jaxdiff.errors import UserError, between, expect, positive

ImageArray = UInt8[np.ndarray, "height width channels"]
OutputArray = UInt8[np.ndarray, "new_height new_width new_channels"]
LEVELS = 255
TRUNCATE = 4.0  # radius of Gaussian kernels, in standard deviations


@runtime_checkable
class Degradation(Protocol):
    """Random function of one image uint8; returns uint8, or floats in [-1, 1]."""

    def __call__(
        self, image: ImageArray, rng: np.random.Generator
    ) -> Shaped[np.ndarray, "new_height new_width new_channels"]: ...


@dataclasses.dataclass(frozen=True)
class Downsample:
    """Shrinks an image by an integer factor: the condition of super-resolution.

    Attributes:
      factor: divisor of each side, an integer > 1.
      method: "area" averages squares; "bilinear", "bicubic" and "lanczos" low-pass (`images.resize`); "nearest" picks
        pixels and aliases.
    """

    factor: int = 4
    method: images.Resampling = "area"

    def __post_init__(self):
        expect(
            self.factor > 1, "factor", self.factor, "an integer > 1", "give at least 2, so that images shrink"
        )

    def __call__(self, image: ImageArray, rng: np.random.Generator) -> OutputArray:
        height, width, _ = image.shape
        if height % self.factor or width % self.factor:
            raise UserError(
                f"factor={self.factor}: expected a divisor of both sides, got an image of {height} x {width} pixels. "
                "Fix: use another factor, or crop first"
            )
        return images.resize(image, (height // self.factor, width // self.factor), self.method)


@dataclasses.dataclass(frozen=True)
class Blur:
    """Gaussian blur, with the image mirrored at its edges.

    Attributes:
      sigma: range of the standard deviation, in pixels; 0 leaves the image unchanged.
      probability: fraction of images that are blurred. Ho et al. 2022 ("Cascaded Diffusion Models", section 4.1)
        blur the low-resolution image with probability 0.5.
    """

    sigma: tuple[float, float] = (0.4, 0.6)
    probability: float = 1.0

    def __post_init__(self):
        _check_range("sigma", self.sigma, 0.0, np.inf)
        between(self, "probability", 0.0, 1.0)

    def __call__(self, image: ImageArray, rng: np.random.Generator) -> ImageArray:
        from scipy import ndimage

        blurred, sigma = rng.random() < self.probability, rng.uniform(*self.sigma)
        if not blurred or sigma == 0:
            return image
        floats = image.astype(np.float32)
        return _bytes(ndimage.gaussian_filter(floats, (sigma, sigma, 0), mode="reflect", truncate=TRUNCATE))


@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """Additive white Gaussian noise, independent in each channel; the result is rounded and clipped.

    Attributes:
      std: range of the standard deviation, in levels of 0..255.
    """

    std: tuple[float, float] = (1.0, 25.0)

    def __post_init__(self):
        _check_range("std", self.std, 0.0, np.inf)

    def __call__(self, image: ImageArray, rng: np.random.Generator) -> ImageArray:
        return _bytes(image + rng.uniform(*self.std) * rng.standard_normal(image.shape))


@dataclasses.dataclass(frozen=True)
class Jpeg:
    """JPEG compression and decompression of a grey or RGB image (baseline, 4:2:0 chroma subsampling).

    Attributes:
      quality: range of libjpeg's quality, integers from 1 to 95, both ends included.
    """

    quality: tuple[int, int] = (30, 95)

    def __post_init__(self):
        _check_range("quality", self.quality, 1.0, 95.0)

    def __call__(self, image: ImageArray, rng: np.random.Generator) -> ImageArray:
        from PIL import Image

        expect(image.shape[2] in (1, 3), "image", image.shape, "1 or 3 channels for JPEG", "select channels")
        lowest, highest = self.quality
        file = io.BytesIO()
        quality = int(rng.integers(lowest, highest + 1))
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(
            file, "JPEG", quality=quality, subsampling="4:2:0"
        )
        return np.asarray(Image.open(file)).reshape(image.shape)


@dataclasses.dataclass(frozen=True)
class Chain:
    """Applies several degradations in order."""

    steps: tuple[Degradation, ...]

    def __call__(
        self, image: ImageArray, rng: np.random.Generator
    ) -> Shaped[np.ndarray, "new_height new_width new_channels"]:
        result = image
        for step in self.steps:
            result = step(result, rng)
        return result


@dataclasses.dataclass(frozen=True)
class Bsr:
    """BSR degradation of blind super-resolution: two blurs, shrinking and noise in random order, then JPEG.

    A simplification of Zhang et al. 2021, "Designing a Practical Degradation Model for Deep Blind Image
    Super-Resolution", section 3. Here both blurs are isotropic and noise is white; theirs can also be grey, correlated
    between channels, or imitate a camera's sensor. The image shrinks at most once, and JPEG comes once, at the end.
    unCLIP's last upsampler was trained on such images (Ramesh et al. 2022, section 2.3). The default ranges were not
    checked against the papers.

    Attributes:
      factor: divisor of each side, by a method drawn from area, bilinear and bicubic; 1 keeps the size.
      sigma: range of the standard deviation of each blur, see `Blur`.
      std: range of the standard deviation of the noise, see `GaussianNoise`.
      quality: range of JPEG's quality, see `Jpeg`.
    """

    factor: int = 1
    sigma: tuple[float, float] = (0.1, 2.4)
    std: tuple[float, float] = (1.0, 25.0)
    quality: tuple[int, int] = (30, 95)

    def __post_init__(self):
        expect(
            self.factor >= 1, "factor", self.factor, "an integer >= 1", "give 1 or more: images cannot grow"
        )
        _check_range("sigma", self.sigma, 0.0, np.inf)
        _check_range("std", self.std, 0.0, np.inf)
        _check_range("quality", self.quality, 1.0, 95.0)

    def __call__(self, image: ImageArray, rng: np.random.Generator) -> OutputArray:
        blur = Blur(self.sigma)
        steps: list[Degradation] = [blur, blur, GaussianNoise(self.std)]
        if self.factor > 1:
            methods: tuple[images.Resampling, ...] = ("area", "bilinear", "bicubic")
            steps.append(Downsample(self.factor, methods[rng.integers(len(methods))]))
        shuffled = [steps[i] for i in rng.permutation(len(steps))]
        return Chain((*shuffled, Jpeg(self.quality)))(image, rng)


@dataclasses.dataclass(frozen=True)
class Grayscale:
    """Luma of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B: the condition of colourisation.

    Attributes:
      channels: 1, or 3 for three equal channels.
    """

    channels: Literal[1, 3] = 1

    def __call__(self, image: ImageArray, rng: np.random.Generator) -> OutputArray:
        return luma(image)[..., None].repeat(self.channels, axis=-1)


@dataclasses.dataclass(frozen=True)
class Edges:
    """Canny edges of an image, white lines on black: the condition of sketch to image.

    Canny 1986, "A Computational Approach to Edge Detection": Gaussian derivatives of the luma, maxima along the
    gradient (to the nearest of eight directions), then hysteresis. The gradient is scaled so that at a long straight
    step it equals the step's height, on the scale 0 to 1.

    Attributes:
      sigma: standard deviation of the Gaussian, in pixels.
      low: least step height, 0 to 1, anywhere on a line.
      high: least step height, 0 to 1, of the highest point of a line.
      channels: 1, or 3 for three equal channels.
    """

    sigma: float = 1.0
    low: float = 0.1
    high: float = 0.2
    channels: Literal[1, 3] = 1

    def __post_init__(self):
        positive(self, "sigma")
        between(self, "low", 0.0, self.high, open_low=True)

    def __call__(self, image: ImageArray, rng: np.random.Generator) -> OutputArray:
        from scipy import ndimage

        grey = luma(image).astype(np.float64) / LEVELS
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
        """Derivative along one axis of the image, smoothed along both axes."""
        from scipy import ndimage

        for direction in (0, 1):
            grey = ndimage.gaussian_filter1d(
                grey, self.sigma, direction, order=int(direction == axis), mode="nearest", truncate=TRUNCATE
            )
        return grey


def _is_ridge(height: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Where `height` is largest along its gradient; of two equal neighbours, the first."""
    padded = np.pad(height, 1)
    rows, columns = height.shape
    octant = np.rint(np.arctan2(down, across) / (np.pi / 4)).astype(int) % 4
    ridge = np.zeros(height.shape, bool)
    for i, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]
        behind = padded[1 - dy : 1 - dy + rows, 1 - dx : 1 - dx + columns]
        # A step between two pixels gives two slopes that are equal up to rounding.
        ridge |= (octant == i) & (height >= ahead - 1e-9) & (height > behind + 1e-9)
    return ridge


def luma(image: ImageArray) -> UInt8[np.ndarray, "height width"]:
    """Luma of ITU-R BT.601 of a grey or RGB image.

    Raises:
      UserError: the image has another number of channels.
    """
    from PIL import Image

    expect(image.shape[2] in (1, 3), "image", image.shape, "a grey or RGB image", "select 1 or 3 channels")
    return image[..., 0] if image.shape[2] == 1 else np.asarray(Image.fromarray(image).convert("L"))


def _bytes(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(levels), 0, LEVELS).astype(np.uint8)


def _check_range(field: str, value: tuple, least: float, most: float) -> None:
    fits = len(value) == 2 and least <= value[0] <= value[1] <= most
    expected = f"a range (lowest, highest) within [{least:g}, {most:g}]"
    expect(fits, field, value, expected, "give two numbers in order")
