"""DDIM, and the ancestral Euler method, which is the same step."""

import dataclasses

from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.loop import DenoiseFn, SamplerState, noise_like
from jaxdiff.sampling.samplers.exponential import renew, require_share
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
        require_share("eta", self.eta)

    def calls(self, steps: int) -> int:
        return steps

    def init(self, x: Images) -> SamplerState:
        return SamplerState(x)

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        x_0, noise, _ = denoise(state.x, t)
        (alpha, sigma), _, fresh = renew(process, t, t_next, self.eta)
        x = alpha * x_0 + sigma * noise
        return SamplerState(x + fresh * noise_like(keys, x) if self.eta > 0 else x)


@dataclasses.dataclass(frozen=True)
class EulerAncestral:
    """An Euler step to below the next noise level, and fresh noise up to it: `Ddim` under k-diffusion's name.

    Attributes:
      eta: the share of the noise that is fresh.
      noise_scale: standard deviation of the fresh noise; away from 1 the noise level is no longer the one that the
        denoiser is told.
    """

    eta: float = 1.0
    noise_scale: float = 1.0

    def __post_init__(self):
        require_share("eta", self.eta)

    def calls(self, steps: int) -> int:
        return steps

    def init(self, x: Images) -> SamplerState:
        return SamplerState(x)

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        x_0, noise, _ = denoise(state.x, t)
        (alpha, sigma), _, fresh = renew(process, t, t_next, self.eta)
        return SamplerState(
            alpha * x_0 + sigma * noise + self.noise_scale * fresh * noise_like(keys, state.x)
        )
