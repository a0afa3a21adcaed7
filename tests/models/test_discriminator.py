"""The patch discriminator: what a score sees, and that images are scored alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models.discriminator import PatchDiscriminator

NETWORK = PatchDiscriminator(width=4)


@pytest.mark.slow
def test_a_score_sees_70_pixels_and_256_pixels_have_30_scores():
    shape = (1, 256, 256, 3)
    params = NETWORK.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert jax.eval_shape(NETWORK.apply, {"params": params}, jnp.zeros(shape)).shape == (1, 30, 30, 1)
    # Without norms, which see the whole image, convolutions alone decide what a score depends on.
    seen = 1
    for stride in (1, 1, 2, 2, 2):
        seen = (seen - 1) * stride + 4
    assert seen == 70
    strides = [2, 2, 2, 1]
    names = [name for name in params if name.startswith("conv")]
    assert len(names) == len(strides)
    assert all(params[name]["kernel"].unbox().shape[:2] == (4, 4) for name in names)


def test_the_score_of_an_image_does_not_depend_on_others():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 32, 32, 3)), jnp.float32)
    params = NETWORK.init(jax.random.key(0), x)
    np.testing.assert_allclose(
        NETWORK.apply(params, x)[1:2], NETWORK.apply(params, x[1:2]), rtol=1e-5, atol=1e-6
    )
