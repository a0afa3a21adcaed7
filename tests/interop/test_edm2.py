"""EDM2's network with random weights: outputs, loss and names match the authors' code."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.magnitude import MagnitudeClassLabel, MagnitudeNoiseLevel
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.interop import edm2
from jaxdiff.interop.mapping import to_params, to_tensors
from jaxdiff.models.magnitude import MagnitudeUncertainty
from jaxdiff.models.magnitude_unet import MagnitudeLevel, MagnitudeUNet
from jaxdiff.process.gaussian import VarianceExploding, diffuse
from jaxdiff.process.prediction import Edm
from jaxdiff.process.time_sampling import LogNormalSigma
from jaxdiff.process.weighting import Edm as EdmWeighting
from jaxdiff.tasks.objectives import LossInputs, UncertaintyWeighted, WeightedError

STORED = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "edm2_network.npz")
TENSORS = {name.removeprefix("param/"): STORED[name] for name in STORED.files if name.startswith("param/")}
SIZE = 16
LEVELS = (MagnitudeLevel(32, 1, dropout=0.1), MagnitudeLevel(64, 1, self_attention=True, dropout=0.1))
DENOISER = Denoiser(
    network=MagnitudeUNet(LEVELS, out_channels=4, head_dim=32),
    conditioner=Conditioner(
        MagnitudeNoiseLevel(64, frequencies=32, scale=2**-0.5), {"label": MagnitudeClassLabel(10, 64)}
    ),
    process=VarianceExploding(),
    parameterization=Edm(0.5),
    uncertainty=MagnitudeUncertainty(32),
)
QUICK = {"xla_backend_optimization_level": 0}


def images(name):
    return jnp.asarray(STORED[name].transpose(0, 2, 3, 1))


def abstract(denoiser):
    """Shapes of all parameters; nothing is computed."""
    conditioner = denoiser.conditioner
    x, t = jnp.zeros((1, SIZE, SIZE, 4)), jnp.full((1,), 0.5)
    fields, drop = conditioner.example(1), conditioner.none_dropped(1)
    made = jax.eval_shape(lambda: denoiser.init(jax.random.key(0), x, t, fields, drop, train=False))
    return nn.meta.unbox(made)["params"]


def load(tensors, denoiser=DENOISER):
    return to_params(edm2.entries(denoiser.network, SIZE), tensors, abstract(denoiser))


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def calls(denoiser, params, x, t, label, drop):
    """Output, denoised image and log-variance."""
    apply = functools.partial(denoiser.apply, {"params": params})
    output = apply(x, t, {"label": label}, {"label": drop}, train=False)
    predicted = apply(x, t, {"label": label}, {"label": drop}, method="predict")
    return output, predicted.x_0, apply(t, method="log_variance")


def outputs(x, sigma, drop=False):
    t = DENOISER.process.time(-2 * jnp.log(jnp.asarray(sigma)))
    label = jnp.asarray(STORED["in/class_labels"])
    return t, *calls(DENOISER, load(TENSORS), x, t, label, jnp.full((3,), drop))


def near(found, stored):
    found = np.asarray(found)
    error = found - stored
    assert np.max(np.abs(error)) <= 1e-4
    assert np.sqrt(np.mean(error**2) / np.mean(stored**2)) <= 1e-5


def test_output_denoised_image_and_log_variance():
    _, output, x_0, log_variance = outputs(images("in/x"), STORED["in/sigma"])
    near(output, images("out/F"))
    near(x_0, images("out/D"))
    near(log_variance, STORED["out/logvar"].ravel())


def test_without_a_class():
    near(outputs(images("in/x"), STORED["in/sigma"], drop=True)[2], images("out/D_null"))


def test_loss():
    """P_mean -0.4, P_std 1, sigma_data 0.5. The peer's loss is by pixel, and ours its mean over an image."""
    x_0, noise = images("in/loss_images"), images("in/loss_noise")
    u = jax.scipy.stats.norm.cdf(jnp.asarray(STORED["in/loss_rnd_normal"]).ravel())
    times = LogNormalSigma(-0.4, 1.0)
    t = times.quantile(u, DENOISER.process)
    x_t = diffuse(DENOISER.process, x_0, noise, t)
    _, output, _, log_variance = outputs(x_t, DENOISER.process.signal(t).sigma)
    attempt = LossInputs(
        DENOISER.process, DENOISER.parameterization, times, u, t, x_0, noise, x_t, output, log_variance
    )
    losses, _ = UncertaintyWeighted(WeightedError(EdmWeighting(0.5)))(attempt)
    near(losses, STORED["out/loss"].mean((1, 2, 3)))


def test_names_are_mapped_one_to_one():
    params = load(TENSORS)
    back = to_tensors(edm2.entries(DENOISER.network, SIZE), params)
    assert back.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert back[name].shape == tensor.shape
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    assert len(jax.tree.leaves(params)) == len(TENSORS)


def test_arrays_that_do_not_fit_are_errors():
    wrong = {name: tensor for name, tensor in TENSORS.items() if name != "unet.out_gain"}
    wrong |= {"unet.emb_noise.weight": np.zeros((64, 31), np.float32), "unet.extra": np.zeros(())}
    with pytest.raises(UserError) as error:
        load(wrong)
    for line in ("missing .*unet.out_gain", "other shape .*unet.emb_noise.weight", "not read .*unet.extra"):
        assert error.match(line)


def test_a_denoiser_without_uncertainty_refuses_the_log_variance():
    with pytest.raises(UserError, match=r"got 3 that differ.*\n.*not read +logvar"):
        load(TENSORS, DENOISER.clone(uncertainty=None))


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize(("width", "millions"), [(64, 31.3), (192, 280.2), (448, 1523.2)])
def test_published_sizes(width, millions):
    """EDM2-XXS, S and XXL for ImageNet-512, in millions of parameters, without the log-variance."""
    levels = [MagnitudeLevel(width * i, 3, self_attention=i > 2) for i in (1, 2, 3, 4)]
    network = MagnitudeUNet(tuple(levels), out_channels=4)
    noise, label = MagnitudeNoiseLevel(4 * width, width), MagnitudeClassLabel(1000, 4 * width)
    model = Denoiser(network, Conditioner(noise, {"label": label}), DENOISER.process, Edm(0.5))
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract(model)))
    assert abs(count / 1e6 - millions) < 0.11


def test_a_smoother_filter_resamples():
    """EDM2's blocks take a `resample_filter`; the published models have the shortest one."""
    stored = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "edm2_filter.npz")
    tensors = {
        name.removeprefix("param/"): stored[name] for name in stored.files if name.startswith("param/")
    }
    levels = (MagnitudeLevel(16, 1), MagnitudeLevel(32, 1, self_attention=True))
    network = MagnitudeUNet(levels, out_channels=2, head_dim=16, resample_taps=(1.0, 3.0, 3.0, 1.0))
    denoiser = Denoiser(
        network, Conditioner(MagnitudeNoiseLevel(32, frequencies=16)), VarianceExploding(), Edm()
    )
    x, noise_label = (jnp.asarray(stored[f"in/{name}"]) for name in ("x", "noise_labels"))
    x = x.transpose(0, 2, 3, 1)
    shapes = jax.eval_shape(
        lambda: denoiser.init(jax.random.key(0), x, jnp.full(2, 0.5), {}, {}, train=False)
    )
    params = to_params(edm2.entries(network, 8), tensors, nn.meta.unbox(shapes)["params"])

    def output(denoiser, x, label):
        return denoiser.network(x, denoiser.conditioner(label, {}, {}), train=False)

    found = jax.jit(functools.partial(denoiser.apply, method=output))({"params": params}, x, noise_label)
    near(found, stored["out/y"].transpose(0, 2, 3, 1))
