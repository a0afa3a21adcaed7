"""UniPC, the unified predictor-corrector method."""

import dataclasses

from jaxdiff.errors import one_of
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.base import SingleCall
from jaxdiff.sampling.protocols import SamplerState
from jaxdiff.sampling.samplers.exponential import INTEGRANDS
from jaxdiff.sampling.samplers.sa_solver import SaSolver
from jaxdiff.typing import Data, Keys, Scalar

VARIANTS = ("bh1", "bh2")


@dataclasses.dataclass(frozen=True)
class UniPc(SingleCall):
    """UniPC-p: order p + 1 at one call per step; without the corrector UniP-p, of order p.

    Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models".

    It is `SaSolver` without noise, whose corrector uses one prediction more than the predictor. The first step has no
    history, and can be corrected by a line only. That is one error of third order, which is small where the first step
    is, or, for x_0, where it begins with so much noise that the predicted x_0 hardly changes.

    Attributes:
      order: p, from 1 to 3.
      variant: their B(h): "bh1" is h, "bh2" is exp(h) - 1. It makes a difference only where a polynomial goes through
        two predictions: in the first steps, in the predictor of order 2 and the corrector of order 1.
      corrector: whether each step begins by correcting the last one.
      integrand: the interpolated quantity, "x_0" or "noise".
    """

    order: int = 2
    variant: str = "bh2"
    corrector: bool = True
    integrand: str = "x_0"

    def __post_init__(self):
        one_of(self, "order", (1, 2, 3))
        one_of(self, "variant", VARIANTS)
        one_of(self, "integrand", INTEGRANDS)

    def init(self, x: Data) -> SamplerState:
        return self._solver().init(x)

    def update(
        self,
        prediction: Prediction,
        process: Process,
        state: SamplerState,
        t: Scalar,
        t_next: Scalar,
        keys: Keys,
    ) -> SamplerState:
        return self._solver().update(prediction, process, state, t, t_next, keys)

    def _solver(self) -> SaSolver:
        corrector = self.order + 1 if self.corrector else 0
        return SaSolver(self.order, corrector, tau=0.0, integrand=self.integrand, rule=self.variant)
