"""Trajectories of diffusers: stored ones, and those of its schedulers if it is installed."""

import json
import pathlib
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.sampling.samplers.ddim import Ddim, EulerAncestral
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver1, DpmSolver2M, DpmSolver3M
from jaxdiff.sampling.samplers.dpm_solver_single import DpmSolver2, DpmSolver2S
from jaxdiff.sampling.samplers.heun import Euler, Heun
from tests.oracles import Mixture
from tests.sampling.solving import levels, walk

STORED = np.load(pathlib.Path(__file__).parents[2] / "goldens" / "dpm.npz")
COORDINATES = json.loads(str(STORED["meta"]))["diffusers"]["coordinates"]
NOISE = STORED["diffusers/noise"].reshape(-1, 4, 1, 2, 2)

SAMPLERS = {
    **{name: Ddim(float(name.endswith("eta1"))) for name in COORDINATES if name.startswith("ddim/")},
    "ddpm/fixed_small": Ancestral(),
    "ddpm/fixed_large": Ancestral("large"),
    "ddpm/sample": Ancestral(),
    "ddpm/v_trailing": Ancestral(),
    "dpm/order2_eps": DpmSolver2M(integrand="noise"),
    "dpm/order3_eps": DpmSolver3M(integrand="noise", compat=True, rule="midpoint"),
    "dpm/sde_order2_eps": DpmSolver2M(eta=1.0, integrand="noise"),
    "dpmpp/order1": DpmSolver1(),
    "dpmpp/order1_v_karras": DpmSolver1(),
    "dpmpp/order2": DpmSolver2M(),
    "dpmpp/order2_euler_at_final": DpmSolver2M(),
    "dpmpp/order2_exponential": DpmSolver2M(),
    "dpmpp/order2_flow_shift3": DpmSolver2M(),
    "dpmpp/order2_heun": DpmSolver2M(rule="heun"),
    "dpmpp/order2_lu": DpmSolver2M(),
    "dpmpp/order2_v_karras": DpmSolver2M(),
    "dpmpp/order3": DpmSolver3M(compat=True, rule="midpoint"),
    "dpmpp/order3_sigma_min": DpmSolver3M(compat=True, rule="midpoint"),
    "dpmpp/order3_v_karras": DpmSolver3M(compat=True, rule="midpoint"),
    "dpmpp/sde_order1": DpmSolver1(eta=1.0),
    "dpmpp/sde_order2": DpmSolver2M(eta=1.0),
    "dpmpp/sde_order2_heun": DpmSolver2M(eta=1.0, rule="heun"),
    "edm_dpmpp/order1": DpmSolver1(),
    "edm_dpmpp/order2": DpmSolver2M(),
    "edm_dpmpp/order3": DpmSolver3M(compat=True, rule="midpoint"),
    "edm_dpmpp/sde_order2": DpmSolver2M(eta=1.0),
    "edm_euler/exponential": Euler(),
    "edm_euler/karras": Euler(),
    **{name: Euler() for name in COORDINATES if name.startswith(("euler/", "flow_euler/shift"))},
    "euler_ancestral": EulerAncestral(),
    "euler_ancestral/v_trailing": EulerAncestral(),
    **{name: Heun() for name in COORDINATES if name.startswith("heun/")},
}
WRONG = {
    "ddim/linspace": "it steps to t - 100, and is called next at another time",
    "ddpm/clip_linspace": "it steps to t - 100, and is called next at another time",
    "dpmpp/sde_order3": "a sign of the last term is wrong: 1/2 is taken from the negative of a difference",
    "euler/churn": "the noise is added after the call, so the denoiser has not seen it",
    "flow_euler/shift2_stochastic": "all noise is drawn anew, which is the sampler of consistency models",
}
RIGHT = [name for name in SAMPLERS if not name.startswith(tuple(WRONG))]


def test_every_run_is_matched_or_known_to_be_wrong():
    assert {name for name in COORDINATES if not name.startswith(tuple(WRONG))} == set(RIGHT)


def data() -> Mixture:
    return Mixture(*(jnp.asarray(STORED[f"diffusers/{name}"]) for name in ("weights", "means", "stds")))


def clipped(denoise, process):
    """The clipped prediction and the corresponding noise."""

    def call(x, t):
        x_0 = jnp.clip(denoise(x, t).x_0, -1, 1)
        alpha, sigma = process.signal(t)
        return Prediction(x_0, (x - alpha * x_0) / sigma)

    return call


def process_of(coordinates, alpha, sigma):
    if coordinates.startswith("VP"):
        return levels(alpha, sigma)
    process = VarianceExploding() if coordinates.startswith("VE") else RectifiedFlow()
    return process, process.time(2 * jnp.log(jnp.asarray(alpha)) - 2 * jnp.log(jnp.asarray(sigma)))


@pytest.mark.spread(5)
@pytest.mark.parametrize("name", RIGHT)
def test_stored_trajectory(name):
    sampler, every = SAMPLERS[name], 2 if name.startswith("heun/") else 1
    states = STORED[f"diffusers/{name}/x"].reshape(-1, 4, 1, 2, 2)
    states = np.concatenate([states[:-1:every], states[-1:]])
    alpha, sigma = STORED[f"diffusers/{name}/alpha_sigma"][::every].T
    key = f"diffusers/{name}/last_sigma"
    last = float(STORED[key]) if key in STORED.files else 0.0
    if last > 0:  # ends with noise
        alpha, sigma = np.append(alpha, (1 + last**2) ** -0.5), np.append(sigma, last * (1 + last**2) ** -0.5)
    process, times = process_of(COORDINATES[name], alpha, sigma)
    denoise = data().denoiser(process)
    if name == "ddim/clip_eta1":
        sampler, denoise = Ddim(1.0), clipped(denoise, process)

    left = jnp.arange(len(times) - (last > 0), 0, -1)  # steps, the one to clean data included
    left = None if name.endswith("order3_sigma_min") else left
    x = jnp.asarray(states[0])
    found = walk(sampler, denoise, process, times, x, NOISE, max_orders=left)
    scale = np.abs(states).max()
    np.testing.assert_allclose(found, states[: len(found)], rtol=0, atol=1e-10 * scale)
    assert len(found) == len(states) - (last == 0) >= 5
    if last == 0:
        image = denoise(jnp.asarray(states[-2]), times[-1]).x_0
        np.testing.assert_allclose(image, states[-1], rtol=0, atol=1e-10 * scale)


@pytest.fixture(scope="module")
def diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            "diffusers", reason="diffusers is not installed: its schedulers cannot be run"
        )


def run_peer(diffusers, name: str, settings: dict, steps: int, sigmas=None):
    """The peer's states, and (alpha, sigma) of each of its calls, all in double precision."""
    torch, noise = pytest.importorskip("torch"), iter(torch_noise())
    scheduler_class = getattr(diffusers, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)  # it computes in float32, whatever it is given
        patch.setattr(np, "float32", np.float64)
        module = sys.modules[scheduler_class.__module__]
        if hasattr(module, "randn_tensor"):
            patch.setattr(module, "randn_tensor", lambda *shape, **options: next(noise))
        scheduler = scheduler_class(num_train_timesteps=1000, beta_schedule="scaled_linear", **settings)
        eta = {"eta": 0.4} if name == "DDIMScheduler" else {}
        scheduler.set_timesteps(steps)
        if sigmas is not None:
            scheduler.sigmas = torch.tensor(sigmas)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        x = torch.tensor(start()) * float(scheduler.init_noise_sigma)
        states, called = [x.numpy()], []
        for k, t in enumerate(scheduler.timesteps):
            alpha, sigma = level(scheduler, name, k, t)
            process, times = process_of("VE" if alpha == 1 else "VP", alpha, sigma)
            _, predicted, _ = data().denoiser(process)(jnp.asarray(x.numpy()), times)
            x = scheduler.step(torch.tensor(np.asarray(predicted)), t, x, **eta).prev_sample
            states.append(x.numpy())
            called.append((alpha, sigma))
    return states, np.array(called)


def torch_noise():
    torch = pytest.importorskip("torch")
    return [torch.tensor(noise) for noise in NOISE]


def start():
    return np.random.default_rng(7).normal(size=(4, 1, 2, 2))


def level(scheduler, name: str, k: int, t) -> tuple[float, float]:
    """The noise level of the peer's k-th call, in its own coordinates."""
    if name.startswith("DD"):
        alpha_squared = float(scheduler.alphas_cumprod[int(t)])
        return alpha_squared**0.5, (1 - alpha_squared) ** 0.5
    if name.startswith("DPM"):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[k])
        return float(alpha), float(sigma)
    if name.startswith("KDPM2") and k % 2 == 1:
        return 1.0, float(scheduler.sigmas_interpol[k - 1 if "Ancestral" in name else k])
    return 1.0, float(scheduler.sigmas[k])


MULTISTEP, SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
WHOLE = {"lower_order_final": False, "euler_at_final": False}
NOISY_END = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
LIVE = [
    ("DDPMScheduler", {"variance_type": "fixed_small", "clip_sample": False}, 8, Ancestral()),
    ("DDPMScheduler", {"variance_type": "fixed_large", "clip_sample": False, "timestep_spacing": "trailing"},
     20, Ancestral("large")),
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, 8, Ddim(0.4)),
    (MULTISTEP, {"solver_order": 1, **WHOLE}, 7, DpmSolver1()),
    (MULTISTEP, {"solver_order": 2, "timestep_spacing": "trailing", **WHOLE}, 13, DpmSolver2M()),
    (MULTISTEP, {"solver_order": 3, "solver_type": "heun", **WHOLE}, 16, DpmSolver3M(compat=True)),
    (MULTISTEP, {"solver_order": 2, "solver_type": "heun", **WHOLE, **NOISY_END}, 16,
     DpmSolver2M(integrand="noise", rule="heun")),
    (MULTISTEP, {"solver_order": 3, "solver_type": "heun", **WHOLE, **NOISY_END}, 16,
     DpmSolver3M(integrand="noise", compat=True)),
    (MULTISTEP, {"solver_order": 1, "algorithm_type": "sde-dpmsolver++", **WHOLE}, 7, DpmSolver1(1.0)),
    (MULTISTEP, {"solver_order": 2, "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True, **WHOLE}, 16,
     DpmSolver2M(1.0)),
    (MULTISTEP, {"solver_order": 2, "solver_type": "heun", **WHOLE, **NOISY_END, "algorithm_type": "sde-dpmsolver"},
     16, DpmSolver2M(1.0, integrand="noise", rule="heun")),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}, 7, EulerAncestral()),
    ("HeunDiscreteScheduler", {"timestep_spacing": "leading", "use_karras_sigmas": True}, 6, Heun()),
    ("KDPM2DiscreteScheduler", {"timestep_spacing": "trailing"}, 6, DpmSolver2()),
    ("KDPM2AncestralDiscreteScheduler", {"timestep_spacing": "linspace"}, 6, DpmSolver2(eta=1.0)),
    (SINGLESTEP, {"solver_order": 2, "lower_order_final": False, **NOISY_END}, 8, DpmSolver2()),
    (SINGLESTEP, {"solver_order": 2, "lower_order_final": False, **NOISY_END, "algorithm_type": "dpmsolver++"}, 8,
     DpmSolver2S()),
    # Its single step of third order is not the paper's: the third call is reached by the midpoint rule.
]  # fmt: skip


@pytest.mark.spread(2)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the peer's own
@pytest.mark.parametrize(("name", "settings", "steps", "sampler"), LIVE)
def test_scheduler_as_installed(name, settings, steps, sampler, diffusers):
    single = name == SINGLESTEP
    # Its single steps end at every second or third level of a grid; ours have the levels in between where the
    # paper has them.
    sigmas = np.geomspace(12.0, 0.05, steps + 1) if single else None
    states, called = run_peer(diffusers, name, settings, steps, sigmas)
    every = settings["solver_order"] if single else 2 if name.startswith(("KDPM2", "Heun")) else 1
    states, (alpha, sigma) = states[:-1:every], called[::every].T
    process, times = process_of("VE" if alpha[0] == 1 else "VP", alpha, sigma)
    found = walk(sampler, data().denoiser(process), process, times, jnp.asarray(states[0]), NOISE)
    scale = np.abs(states).max()
    np.testing.assert_allclose(found, states, rtol=0, atol=1e-10 * scale)
