"""Variational bounds as objectives: the bits that a model needs for an image, or part of them."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import require
from jaxdiff.likelihood.variational import Decoder, NormalDecoder, prior_bits, step_bits
from jaxdiff.process.prediction import Noise, Prediction
from jaxdiff.process.time_sampling import TimeSampler
from jaxdiff.tasks.objectives import LossInputs, Objective, WeightedError
from jaxdiff.typing import Array, Float, Images, Metrics

LEVELS = 256


@dataclasses.dataclass(frozen=True)
class Vlb(Objective):
    """The bound of a model with T steps, in bits per dimension: T times the term of one step, and the prior's.

    Its mean over images and over the T times is the whole bound (Ho et al. 2020, equation 5), so the law of times
    must be on the steps: `UniformSteps`, perhaps under `Importance`, as the terms are very unequal (Nichol & Dhariwal
    2021, section 3.3). Less the prior's, it is guided-diffusion's RESCALED_KL, and T times its KL.

    Attributes:
      decoder: the law of the levels at the first step.
    """

    decoder: Decoder = NormalDecoder()

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        bits = _all_steps(inputs, inputs.prediction(), self.decoder)
        prior = prior_bits(inputs.process, inputs.x_0)
        return bits + prior, {"prior_bits": jnp.mean(prior)}

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        _require_steps(times)


@dataclasses.dataclass(frozen=True)
class Hybrid(Objective):
    """``L_simple + weight L_vlb`` for a learned variance (Nichol & Dhariwal 2021, equation 16).

    The bound teaches the variance only: the mean in it passes no gradient. guided-diffusion's RESCALED_MSE has
    the default weight of 1 / 1000, its MSE a weight of 1 / T.

    Attributes:
      simple: teaches the mean.
      weight: of the bound (without the prior's term), in bits per dimension.
      decoder: the law of the levels at the first step.
    """

    simple: Objective = WeightedError()
    weight: float = 0.001
    decoder: Decoder = NormalDecoder()

    def __post_init__(self):
        require(self.weight > 0, "weight", self.weight, "the variance would learn nothing", "try 0.001")

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        losses, metrics = self.simple(inputs)
        x_0, noise, fraction = inputs.prediction()
        require(fraction is not None, "parameterization", inputs.parameterization,
                "the bound teaches nothing but a variance", "wrap it into LearnedVariance")  # fmt: skip
        frozen = Prediction(*jax.lax.stop_gradient((x_0, noise)), fraction)
        bits = _all_steps(inputs, frozen, self.decoder)
        return losses + self.weight * bits, {**metrics, "bits": jnp.mean(bits)}

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        _require_steps(times)
        self.simple.check(denoiser, times)


@dataclasses.dataclass(frozen=True)
class SoftmaxDecoder(Decoder):
    """``p(x_0) ~ N(mean; x_0, std^2)``, normalised over the 256 levels (Kingma et al. 2021, section 3.3)."""

    def __call__(
        self, x_0: Images, mean: Images, std: Float[Array, "batch #height #width #channels"]
    ) -> Images:
        def log_density(level: Float[Array, "..."]) -> Float[Array, "..."]:
            return -jnp.square((level - mean[..., None]) / std[..., None]) / 2

        levels = jnp.linspace(-1, 1, LEVELS, dtype=mean.dtype).reshape(1, 1, 1, 1, -1)
        return log_density(x_0[..., None])[..., 0] - jax.nn.logsumexp(log_density(levels), axis=-1)


@dataclasses.dataclass(frozen=True)
class ContinuousVlb(Objective):
    """The bound of a model with infinitely many steps, in bits per dimension (Kingma et al. 2021, "VDM").

    The diffusion term is ``-1/2 d log-SNR / dt |noise error|^2`` (equations 16 and 17), in the mean over uniform t.
    Any other law of times gives the same integral, with d / du in the place of d / dt; the decoder's and the prior's
    term are taken at its first and last time, so it should reach from hardly any noise to hardly any image, and the
    log-SNR must be finite there. The noise of an image serves the decoder's term too. All terms are differentiated
    through the process, if that is learned.

    Attributes:
      decoder: the law of the levels, given the image with the least noise.
    """

    decoder: Decoder = SoftmaxDecoder()

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        process, x_0 = inputs.process, inputs.x_0

        def log_snr(u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
            return process.log_snr(inputs.time_sampler.quantile(u, process))

        _, rate = jax.jvp(log_snr, (inputs.u,), (jnp.ones_like(inputs.u),))
        error = _mean(jnp.square(inputs.error(Noise())))
        first, last = log_snr(jnp.array([0.0, 1.0], inputs.u.dtype))
        std = jnp.exp(-first / 2) * jnp.ones_like(x_0[:, :1, :1, :1])
        terms = {
            "diffusion_bits": -rate * error / 2,
            "prior_bits": _mean(jnp.exp(last) * jnp.square(x_0) / 2),
            "reconstruction_bits": -_mean(self.decoder(x_0, x_0 + std * inputs.noise, std)),
        }
        bits = {name: value / math.log(2) for name, value in terms.items()}
        total = jnp.sum(jnp.stack([*bits.values()]), axis=0)
        return total, {name: jnp.mean(value) for name, value in bits.items()}

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        require(times.steps is None, "times", times, "the bound is an integral over all times", "use Uniform")


def _all_steps(inputs: LossInputs, prediction: Prediction, decoder: Decoder) -> Float[Array, "batch"]:
    """T times the term of each image's step: in the mean over the steps, their sum."""
    steps = inputs.time_sampler.steps
    assert steps is not None  # `check` has seen to it
    return steps * step_bits(
        inputs.process, steps, inputs.t, inputs.x_0, inputs.x_t, prediction, decoder=decoder
    )


def _require_steps(time_sampler: TimeSampler) -> None:
    require(times.steps is not None, "times", times, "the bound is a sum over the steps of a model",
            "use UniformSteps")  # fmt: skip


def _mean(values: Images) -> Float[Array, "batch"]:
    return jnp.mean(values, axis=(1, 2, 3))
