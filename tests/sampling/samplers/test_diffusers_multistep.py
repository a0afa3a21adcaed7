"""Multistep trajectories against diffusers and k-diffusion: stored ones, and the schedulers as they are installed."""

import dataclasses
import json
import pathlib
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.table import LinearBetas, Table
from jaxdiff.sampling.samplers.adams import AdamsBashforth, Deis, Lms
from jaxdiff.sampling.samplers.pndm import Plms, Pndm
from jaxdiff.sampling.samplers.sa_solver import SaSolver
from jaxdiff.sampling.samplers.unipc import UniPc
from tests.oracles import Mixture
from tests.sampling.solving import VE, levels, walk

STORED = np.load(pathlib.Path(__file__).parents[2] / "goldens" / "multistep.npz")
CONFIGS = json.loads(str(STORED["meta"]))["diffusers"]

SAMPLERS = {
    "deis/order1": Deis(1),
    "deis/order2": Deis(2),
    "deis/order3": Deis(3),
    "deis/order3_v": Deis(3),
    "pndm/plms_epsilon": Plms(),
    "pndm/plms_trailing": Plms(),
    "pndm/prk_epsilon": Pndm(),
    "unipc/order1": UniPc(1),
    "unipc/order1_bh1_v_trailing": UniPc(1, "bh1"),
    "unipc/order2": UniPc(2),
    "unipc/order2_bh1_v_trailing": UniPc(2, "bh1"),
    "unipc/order2_karras": UniPc(2),
    "unipc/order2_nocorrector": UniPc(2, corrector=False),
    "unipc/order3": UniPc(3),
    "unipc/order3_bh1_v_trailing": UniPc(3, "bh1"),
    "unipc/order3_eps": UniPc(3, integrand="noise"),
    "unipc/order3_not_lower_final": UniPc(3),
}
OTHERWISE = {
    "pndm/plms_linspace": "it steps to t - 100, and is called next at another time",
    "pndm/plms_v_prediction": "its polynomial is of v, and the mean v is made noise at the start of the step",
    "pndm/prk_v_prediction": "the same, and each call of a Runge-Kutta step takes part with the v of another time",
}


def data(library: str = "diffusers") -> Mixture:
    return Mixture(*(jnp.asarray(STORED[f"{library}/{name}"]) for name in ("weights", "means", "stds")))


def test_every_run_is_matched_or_is_another_method():
    assert set(SAMPLERS) | set(OTHERWISE) == set(CONFIGS)
    assert not set(SAMPLERS) & set(OTHERWISE)


def go(sampler, denoise, process, times, x, noise=(), max_orders=None):
    """`walk`, without recompiling branches at every step."""
    with jax.disable_jit(isinstance(sampler, Pndm)):
        return walk(sampler, denoise, process, times, x, noise, max_orders=max_orders)


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", SAMPLERS)
def test_stored_trajectory(name):
    sampler, family = SAMPLERS[name], name.split("/")[0]
    states, left = STORED[f"diffusers/{name}/x"].reshape(-1, 4, 1, 2, 2), None
    alpha, sigma = STORED[f"diffusers/{name}/alpha_sigma"].T
    if family == "pndm":  # several calls at the start of some steps
        first = starts(sampler, len(alpha))
        process = VariancePreserving(Table(LinearBetas()))
        times = jnp.asarray((STORED[f"diffusers/{name}/timesteps"][first] + 1) / 1000)
        if name != "pndm/prk_epsilon":  # other betas; no call is between two of the times
            process, times = levels(alpha[first], sigma[first])
        states, image = states[first], None
        np.testing.assert_allclose(process.signal(times).alpha, alpha[first], rtol=1e-12)
    else:
        last, image = float(STORED[f"diffusers/{name}/last_sigma"]), states[-1]
        if last > 0:  # ends with noise
            alpha, sigma = (
                np.append(alpha, (1 + last**2) ** -0.5),
                np.append(sigma, last * (1 + last**2) ** -0.5),
            )
            image = None
        else:
            states = states[:-1]
        process, times = levels(alpha, sigma)
        if name != "unipc/order3_not_lower_final":  # steps left, the one to clean data included
            left = jnp.arange(len(times) - (last > 0), 0, -1)
    denoise = data().denoiser(process)
    found = go(sampler, denoise, process, times, states[0], max_orders=left)
    scale = np.abs(states).max()
    assert len(found) >= 8
    np.testing.assert_allclose(found, states, rtol=0, atol=1e-10 * scale)
    if image is not None:
        end, t = STORED[f"diffusers/{name}/x"][-2].reshape(4, 1, 2, 2), levels(alpha, sigma)[1][-1]
        np.testing.assert_allclose(denoise(jnp.asarray(end), t).x_0, image, rtol=0, atol=1e-10 * scale)


def starts(sampler, calls: int) -> list[int]:
    """The calls with which steps begin."""
    return [0, 4, 8, *range(12, calls)] if type(sampler) is Pndm else [0, *range(2, calls)]


@pytest.mark.spread(1)
@pytest.mark.parametrize("steps", [10, 20])
def test_k_diffusion(steps):
    sigma = STORED[f"kdiffusion/lms/n{steps}/sigmas"][:-1]
    states = STORED[f"kdiffusion/lms/n{steps}/x"].reshape(steps, 5, 1, 2, 2)
    times, denoise = VE.time(-2 * jnp.log(jnp.asarray(sigma))), data("kdiffusion").denoiser(VE)
    found = walk(Lms(4), denoise, VE, times, states[0])
    np.testing.assert_allclose(found, states, rtol=0, atol=1e-10 * np.abs(states).max())
    # To clean data it goes with the polynomial too, where here the last step is the predicted image.
    final = STORED[f"kdiffusion/lms/n{steps}/x_final"].reshape(5, 1, 2, 2)
    np.testing.assert_allclose(denoise(jnp.asarray(found[-1]), times[-1]).x_0, final, atol=0.02)


@pytest.fixture(scope="module")
def diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            "diffusers", reason="diffusers is not installed: its schedulers cannot be run"
        )


def tau(t):
    """Noise from time 300 up to 700, as of the level there."""
    return 0.7 if 300 <= t <= 700 else 0.0


def run_peer(diffusers, name: str, settings: dict, steps: int):
    """The peer's state and (alpha, sigma) at each of its calls, all in double precision; and its scheduler."""
    torch, noise = pytest.importorskip("torch"), iter(NOISE)
    scheduler_class = getattr(diffusers, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)  # it computes in float32, whatever it is given
        patch.setattr(np, "float32", np.float64)
        module = sys.modules[scheduler_class.__module__]
        if hasattr(module, "randn_tensor"):
            patch.setattr(module, "randn_tensor", lambda *shape, **options: torch.tensor(next(noise)))
        common = {} if name == "IPNDMScheduler" else {"beta_schedule": "scaled_linear"}
        scheduler = scheduler_class(num_train_timesteps=1000, **common, **settings)
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        scheduler.is_scale_input_called = True
        x = torch.tensor(X) * float(scheduler.init_noise_sigma)
        states, called = [], []
        for k, t in enumerate(scheduler.timesteps):
            alpha, sigma = level(scheduler, name, k, t)
            process, time = (
                (VE, VE.time(-2 * jnp.log(jnp.asarray(sigma)))) if alpha == 1 else levels(alpha, sigma)
            )
            x_0, predicted, _ = data().denoiser(process)(jnp.asarray(x.numpy()), time)
            if name == "IPNDMScheduler":  # its model output is v
                predicted = alpha * predicted - sigma * x_0
            states.append(x.numpy())
            called.append((alpha, sigma))
            x = scheduler.step(torch.tensor(np.asarray(predicted)), t, x).prev_sample
    return np.array(states), np.array(called), scheduler


def level(scheduler, name: str, k: int, t) -> tuple[float, float]:
    """The noise level of the peer's k-th call, in its own coordinates."""
    if name == "PNDMScheduler":
        alpha_squared = float(scheduler.alphas_cumprod[int(t)])
        return alpha_squared**0.5, (1 - alpha_squared) ** 0.5
    if name == "IPNDMScheduler":
        return float(scheduler.alphas[k]), float(scheduler.betas[k])
    if name == "LMSDiscreteScheduler":
        return 1.0, float(scheduler.sigmas[k])
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[k])
    return float(alpha), float(sigma)


X = np.random.default_rng(7).normal(size=(4, 1, 2, 2))
NOISE = np.random.default_rng(8).normal(size=(30, 4, 1, 2, 2))
UNI, SA, DEIS = "UniPCMultistepScheduler", "SASolverScheduler", "DEISMultistepScheduler"
WHOLE = {"lower_order_final": False}
UNI_END = {**WHOLE, "final_sigmas_type": "sigma_min"}
SINES = {"trained_betas": [*np.sin(np.linspace(1.5, 0.1, 9)), 0.05]}
LIVE = [
    *[
        (UNI, {"solver_order": order, "solver_type": variant, "predict_x0": image, **UNI_END}, 8,
         UniPc(order, variant, integrand="x_0" if image else "noise"))
        for order in (1, 2, 3) for variant in ("bh1", "bh2") for image in (True, False)
    ],
    (UNI, {"solver_order": 3, "disable_corrector": list(range(20)), "timestep_spacing": "trailing", **UNI_END}, 13,
     UniPc(3, corrector=False)),
    (UNI, {"solver_order": 3, "use_karras_sigmas": True, **UNI_END}, 12, UniPc(3)),
    *[(DEIS, {"solver_order": order, "timestep_spacing": "leading", **WHOLE}, 16, Deis(order)) for order in (1, 2, 3)],
    (DEIS, {"solver_order": 3, "use_karras_sigmas": True, **WHOLE}, 16, Deis(3)),
    ("PNDMScheduler", {"skip_prk_steps": True}, 8, Plms()),
    ("PNDMScheduler", {"skip_prk_steps": False}, 20, Pndm()),
    ("IPNDMScheduler", SINES, 9, AdamsBashforth(4)),
    ("LMSDiscreteScheduler", {"timestep_spacing": "trailing"}, 8, Lms(4)),
    ("LMSDiscreteScheduler", {"use_karras_sigmas": True}, 13, Lms(4)),
    # Its polynomials through two predicted images are not integrated exactly, "for better images in few steps".
    *[(SA, {"predictor_order": p, "corrector_order": q, "tau_func": tau, **WHOLE}, 9, SaSolver(p, q, 0.7, rule="bh1"))
      for p, q in ((1, 2), (2, 2), (3, 3), (3, 4), (2, 4), (4, 2))],
    *[(SA, {"predictor_order": p, "corrector_order": q, "tau_func": tau, "algorithm_type": "noise_prediction", **WHOLE},
       9, SaSolver(p, q, 0.7, integrand="noise")) for p, q in ((2, 2), (3, 4))],
    (SA, {"predictor_order": 3, "corrector_order": 4, "tau_func": lambda t: 0.0, "use_karras_sigmas": True, **WHOLE}, 9,
     SaSolver(3, 4, 0.0, rule="bh1")),
]  # fmt: skip


@pytest.mark.spread(2)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the peer's own
@pytest.mark.parametrize(
    ("name", "settings", "steps", "sampler"), LIVE, ids=[f"{row[0]}-{row[3]}" for row in LIVE]
)
def test_scheduler_as_installed(name, settings, steps, sampler, diffusers):
    states, called, scheduler = run_peer(diffusers, name, settings, steps)
    if isinstance(sampler, Pndm):
        first = starts(sampler, len(states))
        alpha_squared = np.asarray(scheduler.alphas_cumprod)
        betas = 1 - alpha_squared / np.append(1.0, alpha_squared[:-1])
        process = VariancePreserving(Table(Given(betas)))
        times = jnp.asarray((np.asarray(scheduler.timesteps)[first] + 1) / 1000)
        states = states[first]
    else:
        alpha, sigma = called.T
        process, times = levels(alpha, sigma)
        if alpha[0] == 1:
            process, times = VE, VE.time(-2 * jnp.log(jnp.asarray(sigma)))
    if isinstance(sampler, SaSolver) and sampler.tau > 0:
        level = np.sqrt(1 / np.asarray(scheduler.alphas_cumprod)[[300, 700]] - 1)
        bounds = {"tau_min": float(level[0]) * 0.9999, "tau_max": float(level[1]) * 1.0001}
        sampler = dataclasses.replace(sampler, **bounds)
        assert 1 < sum(tau(t) > 0 for t in scheduler.timesteps) < len(states) - 1
    found = go(sampler, data().denoiser(process), process, times, states[0], NOISE)
    np.testing.assert_allclose(found, states, rtol=0, atol=1e-10 * np.abs(states).max())


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """Betas of an array."""

    values: np.ndarray

    def array(self):
        return self.values
