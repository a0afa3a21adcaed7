"""DDIM inversion: the noise from which a deterministic sampler generates given data."""

import dataclasses
from typing import Any

from jaxdiff.errors import expect
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.loop import integrate
from jaxdiff.sampling.protocols import Denoise, DenoiseFn, GuidedDenoiser, SamplerState
from jaxdiff.typing import Array, Data, Float, Keys, Scalar


def invert(
    denoise: DenoiseFn | GuidedDenoiser,
    process: Process,
    times: Float[Array, "times"],
    x: Data,
    keys: Keys,
    iterations: int = 0,
) -> Data:
    """Noisy data at ``times[0]`` from which `Ddim` reaches x at ``times[-1]`` (Song et al. 2021, section 4.3).

    Args:
      denoise, process: the model and its noise process.
      times: a sampler's grid, decreasing.
      x: data at ``times[-1]``. Where that time is nearly free of noise, clean data times its alpha can be used.
      keys: one per example.
      iterations: fixed-point iterations per step. With 0 the noise is predicted where a step begins, and the error of
        the round trip is of first order in the step size. Each iteration predicts it again where the step ends, at one
        more call and one more order; it converges to the exact inverse of `Ddim` (Pan et al. 2023, "AIDI").
    """
    expect(iterations >= 0, "iterations", iterations, "a count >= 0", "give 0 or more")
    return integrate(_Upwards(iterations), denoise, process, times[::-1], x, keys)


@dataclasses.dataclass(frozen=True)
class _Upwards:
    """The step from t up to t_next that `Ddim` inverts: ``x_next = DDIM^-1(x)``, by fixed-point iteration."""

    iterations: int

    def init(self, x: Data) -> SamplerState:
        return SamplerState(x)

    def step(
        self, denoise: Denoise, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        (alpha, sigma), (alpha_next, sigma_next) = process.signal(t), process.signal(t_next)
        growth = alpha_next / alpha

        def up(called: tuple[Prediction, Any]) -> tuple[Data, Any]:
            prediction, guidance = called
            return growth * state.x + (sigma_next - growth * sigma) * prediction.noise, guidance

        x, guidance = up(denoise(state.x, t, state.guidance))
        for _ in range(self.iterations):
            x, guidance = up(denoise(x, t_next, guidance))
        return SamplerState(x, guidance=guidance)
