"""DDPM's ancestral sampling, with its three choices of variance."""

import dataclasses

import jax.numpy as jnp

from jaxdiff.errors import UserError, one_of
from jaxdiff.process import transition
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.base import SingleCall
from jaxdiff.sampling.protocols import SamplerState
from jaxdiff.typing import Array, Float, Keys, Scalar

FRACTIONS = {"small": 0.0, "large": 1.0}


@dataclasses.dataclass(frozen=True)
class Ancestral(SingleCall):
    """DDPM: draws from the reverse step ``N(mean, variance)``, with the posterior's mean at the predicted x_0.

    Ho et al. 2020, algorithm 2, between any two times; on a grid of fewer steps it is the respaced process of Nichol &
    Dhariwal 2021.

    Attributes:
      variance: "small" is the posterior's, exact for data without spread. "large" is that of the forward step, DDPM's
        beta, exact for data of unit variance. "learned" is the model's own between the two (equation 15 of the latter).
    """

    variance: str = "small"

    def __post_init__(self):
        one_of(self, "variance", (*FRACTIONS, "learned"))

    @property
    def draws(self) -> bool:
        return True

    def update(
        self,
        prediction: Prediction,
        process: Process,
        state: SamplerState,
        t: Scalar,
        t_next: Scalar,
        keys: Keys,
    ) -> SamplerState:
        std = jnp.exp(transition.reverse_log_variance(process, t_next, t, self._fraction(prediction)) / 2)
        mean = transition.posterior_mean(process, t_next, t, prediction.x_0, prediction.noise)
        return SamplerState(mean + std * state.fresh(keys))

    def _fraction(self, prediction: Prediction) -> Float[Array, "..."]:
        """Where the log-variance lies between its two bounds."""
        if self.variance != "learned":
            return jnp.asarray(FRACTIONS[self.variance], prediction.x_0.dtype)
        if prediction.variance_fraction is None:
            raise UserError(
                "variance='learned': expected a model with a learned variance, got one without. "
                "Fix: give 'small' or 'large'"
            )
        return prediction.variance_fraction
