"""Slots of embeddings that only some networks read: residuals, controls and image prompts."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.embeddings import Control, Embeddings, ImagePrompt, Residuals, merge
from jaxdiff.errors import UserError
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.magnitude_unet import MagnitudeLevel, MagnitudeUNet
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.unet import Level, UNet
from tests.controls import X, a_denoiser, abstract, reads

IMAGE = jnp.zeros((2, 64, 96, 3))


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("residuals", "message"),
    [
        (Residuals({"down_2": jnp.zeros((2, 2, 3, 32))}), "residuals=.down_2.: expected one of stem"),
        (Residuals({}, {"middle": jnp.zeros((2, 2, 3, 32))}), "residuals='middle': expected one of stem"),
        (Residuals({"middle": jnp.zeros((2, 2, 3, 16))}), r"residuals.middle=\(2, 3, 16\): expected the shape"),
        (Residuals({}, {"stem": jnp.zeros((2, 4, 6, 16))}), r"residuals.stem=\(4, 6, 16\): expected the shape"),
    ],
)  # fmt: skip
def test_residuals_that_do_not_fit_are_refused(residuals, message):
    network = a_denoiser("sd1").network
    abstract(network, reads())
    with pytest.raises(UserError, match=f"{message}.*Fix: use a control"):
        abstract(network, reads(residuals=residuals))


def test_a_network_refuses_slots_that_it_does_not_read():
    control = {"edges": Control(IMAGE, jnp.ones(2))}
    with pytest.raises(UserError, match=r"controls=.*expected an empty slot.*Fix: .*control_net:Controlled"):
        abstract(a_denoiser("sd1").network, reads(controls=control))
    prompts = {"image": ImagePrompt(jnp.zeros((2, 4, 12)), jnp.ones(2))}
    pixels = UNet((Level(8, 1),), 4, middle=ResidualMiddle(PixelAttention(cross_attention=True, head_dim=8)))
    with pytest.raises(UserError, match=r"image_prompts=.*Fix: .*SpatialTransformer"):
        abstract(pixels, reads(image_prompts=prompts))
    network = MagnitudeUNet((MagnitudeLevel(64, 1),), 4)
    for slot in ({"image_prompts": prompts}, {"residuals": Residuals({"stem": X})}):
        with pytest.raises(UserError, match=f"{next(iter(slot))}=.*expected an empty slot"):
            abstract(network, reads(tokens=None, **slot))


def test_residuals_of_several_conditions_are_added_and_names_must_differ():
    one, two = (Residuals({"stem": value * X}, {"down_0": X}) for value in (1, 2))
    both = merge([Embeddings(residuals=one), Embeddings(), Embeddings(residuals=two)]).residuals
    np.testing.assert_allclose(both.features["stem"], 3 * X, rtol=1e-6)
    np.testing.assert_allclose(both.skips["down_0"], 2 * X)
    with pytest.raises(UserError, match=r"residuals.stem=.*expected equal sizes"):
        merge([Embeddings(residuals=one), Embeddings(residuals=Residuals({"stem": X[:, :4]}))])
    control = Control(IMAGE, jnp.ones(2))
    merged = merge([Embeddings(controls={"a": control}), Embeddings(controls={"b": control})])
    assert {*merged.controls} == {"a", "b"}
    with pytest.raises(UserError, match="controls: expected different names, got 'a' from 2 conditions"):
        merge([Embeddings(controls={"a": control}), Embeddings(controls={"a": control})])
