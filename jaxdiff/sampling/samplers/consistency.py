"""Multistep sampling of consistency models."""

import dataclasses

from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.base import SingleCall
from jaxdiff.sampling.protocols import SamplerState
from jaxdiff.typing import Keys, Scalar


@dataclasses.dataclass(frozen=True)
class Consistency(SingleCall):
    """Diffuses the predicted data again with fresh noise alone (Song et al. 2023, "Consistency models", algorithm 1).

    For models whose prediction from any noise level is a sample, not a mean (`jaxdiff.tasks.consistency_models`). The
    noise of a step does not depend on that of the step before, so errors of the predicted noise do not add up.
    """

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
        alpha, sigma = process.signal(t_next)
        return SamplerState(alpha * prediction.x_0 + sigma * state.fresh(keys))
