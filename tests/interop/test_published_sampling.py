"""Samplers, networks and processes together reproduce images of EDM's and guided-diffusion's code, step by step."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.denoiser import Denoiser
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.labels import StepIndex
from jaxdiff.process.prediction import Data, Edm, LearnedVariance, Noise
from jaxdiff.process.table import CosineBetas, LinearBetas, Table
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.grids.discrete import Respaced, Strided
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.inversion import invert
from jaxdiff.sampling.modifiers.thresholding import StaticThreshold
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.heun import MAX_CHURN, Heun
from tests.interop.test_published_networks import VE, golden, load_small_song, small_song
from tests.oracles import Mixture
from tests.sampling.solving import walk
from tests.selection import some
from tests.tasks.models import Constant, Label

QUICK = {"xla_backend_optimization_level": 0}
FOLDER = pathlib.Path(__file__).parents[1] / "goldens"
GUIDED, LOOPS = np.load(FOLDER / "gd_diffusion.npz"), np.load(FOLDER / "dpm.npz")
PROCESSES = {
    "linear": VariancePreserving(Table(LinearBetas())),
    "cosine": VariancePreserving(Table(CosineBetas())),
}
each_table = pytest.mark.parametrize("table", PROCESSES)
each_clip = pytest.mark.parametrize("clip", some([0, 1], [1]))

EDM = small_song(VE, Edm(0.5))
HEUN = {  # S_churn = 40 in 18 steps is more than a step can take
    "det": Heun(),
    "churn": Heun(MAX_CHURN, churn_min=0.05, churn_max=50.0, noise_scale=1.003),
}


def last(images):
    """Channels last."""
    return np.moveaxis(images, -3, -1)


@functools.cache
def edm():
    """The parameters in our layout, and what else is stored."""
    tensors, stored = golden("edm_sampler")
    return load_small_song(EDM, tensors), stored


def predict(params, x, t, label):
    times, drop = jnp.broadcast_to(t, x.shape[:1]), EDM.conditioner.none_dropped(x.shape[0])
    return EDM.apply({"params": params}, x, times, {"label": label}, drop, method="predict")


quick_predict = jax.jit(predict, compiler_options=QUICK)


@pytest.mark.spread(1)
@pytest.mark.parametrize(("double", "tolerance"), [(True, 3e-6), (False, 1e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("name", some(HEUN, list(HEUN)[:1]))
def test_trajectories_of_edm(name, double, tolerance):
    """A float32 network, in the sampler's float64 as they run it, and in our float32."""
    params, stored = edm()
    with jax.enable_x64(double):
        label, times, seen = jnp.asarray(stored["in/class_labels"]), Karras()(VE, 18), []

        def denoise(x, t):
            seen.append((np.asarray(x), float(VE.signal(t).sigma)))
            return quick_predict(params, x, t, label)

        latents, noise = (jnp.asarray(last(stored[f"in/{key}"]), times.dtype) for key in ("latents", "noise"))
        end = walk(HEUN[name], denoise, VE, times, 80 * latents, noise)[-1]
        final = np.asarray(denoise(jnp.asarray(end), times[-1]).x_0)
    images, levels = zip(*seen[::2], strict=True)  # the first call of each step is at the raised level
    np.testing.assert_allclose(levels, stored[f"out/net/{name}/t_hat"], rtol=tolerance)
    for found, expected in zip(images, last(stored[f"out/net/{name}/x_hat"]), strict=True):
        # Images begin at 80 times the size at which they end.
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))
    np.testing.assert_allclose(final, last(stored[f"out/net/{name}/x_final"]), rtol=0, atol=tolerance)


@pytest.mark.slow
def test_a_compiled_recipe_generates_edms_images():
    """The loop that users run: one scan over the steps, in float32."""
    params, stored = edm()
    recipe = Recipe(Heun(), Karras(), ClassifierFree(), 18)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def make(params, label, noise):
        def denoise(x, t, conditions, drop):
            return predict(params, x, t, conditions["label"])

        keys = jax.random.split(jax.random.key(0), len(label))
        return recipe(denoise, VE, {"label": label}, noise.shape[1:], keys, noise=noise)

    found = make(params, *(jnp.asarray(it) for it in (stored["in/class_labels"], last(stored["in/latents"]))))
    np.testing.assert_allclose(found, last(stored["out/net/det/x_final"]), rtol=0, atol=1e-5)


def stored_row(name, row):
    """One image, channels last, in float64."""
    return jnp.asarray(last(GUIDED[name][row : row + 1]), jnp.float64)


def guided(table, clip, parameterization, row):
    """A denoiser whose network gives the stored output, clipped or not as a recipe does it."""
    output = stored_row("in/model_out", row)
    output = output if isinstance(parameterization, LearnedVariance) else output[..., :3]
    denoiser = Denoiser(Constant(output.shape), Conditioner(Label()), PROCESSES[table], parameterization)

    def denoise(x, t, conditions, drop):
        params, times = {"network": {"output": output}}, jnp.broadcast_to(t, x.shape[:1])
        return denoiser.apply({"params": params}, x, times, conditions, drop, method="predict")

    recipe = Recipe(Ddim(), Strided(), ClassifierFree(), 1000, (StaticThreshold(),) * clip)
    return recipe.denoiser(denoise, denoiser.process, {}, jax.random.split(jax.random.key(0), 1))


def step_down(sampler, denoise, table, row, noise):
    """From the stored noisy image to the step before; from the first step it is the jump to the image."""
    step, x = int(GUIDED["in/t"][row]), stored_row(f"{table}/x_t", row)
    if step == 0:
        return denoise(x, jnp.asarray(1 / 1000)).x_0
    times = jnp.asarray([step + 1, step]) / 1000
    return walk(sampler, denoise, PROCESSES[table], times, x, [noise])[-1]


@pytest.mark.slow
@pytest.mark.spread(1)
@each_table
@each_clip
@pytest.mark.parametrize(
    ("name", "variance", "parameterization"),
    [
        ("eps_range", "learned", LearnedVariance(Noise(label=StepIndex()))),
        ("eps_large", "large", Noise(label=StepIndex())),
        ("x0_small", "small", Data(label=StepIndex())),
    ],
)
def test_mean_variance_and_image_of_guided_diffusions_steps(name, variance, parameterization, clip, table):
    with jax.enable_x64(True):
        for row, step in enumerate(GUIDED["in/t"]):
            expected = {
                key: stored_row(f"{table}/p_mean_variance/{name}/clip{clip}/{key}", row)
                for key in ("mean", "log_variance", "pred_xstart")
            }
            denoise = guided(table, clip, parameterization, row)
            x = stored_row(f"{table}/x_t", row)
            near(denoise(x, jnp.asarray((step + 1) / 1000)).x_0, expected["pred_xstart"])
            mean = step_down(Ancestral(variance), denoise, table, row, jnp.zeros_like(x))
            near(mean, expected["mean"])
            if step > 0:  # there is no noise in the jump to the image
                one = step_down(Ancestral(variance), denoise, table, row, jnp.ones_like(x))
                deviation = jnp.broadcast_to(jnp.exp(expected["log_variance"] / 2), x.shape)
                near(one - mean, deviation, scale=np.abs(mean).max())


@pytest.mark.spread(1)
@each_table
@each_clip
def test_steps_of_guided_diffusion_with_its_noise(clip, table):
    """Ancestral sampling, DDIM for several eta, and DDIM inversion."""
    with jax.enable_x64(True):
        for row, step in enumerate(GUIDED["in/t"]):
            denoise = guided(table, clip, LearnedVariance(Noise(label=StepIndex())), row)
            for name, sampler in (
                ("p_sample", Ancestral("learned")),
                ("ddim_sample/eta0.0", Ddim()),
                ("ddim_sample/eta0.5", Ddim(0.5)),
                ("ddim_sample/eta1.0", Ddim(1.0)),
            ):
                found = step_down(sampler, denoise, table, row, stored_row("in/noise2", row))
                near(found, stored_row(f"{table}/{name}/clip{clip}", row))
            if step < 999:  # above the last step they put pure noise
                x, times = stored_row(f"{table}/x_t", row), jnp.asarray([step + 2, step + 1]) / 1000
                up = invert(denoise, PROCESSES[table], times, x, jax.random.split(jax.random.key(0), 1))
                near(up, stored_row(f"{table}/ddim_reverse/clip{clip}", row))


def near(found, expected, scale=0.0):
    found, expected = np.asarray(found), np.asarray(expected)
    bound = 1e-9 * max(1.0, float(scale), np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.mark.slow
@pytest.mark.spread(1)
@each_table
@each_clip
@pytest.mark.parametrize(
    ("name", "sampler", "grid"),
    [
        ("ddpm25_small", Ancestral("small"), Respaced()),
        ("ddpm25_large", Ancestral("large"), Respaced()),
        ("ddim25_eta0", Ddim(), Strided()),
        ("ddim25_eta1", Ddim(1.0), Strided()),
    ],
)
def test_respaced_loops_of_guided_diffusion(name, sampler, grid, clip, table):
    """25 of 1000 steps, whose betas they compute anew; ours are steps of the one process, between any two times."""
    with jax.enable_x64(True):
        process, recipe = (
            PROCESSES[table],
            Recipe(sampler, grid, ClassifierFree(), 25, (StaticThreshold(),) * clip),
        )
        exact = Mixture(*(jnp.asarray(LOOPS[f"gd/{key}"]) for key in ("weights", "means", "stds"))).denoiser(
            process
        )
        keys, times = jax.random.split(jax.random.key(0), 3), grid(process, 25)
        denoise = recipe.denoiser(lambda x, t, conditions, drop: exact(x, t), process, {}, keys)
        x, noise = LOOPS["gd/x_T"].transpose(0, 2, 3, 1), LOOPS["gd/noise"].transpose(0, 1, 3, 4, 2)
        seen = walk(sampler, denoise, process, times, x, noise)
        found = np.stack([*seen[1:], denoise(jnp.asarray(seen[-1]), times[-1]).x_0]).transpose(0, 1, 4, 2, 3)
    np.testing.assert_allclose(found, LOOPS[f"gd/{table}/{name}/clip{clip}"], rtol=1e-8, atol=1e-9)
