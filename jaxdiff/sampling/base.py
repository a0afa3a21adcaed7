"""Base classes of samplers: a fixed number of calls per step, and one call per step."""

from typing import ClassVar

from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.protocols import Denoise, SamplerState
from jaxdiff.typing import Data, Keys, Scalar


class FixedCalls:
    """A sampler with a fixed number of calls per step and, unless `init` is overridden, no history."""

    calls_per_step: ClassVar[int] = 1

    def calls(self, steps: int) -> int:
        return self.calls_per_step * steps

    def init(self, x: Data) -> SamplerState:
        return SamplerState(x)


class SingleCall(FixedCalls):
    """A sampler that calls the denoiser once per step, at the data and time where the step begins."""

    def step(
        self, denoise: Denoise, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        prediction, guidance = denoise(state.x, t, state.guidance)
        return self.update(prediction, process, state, t, t_next, keys)._replace(guidance=guidance)

    def update(
        self,
        prediction: Prediction,
        process: Process,
        state: SamplerState,
        t: Scalar,
        t_next: Scalar,
        keys: Keys,
    ) -> SamplerState:
        """The data and history at t_next, from the prediction at t."""
        raise NotImplementedError
