"""Models with conditions, of Gaussian images, whose predictions are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.process.gaussian import RectifiedFlow
from tests.oracles import Gaussian

FLOW = RectifiedFlow()
T = 0.6
KEYS = jax.random.split(jax.random.key(0), 3)


def a_batch():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 1)))
    return x, {"mean": jnp.asarray([-1.0, 0.5, 2.0])}, jnp.asarray(T)


def oracle(mean, std, process=FLOW):
    return Gaussian(mean, std).denoiser(process)


def model(x, t, fields, drop):
    """Conditional N(condition, 0.4^2), unconditional N(0, 1)."""
    mean, std = jnp.where(drop["mean"], 0.0, fields["mean"]), jnp.where(drop["mean"], 1.0, 0.4)
    return oracle(mean[:, None, None, None], std[:, None, None, None])(x, t)


class Only:
    """A model that throws unless it is called with this `drop` for all of one plain batch."""

    def __init__(self, drop: bool):
        self.drop, self.calls = drop, 0

    def __call__(self, x, t, fields, drop):
        self.calls += 1
        if x.shape[0] != 3 or drop["mean"].tolist() != [self.drop] * 3:
            raise AssertionError("the other branch was called")
        return model(x, t, fields, drop)


def levels(*values):
    """Times of these noise levels sigma / alpha."""
    return [FLOW.time(-2 * jnp.log(jnp.asarray(value))) for value in values]
