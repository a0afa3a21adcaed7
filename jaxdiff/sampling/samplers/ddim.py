"""DDIM, and the ancestral Euler method, which is the same step."""

import dataclasses

from jaxdiff.errors import between
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.base import SingleCall
from jaxdiff.sampling.protocols import SamplerState
from jaxdiff.sampling.samplers.exponential import renew
from jaxdiff.typing import Keys, Scalar


@dataclasses.dataclass(frozen=True)
class Ddim(SingleCall):
    """DDIM: diffuses the predicted pair again to the next noise level (Song et al. 2021, equation 12).

    Attributes:
      eta: fraction of fresh noise. 0 is deterministic; 1 draws from the posterior of ``x_next`` given ``x_t`` and the
        predicted x_0: DDPM's ancestral sampling with the smaller variance.
    """

    eta: float = 0.0

    def __post_init__(self):
        between(self, "eta", 0.0, 1.0)

    @property
    def draws(self) -> bool:
        return self.eta > 0

    def update(
        self,
        prediction: Prediction,
        process: Process,
        state: SamplerState,
        t: Scalar,
        t_next: Scalar,
        keys: Keys,
    ) -> SamplerState:
        (alpha, sigma), _, fresh = renew(process, t, t_next, self.eta)
        x = alpha * prediction.x_0 + sigma * prediction.noise
        return SamplerState(x + fresh * state.fresh(keys) if self.eta > 0 else x)


@dataclasses.dataclass(frozen=True)
class EulerAncestral(SingleCall):
    """Euler ancestral: an Euler step to below the next noise level, and fresh noise up to it (k-diffusion).

    The same step as `Ddim`.

    Attributes:
      eta: fraction of fresh noise.
      noise_scale: standard deviation of the fresh noise. Away from 1 the noise level is no longer the one that the
        denoiser is called with.
    """

    eta: float = 1.0
    noise_scale: float = 1.0

    def __post_init__(self):
        between(self, "eta", 0.0, 1.0)

    @property
    def draws(self) -> bool:
        return self.eta > 0

    def update(
        self,
        prediction: Prediction,
        process: Process,
        state: SamplerState,
        t: Scalar,
        t_next: Scalar,
        keys: Keys,
    ) -> SamplerState:
        (alpha, sigma), _, fresh = renew(process, t, t_next, self.eta)
        x = alpha * prediction.x_0 + sigma * prediction.noise
        return SamplerState(x + self.noise_scale * fresh * state.fresh(keys))
