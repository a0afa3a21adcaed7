"""TAESD against diffusers' AutoencoderTiny, and against published figures."""

import numpy as np
import pytest

from jaxdiff.codecs.latent import parameter_shapes
from jaxdiff.errors import UserError
from jaxdiff.interop.autoencoders import entries
from jaxdiff.interop.mapping import to_params
from jaxdiff.models.autoencoder_tiny import AutoencoderTiny
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


@pytest.mark.parametrize("name", ["tiny", "tiny16"])
def test_the_network_is_diffusers(name):
    network, model = NETWORKS[name], peer(name)
    params = to_params(entries(network), numbers(model), parameter_shapes(network))
    x = draw(2, 16, 24, network.image_channels)
    mean, log_variance = run(network, params, "encode", x)
    close(mean, run_peer(lambda x: model.encode(x).latents, x))
    assert np.all(log_variance == -np.inf)
    z = 3 * draw(2, 4, 6, network.latent_channels, seed=1)
    close(run(network, params, "decode", z), run_peer(lambda z: model.decode(z).sample, z))


def test_the_published_network_has_the_published_number_of_parameters():
    shapes = parameter_shapes(AutoencoderTiny())
    assert count(shapes["encoder"]) == 1_222_532
    assert count(shapes["decoder"]) == 1_222_531
    assert AutoencoderTiny().factor == 8


def test_extreme_latents_are_bounded_before_decoding():
    network = NETWORKS["tiny"]
    params, z = random_params(network), np.full((1, 2, 2, 4), 100, np.float32)
    np.testing.assert_array_equal(run(network, params, "decode", z), run(network, params, "decode", 10 * z))


def test_impossible_networks():
    with pytest.raises(UserError, match=r"decoder_blocks=\(1,\): expected as many resolutions"):
        AutoencoderTiny(decoder_blocks=(1,))
    with pytest.raises(UserError, match="width=0"):
        AutoencoderTiny(width=0)
