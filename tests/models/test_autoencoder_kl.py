"""AutoencoderKL against diffusers, and against published figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.codecs.latent import parameter_shapes
from jaxdiff.errors import UserError
from jaxdiff.interop.autoencoders import entries
from jaxdiff.interop.mapping import to_params
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from tests.models.autoencoders import (
    NETWORKS,
    close,
    count,
    draw,
    numbers,
    peer,
    random_params,
    run,
    run_peer,
)

KL = [name for name, network in NETWORKS.items() if isinstance(network, AutoencoderKL)]


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", KL)
def test_the_network_is_diffusers(name):
    network, model = NETWORKS[name], peer(name)
    params = to_params(entries(network), numbers(model), parameter_shapes(network))
    x = draw(2, 16, 24, network.image_channels)
    moments = run(network, params, "moments", x)
    close(moments, run_peer(lambda x: model.encode(x).latent_dist.parameters, x))
    mean, log_variance = network.posterior(moments)
    close(mean, run_peer(lambda x: model.encode(x).latent_dist.mode(), x))
    close(log_variance, run_peer(lambda x: model.encode(x).latent_dist.logvar, x))
    z = draw(2, 4, 6, network.latent_channels, seed=1)
    close(run(network, params, "decode", z), run_peer(lambda z: model.decode(z).sample, z))


def test_the_published_network_has_the_published_number_of_parameters():
    """34,163,592 in the encoder, 49,490,179 in the decoder, and the two 1 x 1 convolutions."""
    shapes = parameter_shapes(AutoencoderKL())
    assert count(shapes["encoder"]) == 34_163_592
    assert count(shapes["decoder"]) == 49_490_179
    assert count(shapes) == 83_653_863
    flux = parameter_shapes(
        AutoencoderKL(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
    )
    assert count(flux) == 83_819_683
    assert AutoencoderKL().factor == 8


def test_the_posterior_is_float32_and_its_log_variance_is_clipped():
    network = AutoencoderKL(latent_channels=2, dtype="bfloat16")
    moments = jnp.array([5.0, -100.0, -100.0, 100.0], jnp.bfloat16)[None, None, None]
    mean, log_variance = network.posterior(moments)
    assert mean.dtype == log_variance.dtype == jnp.float32
    np.testing.assert_array_equal(mean[0, 0, 0], [5, -100])
    np.testing.assert_array_equal(log_variance[0, 0, 0], [-30, 20])


def test_it_computes_in_its_dtype_with_float32_parameters():
    network = NETWORKS["decoder_conv"]
    params, z = random_params(network), draw(1, 4, 4, 4)
    exact = run(network, params, "decode", z)
    half = run(network.clone(dtype="bfloat16"), params, "decode", z)
    assert half.dtype == jnp.bfloat16
    error = np.abs(np.asarray(half, np.float32) - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 0.1
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(parameter_shapes(network)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": ()}, r"widths=\(\): expected at least one number"),
        ({"widths": (32, 40)}, r"widths=\(32, 40\): expected multiples of groups=32"),
        ({"blocks": 0}, "blocks=0"),
        ({"latent_channels": 0}, "latent_channels=0"),
        ({"dtype": "int8"}, "dtype='int8'"),
    ],
)
def test_impossible_networks(change, message):
    with pytest.raises(UserError, match=f"{message}.*Fix: "):
        AutoencoderKL(**change)
