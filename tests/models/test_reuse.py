"""Features of a decoder that later calls reuse: with those of the same call, nothing changes."""

import functools

import jax
import numpy as np
import pytest

from jaxdiff.cost.operations import count
from jaxdiff.errors import UserError
from jaxdiff.models import reuse
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.control_net import Controlled, ControlNet
from jaxdiff.models.magnitude_unet import MagnitudeLevel, MagnitudeUNet
from jaxdiff.models.unet import Level, UNet
from tests.models.test_unet import BOTH, embeddings, images, randomised

LEVELS = (Level(8, blocks=1, attention=BOTH), Level(16, blocks=2))
NETWORK = UNet(LEVELS, out_channels=2, middle=ResidualMiddle(BOTH))
NETWORKS = {
    "ADM": NETWORK,
    "without resampled skips": NETWORK.clone(resampled_skips=False),
    "DDPM": NETWORK.clone(resampling="conv", decoder_attention="last"),
    "a level without blocks": NETWORK.clone(levels=(*LEVELS, Level(16, blocks=0)), resampled_skips=False),
    "NCSN++": NETWORK.clone(input_path="residual", output_path="skip", resampling="plain"),
}


def keeping(network, params, x, given):
    return network.apply(params, x, given, train=False, mutable=[reuse.COLLECTION])


def reusing(network, params, features, x, given):
    return network.apply({**params, reuse.COLLECTION: features}, x, given, train=False)


def all_ways(network, params, x, given):
    """The output of the whole network, and with the features that enter its last blocks, for each number of them."""
    whole, made = keeping(network, params, x, given)
    collection = made[reuse.COLLECTION]
    return whole, [
        reusing(network, params, reuse.kept(collection, blocks), x, given)
        for blocks in range(1, network.decoder_blocks)
    ]


@pytest.mark.spread(2)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_with_the_features_of_the_same_call_the_last_blocks_give_the_same_output(network):
    params, x, given = randomised(network), images(), embeddings()
    plain = jax.jit(functools.partial(network.apply, train=False))(params, x, given)
    whole, shorter = jax.jit(functools.partial(all_ways, network))(params, x, given)
    np.testing.assert_allclose(whole, plain, rtol=0, atol=1e-6)
    assert len(shorter) == network.decoder_blocks - 1 > 0
    for found in shorter:
        np.testing.assert_allclose(found, plain, rtol=0, atol=1e-6)


def test_a_control_acts_on_the_blocks_that_are_run():
    control = ControlNet(NETWORK, hint_widths=(4, 4))
    controlled = Controlled(NETWORK, {"edges": control})
    assert controlled.decoder_blocks == NETWORK.decoder_blocks


def test_fewer_blocks_need_fewer_multiply_adds_and_nothing_of_the_deeper_ones():
    params, x, given = randomised(NETWORK), images(), embeddings()
    made = jax.eval_shape(functools.partial(keeping, NETWORK), params, x, given)[1][reuse.COLLECTION]

    def work(blocks):
        program = functools.partial(reusing, NETWORK)
        return count(jax.make_jaxpr(program)(params, reuse.kept(made, blocks), x, given)).total

    whole = count(jax.make_jaxpr(functools.partial(keeping, NETWORK))(params, x, given)).total
    works = [work(blocks) for blocks in range(1, NETWORK.decoder_blocks)]
    assert works == sorted(set(works))
    assert works[-1] < whole
    # One block of the decoder, its attention, and the stem: 3 x 3 kernels on 64 pixels of three images.
    assert works[0] < whole / 3


def test_features_of_another_call_stand_for_all_that_lies_deeper():
    """The output is a function of the given features: those of other data carry these data's influence."""
    params, given = randomised(NETWORK), embeddings()
    here, there = images(seed=0), images(seed=5)
    run = jax.jit(functools.partial(reusing, NETWORK))
    features = [
        reuse.kept(jax.jit(functools.partial(keeping, NETWORK))(params, x, given)[1][reuse.COLLECTION], 1)
        for x in (here, there)
    ]
    own, other = (run(params, each, here, given) for each in features)
    assert float(abs(own - other).max()) > 1e-2


def test_a_plain_call_and_initialisation_keep_nothing():
    assert set(randomised(NETWORK)) == {"params"}


def test_networks_without_such_features_and_too_many_blocks_are_refused():
    magnitude = MagnitudeUNet((MagnitudeLevel(8, blocks=1),), out_channels=2, middle_attention=False)
    with pytest.raises(
        UserError, match=r"sampling\.reuse='MagnitudeUNet': expected a network with a decoder"
    ):
        reuse.check(magnitude, 1)
    blocks = NETWORK.decoder_blocks
    reuse.check(NETWORK, blocks - 1)
    with pytest.raises(
        UserError, match=rf"sampling\.reuse\.blocks={blocks}: expected fewer than the {blocks}"
    ):
        reuse.check(NETWORK, blocks)
