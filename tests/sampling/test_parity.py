"""Whole trajectories against k-diffusion and EDM, on the exact denoiser of a Gaussian mixture."""

import itertools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Mixture

from jaxdiff.process.gaussian import VarianceExploding
from jaxdiff.sampling import ddim, heun
from jaxdiff.sampling.dpm_solver import DpmSolver2M
from jaxdiff.sampling.grids import Karras, LogSnrUniform

VE = VarianceExploding()
EXPONENTIAL = LogSnrUniform(-2 * math.log(80.0), -2 * math.log(0.02))
GOLDENS = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "samplers.npz")
CHURN = {"churn_min": 0.05, "churn_max": 50.0, "noise_scale": 1.003}


def run(monkeypatch, library: str, sampler, grid, steps: int, x):
    """Our images, when step k draws the stored noise k instead of random numbers."""
    oracle = Mixture(*(jnp.asarray(GOLDENS[f"{library}/{name}"]) for name in ("weights", "means", "stds")))
    x = jnp.asarray(x).reshape(-1, 1, 2, 2)
    noise = jnp.asarray(GOLDENS[f"{library}/noise"]).reshape(-1, *x.shape)
    keys, times = jax.random.split(jax.random.key(0), x.shape[0]), grid(VE, steps)

    @jax.jit
    def step(state, t, t_next, stored):
        for module in (ddim, heun):
            monkeypatch.setattr(module, "noise_like", lambda keys, x: stored)
        return sampler.step(oracle.denoiser(VE), VE, state, t, t_next, keys)

    state = sampler.init(x)
    for k, (t, t_next) in enumerate(itertools.pairwise(times)):
        state = step(state, t, t_next, noise[k])
    return np.asarray(oracle.denoiser(VE)(state.x, times[-1]).x_0)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("euler", ddim.Ddim()),
        ("euler_ancestral_eta0.6", ddim.Ddim(0.6)),
        ("euler_ancestral_eta1", ddim.Ddim(1.0)),
        ("heun", heun.Heun()),
        ("heun_churn", heun.Heun(churn=0.3, **CHURN)),
        ("dpmpp_2m", DpmSolver2M()),
    ],
)
def test_k_diffusion(name, sampler, monkeypatch):
    found = run(monkeypatch, "kdiffusion", sampler, Karras(0.02, 80.0), 10, GOLDENS["kdiffusion/x_init"])
    np.testing.assert_allclose(found.reshape(5, 4), GOLDENS[f"kdiffusion/{name}"], atol=1e-9)


@pytest.mark.parametrize(
    ("name", "sampler", "grid", "steps"),
    [
        ("det", heun.Heun(), Karras(), 18),
        ("churn", heun.Heun(churn=heun.MAX_CHURN, **CHURN), Karras(), 18),
        ("n7_rho3", heun.Heun(), Karras(0.01, 20.0, 3.0), 7),
    ],
)
def test_edm(name, sampler, grid, steps, monkeypatch):
    x = grid.sigma_max * GOLDENS["edm/latents"]
    found = run(monkeypatch, "edm", sampler, grid, steps, x)
    np.testing.assert_allclose(found.reshape(5, 1, 2, 2), GOLDENS[f"edm/{name}"], atol=1e-9)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("karras", Karras(0.02, 80.0)),
        ("exponential", LogSnrUniform(-2 * math.log(80.0), -2 * math.log(0.02))),
    ],
)
def test_grids_of_k_diffusion(name, grid):
    sigma = VE.signal(grid(VE, 10)).sigma
    np.testing.assert_allclose(sigma, GOLDENS[f"kdiffusion/sigmas/{name}"][:-1], rtol=1e-9)
