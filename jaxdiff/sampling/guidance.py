"""Guidance: how conditional predictions become the one that a sampler follows."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.loop import ConditionalDenoise, Conditions, DenoiseFn
from jaxdiff.typing import Images, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class ClassifierFree:
    """``null + scale (conditional - null)`` (Ho & Salimans 2022, whose w is ``scale - 1``).

    Scale 1 is the conditional model and 0 the model without conditions, at the cost of one call; any other
    scale runs both in one call on a doubled batch.

    Attributes:
      scale: 1 is off.
      t_min, t_max: times between which guidance acts; outside, the conditional model is used alone
        (Kynkäänniemi et al. 2024). The default means always, also for processes whose time leaves [0, 1].
    """

    scale: float = 1.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self):
        why = f"it is not above t_min={self.t_min}"
        require(self.t_max > self.t_min, "t_max", self.t_max, why, "give a later time")

    def __call__(
        self,
        denoise: ConditionalDenoise,
        conditions: Conditions,
        keys: Keys,
        guide: ConditionalDenoise | None = None,
    ) -> DenoiseFn:
        batch = keys.shape[0]

        def conditional(x: Images, t: Scalar) -> Prediction:
            return denoise(x, t, conditions, dict.fromkeys(conditions, jnp.zeros(batch, bool)))

        def unconditional(x: Images, t: Scalar) -> Prediction:
            return denoise(x, t, conditions, dict.fromkeys(conditions, jnp.ones(batch, bool)))

        def combined(x: Images, t: Scalar) -> Prediction:
            # Each image stands beside its copy, so that a batch split over devices stays where it is.
            pairs = jax.tree.map(lambda value: jnp.repeat(value, 2, axis=0), (x, conditions))
            second = jnp.tile(jnp.array([False, True]), batch)
            both = denoise(pairs[0], t, pairs[1], dict.fromkeys(conditions, second))
            given, null = (jax.tree.map(lambda value, i=i: value[i::2], both) for i in (0, 1))
            return Prediction(
                null.x_0 + self.scale * (given.x_0 - null.x_0),
                null.noise + self.scale * (given.noise - null.noise),
                given.variance_fraction,  # the spread of the conditional model: there is nothing to extrapolate
            )

        if self.scale == 1:
            return conditional
        guided = unconditional if self.scale == 0 else combined
        if self.t_min <= 0 and self.t_max >= 1:
            return guided
        return lambda x, t: jax.lax.cond((t >= self.t_min) & (t <= self.t_max), guided, conditional, x, t)
