"""DDPM's ancestral sampling, with its three choices of variance."""

import dataclasses

import jax.numpy as jnp

from jaxdiff.errors import UserError, require
from jaxdiff.process import transition
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.loop import DenoiseFn, SamplerState, noise_like
from jaxdiff.typing import Array, Float, Images, Keys, Scalar

FRACTIONS = {"small": 0.0, "large": 1.0}


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """Draw from the reverse step ``N(mean, variance)``, whose mean is the posterior's at the predicted image.

    Ho et al. 2020, algorithm 2, between any two times; on a grid of fewer steps it is the respaced process of Nichol &
    Dhariwal 2021.

    Attributes:
      variance: "small" is the posterior's, which is right for data without spread, "large" that of the forward step,
        DDPM's beta, which is right for data of unit variance; "learned" is the model's own between the two (equation 15
        of the latter).
    """

    variance: str = "small"

    def __post_init__(self):
        require(
            self.variance in (*FRACTIONS, "learned"), "variance", self.variance, "no such choice",
            "give 'small', 'large' or 'learned'",
        )  # fmt: skip

    def calls(self, steps: int) -> int:
        return steps

    def init(self, x: Images) -> SamplerState:
        return SamplerState(x)

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        prediction = denoise(state.x, t)
        std = jnp.exp(transition.reverse_log_variance(process, t_next, t, self._fraction(prediction)) / 2)
        mean = transition.posterior_mean(process, t_next, t, prediction.x_0, prediction.noise)
        return SamplerState(mean + std * noise_like(keys, mean))

    def _fraction(self, prediction: Prediction) -> Float[Array, "..."]:
        """Where the variance lies between its two bounds."""
        if self.variance != "learned":
            return jnp.asarray(FRACTIONS[self.variance], prediction.x_0.dtype)
        if prediction.variance_fraction is None:
            raise UserError("variance='learned': the model has learned none. Fix: give 'small' or 'large'")
        return prediction.variance_fraction
