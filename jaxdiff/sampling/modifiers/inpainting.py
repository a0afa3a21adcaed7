"""Inpainting of partially known data, with a model that was not trained for it."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.protocols import GuidedDenoiser, Inpainting, KnownData
from jaxdiff.typing import Array, Bool, Data, Scalar


@dataclasses.dataclass(frozen=True)
class Replacement:
    """Replacement: the known part of ``x_t`` is the known data diffused to t (Song et al. 2021, section 5).

    Where the data are known, so is the prediction: ``x_0`` is the known value, and the noise is the rest of ``x_t``.
    The sampler does everything else, with the noise that it uses everywhere: a deterministic one keeps the noise of the
    first time, a stochastic one renews it by the posterior ``q(x_s | x_t, x_0)``, whose marginal at every time is that
    of "RePaint"'s equation 8 (Lugmayr et al. 2022). Known values are reproduced exactly. A sampler that adds more noise
    than the posterior has, such as `Ancestral("large")`, adds it to them too while it runs.

    The unknown part is predicted as if the known noise were its own, so that samples only approximate the conditional
    distribution. The grid `RePaint`, which repeats its steps, improves the approximation.
    """

    def data_mask(self, mask: Bool[Array, "batch height width _"], shape: tuple[int, ...]) -> Array:
        """Unknown is a value that any unknown pixel has a part in."""
        (rows, columns), (height, width) = shape[:2], mask.shape[1:3]
        blocks = mask.any(-1).reshape(mask.shape[0], rows, height // rows, columns, width // columns)
        return blocks.any(axis=(2, 4))[..., None]

    def start(self, x: Data, diffused: Data, mask: Bool[Array, "batch ..."]) -> Data:
        """Noise, and the known data diffused."""
        return jnp.where(mask, x, diffused)

    def from_data(self) -> Inpainting:
        """This method, which always starts so."""
        return self

    def __call__(self, denoise: GuidedDenoiser, process: Process, known: KnownData) -> GuidedDenoiser:
        def completed(prediction: Prediction, x: Data, t: Scalar) -> Prediction:
            alpha, sigma = process.signal(t)
            return _certain(prediction, known, (x - alpha * known.values) / sigma)

        return denoise.then(completed)


@dataclasses.dataclass(frozen=True)
class Blending:
    """Blending: whenever the model is called at time t, the known part of ``x_t`` is the known data diffused to t anew,
    always by the initial noise (Avrahami et al. 2023, "Blended Latent Diffusion").

    This is inpainting of diffusers with a model that was not trained for it, where "Blended Latent Diffusion" draws new
    noise in each step. With a deterministic sampler it differs from `Replacement` in two rules. The first step sees
    noise alone. And a latent is known if its first pixel is, at the top left.

    Attributes:
      from_noise: whether the first step sees noise alone; otherwise the known data diffused, as later steps.
    """

    from_noise: bool = True

    def data_mask(self, mask: Bool[Array, "batch height width _"], shape: tuple[int, ...]) -> Array:
        """Unknown is a value whose first pixel is."""
        (rows, columns), (height, width) = shape[:2], mask.shape[1:3]
        return mask.any(-1, keepdims=True)[:, :: height // rows, :: width // columns]

    def start(self, x: Data, diffused: Data, mask: Bool[Array, "batch ..."]) -> Data:
        """Noise alone, unless this is `from_data`."""
        return x if self.from_noise else jnp.where(mask, x, diffused)

    def from_data(self) -> Inpainting:
        """The same for samples that start from noisy data."""
        return Blending(from_noise=False)

    def __call__(self, denoise: GuidedDenoiser, process: Process, known: KnownData) -> GuidedDenoiser:
        noise = known.noise
        assert noise is not None  # the recipe sets it

        def call(x: Data, t: Scalar, state: Any) -> tuple[Prediction, Any]:
            own, first = state
            alpha, sigma = process.signal(t)
            diffused = alpha * known.values + sigma * noise
            prediction, own = denoise.call(jnp.where(known.mask | first, x, diffused), t, own)
            return _certain(prediction, known, noise), (own, jnp.zeros_like(first))

        return GuidedDenoiser(call, lambda x: (denoise.init(x), jnp.asarray(self.from_noise)))


def _certain(prediction: Prediction, known: KnownData, noise: Data) -> Prediction:
    """The prediction with the known values, and with this noise in them."""
    fraction = prediction.variance_fraction
    if fraction is not None:  # the posterior's variance, since x_0 is certain
        fraction = jnp.where(known.mask, fraction, 0.0)
    return Prediction(
        jnp.where(known.mask, prediction.x_0, known.values),
        jnp.where(known.mask, prediction.noise, noise),
        fraction,
    )
