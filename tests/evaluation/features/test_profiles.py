"""Preprocessing profiles against the definitions of the libraries that they are named after."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.features.profiles import PROFILES, coloured, profile_of

SIZE = 61


def images(height=40, width=56):
    """Black and white pixels, beyond which a bicubic kernel overshoots, and levels between."""
    rng = np.random.default_rng(0)
    hard = rng.choice([0, 255], (height, width, 3))
    return np.stack([hard, rng.integers(0, 256, (height, width, 3))]).astype(np.uint8)


def found(name, given):
    return np.asarray(PROFILES[name].scaled(jnp.asarray(given), SIZE))


def test_adm_tf_is_linear_between_corners_and_scaled_by_128():
    given = images()
    values = given.astype(np.float64)
    rows, columns = np.arange(SIZE) * 40 / SIZE, np.arange(SIZE) * 56 / SIZE
    for axis, positions in ((1, rows), (2, columns)):
        low = np.floor(positions).astype(int)
        high = np.minimum(low + 1, values.shape[axis] - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = SIZE
        fraction = (positions - low).reshape(shape)
        values = (1 - fraction) * values.take(low, axis) + fraction * values.take(high, axis)
    np.testing.assert_allclose(found("adm-tf", given), (values - 128) / 128, atol=1e-4)


def test_pytorch_fid_is_its_code_in_pytorch():
    torch = pytest.importorskip("torch")
    given = images()
    x = torch.tensor(given.transpose(0, 3, 1, 2)).float() / 255  # as ToTensor
    x = 2 * torch.nn.functional.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False) - 1
    np.testing.assert_allclose(found("pytorch-fid", given), x.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_clean_fid_is_pillow_s_bicubic_of_each_channel_in_floats():
    from PIL import Image

    given = images()
    for size in (SIZE, 30):
        planes = [
            np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC))
            for image in given
            for plane in np.moveaxis(image.astype(np.float32), -1, 0)
        ]
        expected = np.stack(planes).reshape(2, 3, size, size).transpose(0, 2, 3, 1)
        assert expected.min() < -1
        assert expected.max() > 256
        resized = PROFILES["clean-fid"].resized(jnp.asarray(given), size)
        np.testing.assert_allclose(resized, expected.clip(0, 255), rtol=0, atol=1e-4)
        open_ended = PROFILES["edm2"].resized(jnp.asarray(given), size)
        np.testing.assert_allclose(open_ended, expected, rtol=0, atol=1e-4)
        assert np.abs(np.asarray(resized) - np.round(resized)).max() > 0.4  # not rounded to levels again


@pytest.mark.parametrize("name", PROFILES)
def test_images_of_the_network_s_size_stay_as_they_are(name):
    given = images(SIZE, SIZE)
    np.testing.assert_array_equal(PROFILES[name].resized(jnp.asarray(given), SIZE), given)


def test_profiles_differ():
    given = images()
    results = [found(name, given) for name in PROFILES]
    for i, one in enumerate(results):
        for other in results[:i]:
            assert np.abs(one - other).max() > 0.01


def test_grey_is_the_same_in_every_channel():
    grey = images()[..., :1]
    np.testing.assert_array_equal(coloured(jnp.asarray(grey)), np.repeat(grey, 3, axis=-1))
    colours = jnp.asarray(images())
    assert coloured(colours) is colours


def test_a_profile_of_another_network_is_refused():
    with pytest.raises(UserError, match=r"profile='edm2': expected one of adm-tf, clean-fid"):
        profile_of("edm2", "adm-tf", "clean-fid")
