"""Inversion: the noise that a deterministic sampler would make given images from."""

import dataclasses

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.loop import DenoiseFn, SamplerState, StatefulDenoiser, integrate
from jaxdiff.typing import Array, Float, Images, Keys, Scalar


def invert(
    denoise: DenoiseFn | StatefulDenoiser,
    process: Process,
    times: Float[Array, "times"],
    x: Images,
    keys: Keys,
    iterations: int = 0,
) -> Images:
    """Noisy images at ``times[0]`` from which `Ddim` comes to x at ``times[-1]`` (Song et al. 2021, section 4.3).

    `times` is a grid as samplers use it, falling. Clean images stand for those at its last time where that is nearly
    free of noise; multiply them with its alpha.

    Args:
      iterations: 0 asks for the noise where a step begins, and the way up and down again errs in first order of the
        step. Each iteration asks again where the step ends, one call more and one order better; it converges to the
        exact inverse of `Ddim` (Pan et al. 2023, "AIDI").
    """
    require(iterations >= 0, "iterations", iterations, "it is a count", "give 0 or more")
    return integrate(_Upwards(iterations), denoise, process, times[::-1], x, keys)


@dataclasses.dataclass(frozen=True)
class _Upwards:
    """The step from t up to t_next, which `Ddim` undoes: ``x_next = DDIM^-1(x)``, by fixed-point iteration."""

    iterations: int

    def calls(self, steps: int) -> int:
        return (1 + self.iterations) * steps

    def init(self, x: Images) -> SamplerState:
        return SamplerState(x)

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        (alpha, sigma), (alpha_next, sigma_next) = process.signal(t), process.signal(t_next)
        grow = alpha_next / alpha

        def up(noise: Images) -> Images:
            return grow * state.x + (sigma_next - grow * sigma) * noise

        x = up(denoise(state.x, t).noise)
        for _ in range(self.iterations):
            x = up(denoise(x, t_next).noise)
        return SamplerState(x)
