"""Tasks, networks and processes together reproduce the losses of EDM's code, pixel by pixel."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import ndtr

from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.process import weighting
from jaxdiff.process.gaussian import expand
from jaxdiff.process.labels import LogSigma, Time
from jaxdiff.process.prediction import Edm, Noise, Score
from jaxdiff.process.time_sampling import LogNormalSigma, LogUniformSigma, Uniform
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.objectives import WeightedError
from jaxdiff.training.step import Context
from tests.interop.test_published_networks import VE, VP, golden, load_small_song, nhwc, small_song
from tests.selection import some

QUICK = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class ByPixel(WeightedError):
    """Also returns the error by pixel."""

    def __call__(self, attempt):
        losses, metrics = super().__call__(attempt)
        error = attempt.error(self.weighting.space)
        weights = expand(self.weighting(attempt.process.log_snr(attempt.t)), error)
        return losses, {**metrics, "pixels": weights * jnp.square(error)}


LOSSES = {  # process, parameterization, time sampler, its random number, weighting
    "EDM": (VE, Edm(0.5), LogNormalSigma(-1.2, 1.2), "normal", weighting.Edm(0.5)),
    "EDM_opts": (VE, Edm(0.5), LogNormalSigma(-0.6, 1.4), "normal", weighting.Edm(0.5)),
    # They count time from the most noise on, and scale images as if alpha were 1.
    "VP": (VP, Noise(label=Time(999.0)), Uniform(1e-5, 1.0), "reversed", weighting.Snr()),
    "VE": (VE, Score(scaled=True, label=LogSigma(1.0, -math.log(2))), LogUniformSigma(0.02, 100.0), "uniform",
           weighting.Snr()),
}  # fmt: skip


def task_of(name):
    process, parameterization, time_sampler, _, weight = LOSSES[name]
    model = small_song(process, parameterization, augment=Continuous(9, 16, default=0.0, before_mapping=True))
    return DenoisingTask(model, time_sampler, (8, 8, 3), ByPixel(weight))


def examples(task, stored, uniform, augmented):
    """A batch as `draw` makes it, from stored noise. Their augmentation took 0.9 of the images."""
    count = len(stored["in/n"])
    fields = {"label": stored["in/class_labels"]}
    if augmented:
        fields["augment"] = stored["in/augment_labels"]
    x_0 = nhwc(stored["in/images"]).astype(jnp.float64) * (0.9 if augmented else 1.0)
    drawn = task.denoiser.conditioner.draw(fields, jax.random.split(jax.random.key(0), count), train=True)
    return {
        "x_0": x_0,
        "noise": nhwc(stored["in/n"]).astype(jnp.float64),
        "u": uniform,
        "importance": jnp.ones(count),
        "drop": task.denoiser.conditioner.none_dropped(count),
        "fields": jax.tree.map(jnp.asarray, drawn),
    }


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def loss(task, params, examples):
    return task.loss(params, Context(), examples, jax.random.key(0), train=True)


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", some(LOSSES, ("EDM_opts", "VE")))
def test_losses_of_edm(name):
    task, (tensors, stored) = task_of(name), golden("edm_loss")
    params = load_small_song(task.denoiser, tensors)
    with jax.enable_x64(True):
        normal, uniform = (
            jnp.asarray(stored[f"in/rnd_{kind}"].ravel(), jnp.float64) for kind in ("normal", "uniform")
        )
        u = {"normal": ndtr(normal), "uniform": uniform, "reversed": 1 - uniform}[LOSSES[name][3]]
        alpha, sigma = task.denoiser.process.signal(task.time_sampler.quantile(u, task.denoiser.process))
        np.testing.assert_allclose(sigma / alpha, stored[f"out/{name}/sigma"].ravel(), rtol=5e-6)
        for augmented, key in ((False, "loss"), (True, "loss_aug")):
            losses, metrics = loss(task, params, examples(task, stored, u, augmented))
            expected = np.moveaxis(stored[f"out/{name}/{key}"], 1, -1).astype(np.float64)
            pixels = np.asarray(metrics["pixels"])
            rms = np.sqrt(np.mean((pixels - expected) ** 2, (1, 2, 3)) / np.mean(expected**2, (1, 2, 3)))
            assert np.all(rms <= 5e-6)
            np.testing.assert_allclose(losses, expected.mean((1, 2, 3)), rtol=2e-6)
