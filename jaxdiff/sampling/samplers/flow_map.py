"""Sampling of flow maps: the model predicts where each step leads."""

import dataclasses

from jaxdiff.process.gaussian import Process, diffuse
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.base import SingleCall
from jaxdiff.sampling.protocols import SamplerState
from jaxdiff.typing import Keys, Scalar


@dataclasses.dataclass(frozen=True)
class FlowMap(SingleCall):
    """Steps of any length from t to r with one call each: ``x_r = x_t - (t - r) u(x_t, r, t)`` for a rectified flow
    (Geng et al. 2025, "Mean flows").

    For models that read the end of a step (`Conditioner.span`), trained with `jaxdiff.tasks.mean_flow`. The step is
    that of `Ddim`; what is exact is the prediction. The last one leads to clean data, so one step is one call.
    """

    @property
    def spans(self) -> bool:
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
        return SamplerState(diffuse(process, prediction.x_0, prediction.noise, t_next))
