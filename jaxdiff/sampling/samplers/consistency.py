"""Multistep sampling of consistency models."""

import dataclasses

import jax.numpy as jnp

from jaxdiff.errors import between
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


@dataclasses.dataclass(frozen=True)
class TrajectoryConsistency(SingleCall):
    """Strategic stochastic sampling (Zheng et al. 2024, "Trajectory consistency distillation", algorithm 4).

    Diffuses the predicted pair to a model's step below the next one, as `Ddim` does, and from there to the next one
    with fresh noise.

    Attributes:
      gamma: how far below: the step is the next one times ``1 - gamma``, rounded down. 0 adds no noise; 1 replaces all
        of it. diffusers calls it eta.
      train_steps: T, number of steps of the model; step i is at time ``(i + 1) / T``.
    """

    gamma: float = 0.3
    train_steps: int = 1000

    def __post_init__(self):
        between(self, "gamma", 0.0, 1.0)

    @property
    def draws(self) -> bool:
        return self.gamma > 0

    def update(
        self,
        prediction: Prediction,
        process: Process,
        state: SamplerState,
        t: Scalar,
        t_next: Scalar,
        keys: Keys,
    ) -> SamplerState:
        index = jnp.round(t_next * self.train_steps) - 1
        below = (jnp.floor((1 - self.gamma) * index) + 1) / self.train_steps
        (alpha, sigma), (alpha_next, sigma_next) = process.signal(below), process.signal(t_next)
        x = alpha * prediction.x_0 + sigma * prediction.noise
        if self.gamma == 0:
            return SamplerState(x)
        kept = alpha_next / alpha
        fresh = jnp.sqrt(jnp.maximum(sigma_next**2 - (kept * sigma) ** 2, 0))
        return SamplerState(kept * x + fresh * state.fresh(keys))
