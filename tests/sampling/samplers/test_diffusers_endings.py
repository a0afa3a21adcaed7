"""Complete recipes against the installed diffusers: time grids, and the last step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.table import ScaledLinearBetas, Table
from jaxdiff.sampling.grids.discrete import Leading, Linspace, Trailing
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.adams import Deis
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver1, DpmSolver2M, DpmSolver3M
from jaxdiff.sampling.samplers.heun import Euler
from jaxdiff.sampling.samplers.pndm import Plms, Pndm
from jaxdiff.sampling.samplers.unipc import UniPc
from tests import schedulers as peers
from tests.sampling.solving import Draws, mixture
from tests.selection import some

PROCESS = VariancePreserving(Table(ScaledLinearBetas()))
SHAPE = (1, 1, 2)
X = np.random.default_rng(7).normal(size=(4, *SHAPE))
NOISE = np.random.default_rng(8).normal(size=(30, 4, *SHAPE))
DDIM, PNDM, EULER, DEIS = "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DEISMultistepScheduler"
DPM, UNI = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
PLAIN = {"clip_sample": False, "steps_offset": 1}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
WHOLE = {**SIGMA_MIN, "lower_order_final": False}
FIRST_STEP, LOWER = {"t_end": 1 / 1000}, {"lower_order_final": True}
LEADING, LINSPACE = Leading(offset=1), Linspace(drop_last=True)
THIRD = DpmSolver3M(compat=True, rule="midpoint")

RECIPES = [
    (DDIM, PLAIN, Ddim(), LEADING, 10, {}),
    (DDIM, {**PLAIN, "set_alpha_to_one": False}, Ddim(), LEADING, 10, FIRST_STEP),
    (DDIM, {**PLAIN, "set_alpha_to_one": False, "timestep_spacing": "trailing"}, Ddim(), Trailing(), 8, FIRST_STEP),
    (PNDM, {"skip_prk_steps": True, "steps_offset": 1}, Plms(), LEADING, 10, FIRST_STEP),
    (PNDM, {"skip_prk_steps": True, "set_alpha_to_one": True}, Plms(), Leading(), 10, {"t_end": 0.0}),
    (PNDM, {"skip_prk_steps": False, "steps_offset": 1}, Pndm(), LEADING, 10, FIRST_STEP),
    (EULER, {"timestep_spacing": "trailing"}, Euler(), Trailing(), 10, {}),
    (EULER, {"timestep_spacing": "trailing", **SIGMA_MIN}, Euler(), Trailing(), 10, FIRST_STEP),
    (DPM, {"timestep_spacing": "leading", "steps_offset": 1}, DpmSolver2M(), Leading(offset=1, drop_last=True), 10, {}),
    (DPM, {"timestep_spacing": "trailing"}, DpmSolver2M(), Trailing(), 20, {}),
    (DPM, SIGMA_MIN, DpmSolver2M(), LINSPACE, 10, {**FIRST_STEP, **LOWER}),
    (DPM, SIGMA_MIN, DpmSolver2M(), LINSPACE, 16, FIRST_STEP),
    (DPM, WHOLE, DpmSolver2M(), LINSPACE, 10, FIRST_STEP),
    (DPM, {**WHOLE, "euler_at_final": True}, DpmSolver2M(), LINSPACE, 10, {**FIRST_STEP, "euler_at_final": True}),
    (DPM, {"solver_order": 3}, THIRD, LINSPACE, 10, LOWER),
    (DPM, {"solver_order": 3}, THIRD, LINSPACE, 16, {}),
    (DPM, {"solver_order": 3, **SIGMA_MIN}, THIRD, LINSPACE, 10, {**FIRST_STEP, **LOWER}),
    (DPM, {"solver_order": 3, **SIGMA_MIN, "euler_at_final": True}, THIRD, LINSPACE, 16,
     {**FIRST_STEP, "euler_at_final": True}),
    (DPM, {"algorithm_type": "sde-dpmsolver++"}, DpmSolver2M(eta=1.0), LINSPACE, 10, LOWER),
    (DPM, {"algorithm_type": "sde-dpmsolver++", **SIGMA_MIN}, DpmSolver2M(eta=1.0), LINSPACE, 10,
     {**FIRST_STEP, **LOWER}),
    (DPM, {"algorithm_type": "sde-dpmsolver++", "solver_order": 1, **SIGMA_MIN}, DpmSolver1(eta=1.0), LINSPACE, 10,
     FIRST_STEP),
    (UNI, {}, UniPc(2), LINSPACE, 10, LOWER),
    (UNI, {"solver_order": 3}, UniPc(3), LINSPACE, 20, LOWER),
    (UNI, SIGMA_MIN, UniPc(2), LINSPACE, 10, {**FIRST_STEP, **LOWER}),
    (UNI, {"solver_order": 3, "solver_type": "bh1", **SIGMA_MIN}, UniPc(3, "bh1"), LINSPACE, 10,
     {**FIRST_STEP, **LOWER}),
    (UNI, {"solver_order": 3, **WHOLE}, UniPc(3), LINSPACE, 10, FIRST_STEP),
    (DEIS, {"solver_order": 3}, Deis(3), LINSPACE, 10, {**FIRST_STEP, **LOWER}),
    (DEIS, {"solver_order": 3}, Deis(3), LINSPACE, 16, FIRST_STEP),
]  # fmt: skip


def run_peer(name: str, settings: dict, steps: int):
    """The peer's result in double precision, variance preserving."""
    scheduler_class, denoise = getattr(peers.load(), name), mixture().denoiser(PROCESS)
    with peers.in_double_precision(scheduler_class, NOISE) as torch:
        betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        scheduler = scheduler_class(num_train_timesteps=1000, **betas, **settings)
        scheduler.set_timesteps(steps)
        x = torch.tensor(X) * start(scheduler, name)
        for t in scheduler.timesteps:
            seen = jnp.asarray(scheduler.scale_model_input(x, t).numpy())
            predicted = denoise(seen, (jnp.asarray(float(t)) + 1) / 1000).noise
            x = scheduler.step(torch.tensor(np.asarray(predicted)), t, x).prev_sample
        return x.numpy() / float(1 if name != EULER else np.hypot(1, scheduler.sigmas[-1]))


def start(scheduler, name: str) -> float:
    """The standard deviation of the first noise, such that all begin alike: with sigma of the first time."""
    if name == EULER:
        return float(scheduler.sigmas[0])
    alpha_squared = float(scheduler.alphas_cumprod[int(scheduler.timesteps[0])])
    return (1 - alpha_squared) ** 0.5


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the peer's own
@pytest.mark.parametrize(
    ("name", "settings", "sampler", "grid", "steps", "ending"),
    some(RECIPES, [row for row in RECIPES if row[4] <= 10][::3]),
    ids=[f"{row[0]}-{row[2]}-{row[4]}-{'-'.join(row[5])}" for row in RECIPES],
)
def test_complete_recipes_match_diffusers(name, settings, sampler, grid, steps, ending):
    expected = run_peer(name, settings, steps)
    recipe = Recipe(sampler, grid, ClassifierFree(), steps, **ending)
    denoise = mixture().denoiser(PROCESS)
    keys = jax.random.split(jax.random.key(0), len(X))
    with jax.disable_jit(), Draws(NOISE):
        found = recipe(lambda x, t, c, drop: denoise(x, t), PROCESS, {}, SHAPE, keys, noise=jnp.asarray(X))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
