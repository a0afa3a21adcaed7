"""DDIM, and DDPM's ancestral sampling as its stochastic end."""

import dataclasses

import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.loop import DenoiseFn, State, noise_like
from jaxdiff.typing import Images, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class Ddim:
    """Denoise, then diffuse the predicted pair again to the next noise level (Song et al. 2021, equation 12).

    Attributes:
      eta: how much of the noise is fresh. 0 is deterministic; 1 draws from the posterior of ``x_next`` given
        ``x_t`` and the predicted image: DDPM's ancestral sampling with the smaller variance.
    """

    eta: float = 0.0

    def __post_init__(self):
        require(
            0 <= self.eta <= 1, "eta", self.eta, "it is a share of the noise", "give a number from 0 to 1"
        )

    def calls(self, steps: int) -> int:
        return steps

    def init(self, x: Images) -> State:
        return State(x)

    def step(
        self, denoise: DenoiseFn, process: Process, state: State, t: Scalar, t_next: Scalar, keys: Keys
    ) -> State:
        x_0, noise, _ = denoise(state.x, t)
        alpha, sigma = process.signal(t_next)
        if self.eta == 0:
            return State(alpha * x_0 + sigma * noise)
        # The posterior's variance is sigma_next^2 (1 - SNR_t / SNR_next); expm1 keeps it exact for small
        # steps.
        fresh = -(self.eta**2) * jnp.expm1(process.log_snr(t) - process.log_snr(t_next))
        mean = alpha * x_0 + sigma * jnp.sqrt(1 - fresh) * noise
        return State(mean + sigma * jnp.sqrt(fresh) * noise_like(keys, state.x))
