"""Latents: images, diffused in the latent space of a frozen autoencoder (Rombach et al. 2022)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from jaxdiff.codecs.pixels import Pixels, to_floats
from jaxdiff.codecs.posterior import Posterior
from jaxdiff.codecs.protocol import Shape
from jaxdiff.codecs.tiling import Tiles, by_slices, by_tiles
from jaxdiff.errors import expect, finite, one_of, positive
from jaxdiff.trees import check_like, with_dtype
from jaxdiff.typing import Array, Keys, Params, Stored, Weights, dtype_of

NAME, STATISTICS = "autoencoder", "latent_statistics"
"""The names of the network and of measured statistics among a task's frozen networks."""


@runtime_checkable
class Autoencoder(Protocol):
    """A Linen module from images to moments of a posterior of latents, and back: `AutoencoderKL`, `AutoencoderTiny`."""

    dtype: str
    latent_channels: int
    image_channels: int

    @property
    def factor(self) -> int:
        """Pixels along the side of one latent."""
        ...

    def moments(self, x: Any) -> Any:
        """What tiles are blended in: an array from which `posterior` makes the posterior."""
        ...

    def posterior(self, moments: Any) -> tuple[Any, Any]:
        """Mean and log-variance in float32; a pure function that needs no parameters."""
        ...

    def decode(self, z: Any) -> Any:
        """Images near [-1, 1]."""
        ...


@dataclasses.dataclass(frozen=True)
class Latent(Pixels):
    """Latents of uint8 images, shifted and scaled: ``x_0 = (z - shift) scale / std``.

    Attributes:
      network: the autoencoder.
      weights: the origin of its parameters.
      scaling_factor: brings latents to unit variance: 0.18215 for Stable Diffusion 1 and 2, 0.13025 for SDXL, and 1 for
        TAESD.
      shift_factor: subtracted from latents before they are scaled; 0.0609 for Stable Diffusion 3.
      latents_mean: the mean of each channel, instead of `shift_factor`.
      latents_std: the standard deviation of each channel, together with `latents_mean`.
      statistics: the origin of both, instead: a tree of ``mean`` and ``std``, such as
        `jaxdiff.runs.latent_statistics.MeasuredLatents`.
      posterior: encode by the posterior's "mode", or "sample" from it.
      force_upcast: compute in float32 where the network's dtype is float16, whose range the features of SDXL's decoder
        exceed. Other dtypes stay.
      slices: images of the global batch that are encoded or decoded at a time; all if None.
      tiles: the tiles in which larger images are encoded and decoded; None for whole images.
    """

    precomputed_by: ClassVar[tuple[str, ...]] = ("network", "force_upcast", "tiles")

    network: Autoencoder
    weights: Weights
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    posterior: str = "sample"
    force_upcast: bool = True
    slices: int | None = None
    tiles: Tiles | None = None
    statistics: Weights | None = None

    def __post_init__(self):
        positive(self, "scaling_factor", "slices")
        finite(self, "shift_factor", "latents_mean", "latents_std")
        one_of(self, "posterior", ("mode", "sample"))
        self._check_statistics()
        if self.tiles is not None:
            self.tiles.check(self.network.factor)

    @property
    def frozen(self) -> Mapping[str, Weights]:
        measured = {} if self.statistics is None else {STATISTICS: self.statistics}
        return FrozenDict({NAME: self.weights, **measured})

    def frozen_shapes(self) -> Mapping[str, Params]:
        channels = jax.ShapeDtypeStruct((self.network.latent_channels,), jnp.float32)
        measured = {} if self.statistics is None else {STATISTICS: {"mean": channels, "std": channels}}
        shapes, dtype = parameter_shapes(self.network), dtype_of(self.weights)
        return {NAME: jax.eval_shape(lambda tree: with_dtype(tree, dtype), shapes), **measured}

    def data_shape(self, stored_shape: Shape) -> Shape:
        height, width, channels = super().data_shape(stored_shape)
        factor, expected = self.network.factor, self.network.image_channels
        whole = height > 0 and width > 0 and height % factor == width % factor == 0
        fix = "resize or crop the images to such sides"
        expect(whole, "image_shape", stored_shape, f"sides that are multiples of {factor}", fix)
        fix = "convert the images, or use an autoencoder for them"
        expect(channels == expected, "image_shape", stored_shape, f"{expected} channels", fix)
        return height // factor, width // factor, self.network.latent_channels

    def precompute(self, frozen: Mapping[str, Params], stored: Stored | Posterior) -> Posterior:
        """The posteriors of images. Given posteriors stay as they are, in float32.

        Raises:
          UserError: the parameters are not those of the network.
        """
        if isinstance(stored, Posterior):
            return stored.float32()
        return self._posterior(frozen, to_floats(stored))

    def encode(self, frozen: Mapping[str, Params], stored: Stored | Posterior, keys: Keys) -> Array:
        """Latents [batch, height / factor, width / factor, latent_channels] of images or of their posteriors, scaled
        for diffusion.

        Raises:
          UserError: the parameters are not those of the network.
        """
        posterior = self.precompute(frozen, stored)
        z = posterior.mean if self.posterior == "mode" else posterior.sample(keys)
        return self.scaled(z, frozen)

    def latents(self, frozen: Mapping[str, Params], x: Array) -> Array:
        """The modes of the posteriors of images in [-1, 1], neither shifted nor scaled; shaped as those of `encode`.

        Raises:
          UserError: the parameters are not those of the network.
        """
        return self._posterior(frozen, x).mean

    def decode(self, frozen: Mapping[str, Params], x_0: Array) -> Array:
        """Images [batch, height, width, image_channels] near [-1, 1] of scaled latents.

        Raises:
          UserError: the parameters are not those of the network.
        """
        z = self.unscaled(x_0.astype(jnp.float32), frozen)
        return self._run("decode", frozen, z, self.network.factor, 1).astype(jnp.float32)

    def scaled(self, z: Array, frozen: Mapping[str, Params] = FrozenDict()) -> Array:
        """The data of latents: shifted and scaled."""
        shift, std = self._shift_and_std(frozen)
        scaled = (z - shift) * self.scaling_factor
        return scaled if std is None else scaled / std

    def unscaled(self, x_0: Array, frozen: Mapping[str, Params] = FrozenDict()) -> Array:
        """The latents of data; the inverse of `scaled`."""
        shift, std = self._shift_and_std(frozen)
        z = x_0 if std is None else x_0 * std
        return z / self.scaling_factor + shift

    def _shift_and_std(self, frozen: Mapping[str, Params]) -> tuple[Array, Array | None]:
        """The shift and the standard deviation of each channel, or numbers for all; None for a deviation of 1."""
        mean, std = self.latents_mean, self.latents_std
        if self.statistics is not None:
            mean, std = (frozen[STATISTICS][name] for name in ("mean", "std"))
        shift = _of_channels((self.shift_factor,) if mean is None else mean)
        return shift, None if std is None else _of_channels(std)

    def _posterior(self, frozen: Mapping[str, Params], x: Array) -> Posterior:
        moments = self._run("moments", frozen, x.astype(jnp.float32), 1, self.network.factor)
        return Posterior(*self.network.posterior(moments))

    def _run(self, method: str, frozen: Mapping[str, Params], x: Array, up: int, down: int) -> Array:
        """A method of the network that enlarges sides by ``up / down``, in slices and tiles."""
        network, params = self._network, frozen[NAME]
        expected, fix = parameter_shapes(self.network), "give the weights of this network"
        check_like("config.task.codec.weights", expected, params, fix, types=False)

        def whole(part: Array) -> Array:
            return network.apply({"params": params}, part, method=method)

        if self.tiles is None:
            return by_slices(whole, x, self.slices)
        # Sides of tiles are given in pixels; if `up` is the factor, `x` holds latents.
        tile, shared = self.tiles.size // up, round(self.tiles.shared) // up
        tiled = functools.partial(by_tiles, whole, tile=tile, shared=shared, scale=up / down)
        return by_slices(tiled, x, self.slices)

    @property
    def _network(self) -> Any:
        network: Any = self.network
        upcast = self.force_upcast and network.dtype == "float16"
        return network.clone(dtype="float32") if upcast else network

    def _check_statistics(self) -> None:
        mean, std, channels = self.latents_mean, self.latents_std, self.network.latent_channels
        fix = "give both, or neither"
        expect((mean is None) == (std is None), "latents_std", std, "latents_mean and latents_std", fix)
        for name, numbers in (("latents_mean", mean), ("latents_std", std)):
            fits = numbers is None or len(numbers) == channels
            expect(
                fits, name, numbers, f"a number for each of {channels} channels", f"give {channels} numbers"
            )
        fix = "give positive numbers"
        expect(std is None or min(std) > 0, "latents_std", std, "numbers > 0", fix)
        fix = "set one of them"
        one = (mean is None and self.statistics is None) or self.shift_factor == 0
        expect(one, "shift_factor", self.shift_factor, "either shift_factor or latents_mean", fix)
        measured = self.statistics is None or mean is None
        expect(measured, "statistics", self.statistics, "either statistics or latents_mean", fix)


def _of_channels(numbers: Any) -> Array:
    return jnp.asarray(numbers, jnp.float32)[None, None, None]


@functools.cache
def parameter_shapes(network: Any) -> Params:
    """The tree of shapes and types of the parameters of an `Autoencoder`."""
    side = network.factor
    x = jax.ShapeDtypeStruct((1, side, side, network.image_channels), jnp.float32)
    return nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), x))["params"]
