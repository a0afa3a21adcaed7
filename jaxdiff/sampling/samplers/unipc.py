"""UniPC, the unified predictor-corrector method."""

import dataclasses

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.loop import DenoiseFn, SamplerState
from jaxdiff.sampling.samplers.exponential import require_integrand
from jaxdiff.sampling.samplers.sa_solver import SaSolver
from jaxdiff.typing import Images, Keys, Scalar

VARIANTS = ("bh1", "bh2")


@dataclasses.dataclass(frozen=True)
class UniPc:
    """UniPC-p, of order p + 1 at one call a step; without the corrector UniP-p, of order p.

    Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models".

    It is `SaSolver` without noise, where the corrector has one prediction more than the predictor. The first step has
    no past, and can be mended by a line only. That is one error of third order, which is small where the first step
    is, or, for x_0, where it begins with so much noise that the predicted image hardly changes.

    Attributes:
      order: p, from 1 to 3.
      variant: their B(h): "bh1" is h, "bh2" is exp(h) - 1. It makes a difference only where a polynomial goes through
        two predictions: in the first steps, in the predictor of order 2 and the corrector of order 1.
      corrector: whether each step begins by mending the last one.
      integrand: what is interpolated, the predicted "x_0" or "noise".
    """

    order: int = 2
    variant: str = "bh2"
    corrector: bool = True
    integrand: str = "x_0"

    def __post_init__(self):
        require(1 <= self.order <= 3, "order", self.order, "there is none such", "give 1, 2 or 3")
        require(self.variant in VARIANTS, "variant", self.variant, "no such B(h)", "give 'bh1' or 'bh2'")
        require_integrand(self.integrand)

    def calls(self, steps: int) -> int:
        return steps

    def init(self, x: Images) -> SamplerState:
        return self._solver().init(x)

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        return self._solver().step(denoise, process, state, t, t_next, keys)

    def _solver(self) -> SaSolver:
        corrector = self.order + 1 if self.corrector else 0
        return SaSolver(self.order, corrector, tau=0.0, integrand=self.integrand, rule=self.variant)
