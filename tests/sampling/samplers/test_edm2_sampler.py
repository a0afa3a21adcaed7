"""EDM2's sampler on the exact denoiser of a Gaussian mixture: its own runs, with a guiding model and with churn."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.autoguidance import Autoguidance
from jaxdiff.sampling.samplers.heun import Heun
from tests.oracles import Mixture
from tests.sampling.solving import VE, walk

STORED = np.load(pathlib.Path(__file__).parents[2] / "goldens" / "edm2_averages.npz")


def model(name):
    mixture = Mixture(*(jnp.asarray(STORED[f"in/{name}_{part}"]) for part in ("weights", "means", "stds")))
    denoise = mixture.denoiser(VE)
    return lambda x, t, fields, drop: denoise(x, t)


def sample(sampler, grid, steps, scale=1.0):
    """All steps, and the jump to the clean image. The peer draws noise in steps that churn only, and we in all."""
    x = jnp.asarray(STORED["in/sampler_noise"]) * grid.sigma_max
    times = grid(VE, steps)
    levels = np.asarray(VE.signal(times).sigma)
    drawn, noise = iter(STORED["in/sampler_churn_noise"]), []
    for level in levels[:-1]:
        churns = sampler.churn_min <= level <= sampler.churn_max
        noise.append(next(drawn) if churns else np.zeros(x.shape))
    keys = jax.random.split(jax.random.key(0), x.shape[0])
    denoise = Autoguidance(scale)(model("gmm"), VE, {}, keys, model("guide"))
    seen = walk(sampler, denoise, VE, times, x, noise)
    return np.asarray(denoise(jnp.asarray(seen[-1]), times[-1]).x_0)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("name", "sampler", "grid", "steps", "scale"),
    [
        ("plain", Heun(), Karras(), 32, 1.0),
        ("n8_rho5", Heun(), Karras(0.01, 30.0, 5.0), 8, 1.0),
        ("guided", Heun(), Karras(), 16, 1.7),
        ("churn", Heun(2**0.5 - 1, 0.05, 20.0, 1.003), Karras(), 32, 1.0),
    ],
)
def test_runs_of_edm2(name, sampler, grid, steps, scale):
    """S_churn 30 of 32 steps is more than a step can take: gamma is sqrt(2) - 1."""
    found = sample(sampler, grid, steps, scale)
    np.testing.assert_allclose(found, STORED[f"out/sampler/{name}"], atol=1e-9)
