"""Trajectories of k-diffusion and EDM on the exact denoiser of a Gaussian mixture."""

import itertools
import math
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.sampling.grids.continuous import Karras, LogSnrUniform
from jaxdiff.sampling.samplers.ddim import Ddim, EulerAncestral
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver2M, DpmSolver3M
from jaxdiff.sampling.samplers.dpm_solver_single import DpmSolver2, DpmSolver2S, DpmSolverSde, correlation
from jaxdiff.sampling.samplers.exponential import node
from jaxdiff.sampling.samplers.heun import MAX_CHURN, Euler, Heun
from tests.oracles import Mixture
from tests.sampling.solving import VE, walk

FOLDER = pathlib.Path(__file__).parents[2] / "goldens"
EDM, K = np.load(FOLDER / "samplers.npz"), np.load(FOLDER / "dpm.npz")
CHURN = {"churn_min": 0.05, "churn_max": 50.0, "noise_scale": 1.003}


def run(stored, library: str, sampler, times, x, noise):
    """Our images, where the draws are the stored ones."""
    oracle = Mixture(*(jnp.asarray(stored[f"{library}/{name}"]) for name in ("weights", "means", "stds")))
    seen = walk(sampler, oracle.denoiser(VE), VE, times, jnp.asarray(x), noise)
    return np.asarray(oracle.denoiser(VE)(jnp.asarray(seen[-1]), times[-1]).x_0)


K_SAMPLERS = [
    ("euler", Euler()),
    ("euler_churn", Euler(churn=0.3, **CHURN)),
    ("euler_ancestral_eta0.6", Ddim(0.6)),
    ("euler_ancestral_eta1", EulerAncestral()),
    ("heun", Heun()),
    ("heun_churn", Heun(churn=0.3, **CHURN)),
    ("dpm_2", DpmSolver2()),
    ("dpm_2_ancestral_eta1", DpmSolver2(eta=1.0)),
    ("dpmpp_2s_ancestral_eta0", DpmSolver2S()),
    ("dpmpp_2s_ancestral_eta1", DpmSolver2S(eta=1.0)),
    ("dpmpp_sde_eta1", DpmSolverSde()),
    ("dpmpp_2m", DpmSolver2M()),
    ("dpmpp_2m_sde_eta0", DpmSolver2M()),
    ("dpmpp_2m_sde_eta0_heun", DpmSolver2M(rule="heun")),
    ("dpmpp_2m_sde_eta1", DpmSolver2M(eta=1.0)),
    ("dpmpp_2m_sde_eta1_heun", DpmSolver2M(eta=1.0, rule="heun")),
    ("dpmpp_3m_sde_eta0", DpmSolver3M(compat=True)),
    ("dpmpp_3m_sde_eta1", DpmSolver3M(eta=1.0, compat=True)),
]


@pytest.mark.spread(3)
@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize(("name", "sampler"), K_SAMPLERS, ids=[name for name, _ in K_SAMPLERS])
def test_k_diffusion(name, sampler, steps):
    times, noise = Karras(0.02, 80.0)(VE, steps), K["kdiffusion/noise"].reshape(-1, 5, 1, 2, 2)
    if isinstance(sampler, DpmSolverSde):
        noise = _independent(times, noise, sampler.r)
    found = run(K, "kdiffusion", sampler, times, K["kdiffusion/x_init"].reshape(5, 1, 2, 2), noise)
    np.testing.assert_allclose(found.reshape(5, 4), K[f"kdiffusion/{name}/n{steps}"], rtol=1e-9, atol=1e-10)


def _independent(times, noise, r):
    """The second independent draw of each step, such that its combination with the first is the stored noise."""
    drawn = []
    for k, (t, t_next) in enumerate(itertools.pairwise(times)):
        s = node(VE, t, t_next, (VE.log_snr(t_next) - VE.log_snr(t)) / 2, r)
        shared = float(correlation(VE, t, s, t_next))
        drawn += [noise[2 * k], (noise[2 * k + 1] - shared * noise[2 * k]) / math.sqrt(1 - shared**2)]
    return drawn


def test_every_run_of_k_diffusion_is_matched():
    runs = {key.split("/")[1] for key in K.files if key.startswith("kdiffusion/") and key.count("/") == 2}
    assert {name for name, _ in K_SAMPLERS} == runs - {"sigmas"}


@pytest.mark.parametrize(
    ("name", "sampler", "grid", "steps"),
    [
        ("det", Heun(), Karras(), 18),
        ("churn", Heun(churn=MAX_CHURN, **CHURN), Karras(), 18),
        ("n7_rho3", Heun(), Karras(0.01, 20.0, 3.0), 7),
    ],
)
def test_edm(name, sampler, grid, steps):
    x, noise = grid.sigma_max * EDM["edm/latents"].reshape(5, 1, 2, 2), EDM["edm/noise"]
    found = run(EDM, "edm", sampler, grid(VE, steps), x, noise.reshape(-1, 5, 1, 2, 2))
    np.testing.assert_allclose(found.reshape(5, 1, 2, 2), EDM[f"edm/{name}"], atol=1e-9)


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("karras", Karras(0.02, 80.0)),
        ("exponential", LogSnrUniform(-2 * math.log(80.0), -2 * math.log(0.02))),
    ],
)
def test_grids_of_k_diffusion(name, grid, steps):
    sigma = VE.signal(grid(VE, steps)).sigma
    np.testing.assert_allclose(sigma, K[f"kdiffusion/sigmas/{name}/n{steps}"][:-1], rtol=1e-9)
