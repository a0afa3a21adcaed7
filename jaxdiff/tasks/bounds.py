"""Variational bounds as objectives: bits per dimension of an example, or a part of them."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import expect, positive
from jaxdiff.likelihood.variational import Decoder, NormalDecoder, prior_bits, step_bits
from jaxdiff.process.gaussian import expand
from jaxdiff.process.per_example import mean_per_example
from jaxdiff.process.prediction import Noise, Prediction
from jaxdiff.process.time_sampling import TimeSampler
from jaxdiff.tasks.objectives import LossInputs, Objective, WeightedError
from jaxdiff.typing import Array, Data, Float, Key, Metrics, Weights

LEVELS = 256


@dataclasses.dataclass(frozen=True)
class Vlb(Objective):
    """The bound of a model with T steps, in bits per dimension: T times the term of one step, plus the prior's.

    Its mean over examples and over the T times is the full bound (Ho et al. 2020, equation 5), so the time sampler
    must sample steps: `UniformSteps`, perhaps under `Importance`, since the terms are very unequal (Nichol & Dhariwal
    2021, section 3.3). Minus the prior's term, it is guided-diffusion's RESCALED_KL, and T times its KL.

    Attributes:
      decoder: the distribution of the levels at the first step.
    """

    decoder: Decoder = NormalDecoder()

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        bits = _all_steps(inputs, inputs.prediction(), self.decoder)
        prior = prior_bits(inputs.process, inputs.x_0)
        return bits + prior, {"prior_bits": jnp.mean(prior)}

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        _expect_steps(time_sampler)


@dataclasses.dataclass(frozen=True)
class Hybrid(Objective):
    """``L_simple + weight L_vlb`` for a learned variance (Nichol & Dhariwal 2021, equation 16).

    The bound trains the variance only: no gradient passes through the mean in it. guided-diffusion's RESCALED_MSE has
    the default weight of 1 / 1000, its MSE a weight of 1 / T.

    Attributes:
      simple: trains the mean.
      weight: of the bound (without the prior's term), in bits per dimension.
      decoder: the distribution of the levels at the first step.
    """

    simple: Objective = WeightedError()
    weight: float = 0.001
    decoder: Decoder = NormalDecoder()

    def __post_init__(self):
        positive(self, "weight")

    @property
    def frozen(self) -> Mapping[str, Weights]:
        return self.simple.frozen

    @property
    def added(self) -> frozenset[str]:
        return self.simple.added

    def draw(self, key: Key[Array, ""], batch: int) -> Mapping[str, Array]:
        return self.simple.draw(key, batch)

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        losses, metrics = self.simple(inputs)
        x_0, noise, fraction = inputs.prediction()
        expect(fraction is not None, "parameterization", inputs.parameterization, "a learned variance",
               "wrap it into LearnedVariance")  # fmt: skip
        frozen = Prediction(*jax.lax.stop_gradient((x_0, noise)), fraction)
        bits = _all_steps(inputs, frozen, self.decoder)
        return losses + self.weight * bits, {**metrics, "bits": jnp.mean(bits)}

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        _expect_steps(time_sampler)
        self.simple.check(denoiser, time_sampler)


@dataclasses.dataclass(frozen=True)
class SoftmaxDecoder(Decoder):
    """``p(x_0) ~ N(mean; x_0, std^2)``, normalised over the 256 levels (Kingma et al. 2021, section 3.3)."""

    def __call__(self, x_0: Data, mean: Data, std: Float[Array, "batch *#data"]) -> Data:
        def log_density(level: Float[Array, "..."]) -> Float[Array, "..."]:
            return -jnp.square((level - mean[..., None]) / std[..., None]) / 2

        levels = jnp.linspace(-1, 1, LEVELS, dtype=mean.dtype).reshape((1,) * mean.ndim + (-1,))
        return log_density(x_0[..., None])[..., 0] - jax.nn.logsumexp(log_density(levels), axis=-1)


@dataclasses.dataclass(frozen=True)
class ContinuousVlb(Objective):
    """The bound of a model with infinitely many steps, in bits per dimension (Kingma et al. 2021, "VDM").

    The diffusion term is ``-1/2 d log-SNR / dt |noise error|^2`` (equations 16 and 17), averaged over uniform t.
    Any other distribution of times gives the same integral, with d / du instead of d / dt. The decoder's and the
    prior's term are taken at its first and last time, so it should reach from hardly any noise to hardly any signal,
    and the log-SNR must be finite there. The decoder's term uses the same noise. All terms are differentiated through
    a learned process.

    Attributes:
      decoder: the distribution of the levels, given the example with the least noise.
    """

    decoder: Decoder = SoftmaxDecoder()

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        process, x_0 = inputs.process, inputs.x_0

        def log_snr(u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
            return process.log_snr(inputs.time_sampler.quantile(u, process))

        _, rate = jax.jvp(log_snr, (inputs.u,), (jnp.ones_like(inputs.u),))
        error = mean_per_example(jnp.square(inputs.error(Noise())))
        first, last = log_snr(jnp.array([0.0, 1.0], inputs.u.dtype))
        std = expand(jnp.exp(-first / 2) * jnp.ones_like(inputs.u), x_0)
        terms = {
            "diffusion_bits": -rate * error / 2,
            "prior_bits": mean_per_example(jnp.exp(last) * jnp.square(x_0) / 2),
            "reconstruction_bits": -mean_per_example(self.decoder(x_0, x_0 + std * inputs.noise, std)),
        }
        bits = {name: value / math.log(2) for name, value in terms.items()}
        total = jnp.sum(jnp.stack([*bits.values()]), axis=0)
        return total, {name: jnp.mean(value) for name, value in bits.items()}

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        expect(time_sampler.steps is None, "time_sampler", time_sampler, "continuous times, over which the bound is an "
               "integral", "use Uniform")  # fmt: skip


def _all_steps(inputs: LossInputs, prediction: Prediction, decoder: Decoder) -> Float[Array, "batch"]:
    """T times the term of each example's step: its mean over the steps is their sum."""
    steps = inputs.time_sampler.steps
    assert steps is not None  # guaranteed by `check`
    return steps * step_bits(
        inputs.process, steps, inputs.t, inputs.x_0, inputs.x_t, prediction, decoder=decoder
    )


def _expect_steps(time_sampler: TimeSampler) -> None:
    expect(time_sampler.steps is not None, "time_sampler", time_sampler, "discrete steps, since the bound is a sum",
           "use UniformSteps")  # fmt: skip
