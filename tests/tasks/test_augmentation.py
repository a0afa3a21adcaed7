"""Non-leaking augmentation: transformations of images, and their labels."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.tasks.augmentation import Augmentation, GeometricAugmentation, Geometry
from jaxdiff.tasks.warping import SYM6, warp

STORED = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "edm_augment.npz")
EYE, NO = jnp.eye(2), jnp.zeros(2)
RANDOM = np.random.default_rng(0)
APPLY = jax.jit(GeometricAugmentation().apply)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def smooth(y, x):
    """A smooth image, reflected at the edges of a square from -10 to 10."""
    y, x = (np.pi * (value + 10) / 20 for value in (y, x))
    return np.cos(y) + 0.5 * np.cos(2 * x) + 0.3 * np.cos(y) * np.cos(x) + 0.2 * np.cos(3 * x)


def smooth_image(size=21):
    """`smooth` at the pixels of a square image."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return jnp.asarray(smooth(y, x))[None, :, :, None]


def still(count=1, **changes):
    """The identity, with the given changes."""
    no, zero = jnp.zeros(count, bool), jnp.zeros(count)
    geometry = Geometry(no, no, zero, zero, zero, zero, jnp.zeros((count, 2)))
    return geometry._replace(**{name: jnp.asarray(value) for name, value in changes.items()})


def through(images, matrix, shift):
    maps = [jnp.broadcast_to(value, (len(images), *value.shape)) for value in (matrix, shift)]
    return jax.jit(warp)(images, *maps)


def test_filter_is_orthogonal_and_has_six_vanishing_moments():
    """These properties define the filter, up to the choice of roots (Daubechies 1992, chapter 8)."""
    taps, k = np.asarray(SYM6), np.arange(12)
    for lag in range(6):
        assert abs(np.dot(taps[2 * lag :], taps[: 12 - 2 * lag]) - (lag == 0)) < 1e-10
    for moment in range(6):
        assert abs(np.sum((-1.0) ** k * (k / 12) ** moment * taps)) < 1e-10
    assert abs(taps.sum() - math.sqrt(2)) < 1e-10


@pytest.mark.spread(3)
@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (1, 2), (2, 1)])
def test_the_identity_map_returns_the_image(shape):
    images = jnp.asarray(RANDOM.normal(size=(2, *shape, 3)))
    np.testing.assert_allclose(through(images, EYE, NO), images, atol=1e-9)


@pytest.mark.parametrize("shift", [(3, -2), (-25, 40)])
def test_an_integer_shift_shows_the_reflected_image(shift):
    images = RANDOM.normal(size=(1, 6, 9, 2))
    endless = np.pad(images, ((0, 0), (60, 60), (60, 60), (0, 0)), mode="reflect")
    x, y = shift
    expected = endless[:, 60 + y : 66 + y, 60 + x : 69 + x]
    found = through(jnp.asarray(images), EYE, jnp.asarray(shift, float))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_smooth_image_moves_as_the_map_prescribes():
    matrix, shift = jnp.array([[0.9, 0.35], [-0.3, 1.1]]), jnp.array([1.3, -2.6])
    y, x = np.mgrid[-10:11, -10:11]
    expected = smooth(-0.3 * x + 1.1 * y - 2.6, 0.9 * x + 0.35 * y + 1.3)
    assert np.abs(expected - smooth_image()[0, :, :, 0]).max() > 0.9
    np.testing.assert_allclose(through(smooth_image(), matrix, shift)[0, :, :, 0], expected, atol=0.03)


def test_labels_maps_and_images_match_edm():
    """Eight images of EDM's code, each with most kinds of transformations."""
    geometry = Geometry(*(jnp.asarray(STORED[name]) for name in Geometry._fields))
    np.testing.assert_allclose(geometry.labels(), STORED["labels"], atol=1e-6)
    augmentation = GeometricAugmentation()
    images = jnp.asarray(STORED["images"])
    matrix, shift = augmentation.inverse(geometry, *images.shape[1:3])
    np.testing.assert_allclose(matrix, STORED["inverse"][:, :2, :2], atol=1e-6)
    np.testing.assert_allclose(shift, STORED["inverse"][:, :2, 2], atol=1e-5)
    np.testing.assert_allclose(APPLY(images, geometry), STORED["warped"], atol=1e-5)


def test_an_image_with_zero_labels_is_unchanged_exactly(float32):
    images = jnp.asarray(RANDOM.normal(size=(400, 6, 6, 1)), jnp.float32)
    found, labels = jax.jit(GeometricAugmentation())(images, keys(400))
    untouched = np.all(np.asarray(labels) == 0, axis=1)
    assert 80 < untouched.sum() < 160  # 0.88^4 of them are not moved; of these 0.94 in 2 are not flipped
    np.testing.assert_array_equal(found[untouched], images[untouched])
    assert np.all(np.any(np.asarray(found != images), axis=(1, 2, 3))[~untouched])


@pytest.mark.parametrize(("x_flip", "y_flip"), [(True, False), (False, True), (True, True)])
def test_flips_are_exact(x_flip, y_flip):
    images = RANDOM.normal(size=(1, 4, 6, 2))
    geometry = still(x_flip=[x_flip], y_flip=[y_flip])
    expected = images[:, :: -1 if y_flip else 1, :: -1 if x_flip else 1]
    np.testing.assert_array_equal(APPLY(jnp.asarray(images), geometry), expected)
    np.testing.assert_array_equal(geometry.labels(), [[x_flip, y_flip, *[0] * 7]])


def test_a_quarter_turn_is_counter_clockwise():
    geometry = still(angle=[math.pi / 2])
    found = APPLY(smooth_image(), geometry)
    np.testing.assert_allclose(found, jnp.rot90(smooth_image(), axes=(1, 2)), atol=0.03)
    np.testing.assert_allclose(geometry.labels(), [[0, 0, 0, -1, 1, 0, 0, 0, 0]], atol=1e-12)


def test_enlarged_stretched_and_moved():
    """Enlarged by 2^0.2; stretched by 2^0.2 in x and its inverse in y; moved by 1/8 to the right and up."""
    y, x = np.mgrid[-10:11, -10:11]
    double = 2**0.2
    cases = {
        "scale": ([1.0], smooth(y / double, x / double)),
        "stretch": ([1.0], smooth(y * double, x / double)),
        "translation": ([[1.0, -1.0]], smooth(y + 21 / 8, x - 21 / 8)),
    }
    for name, (value, expected) in cases.items():
        found = APPLY(smooth_image(), still(**{name: value}))
        np.testing.assert_allclose(found[0, :, :, 0], expected, atol=0.02, err_msg=name)
    turned = APPLY(smooth_image(), still(stretch=[1.0], axis=[math.pi / 2]))
    np.testing.assert_allclose(turned[0, :, :, 0], smooth(y / double, x * double), atol=0.02)


def test_the_inverse_restores_a_smooth_image():
    geometry = still(scale=[0.4], angle=[0.7], stretch=[-0.5], axis=[1.1], translation=[[0.2, -0.3]])
    matrix, shift = GeometricAugmentation().inverse(geometry, 21, 21)
    back = jnp.linalg.inv(matrix)
    moved = jax.jit(warp)(smooth_image(), matrix, shift)
    found = jax.jit(warp)(moved, back, -jnp.einsum("bij,bj->bi", back, shift))
    inside = np.s_[0, 7:14, 7:14]
    assert jnp.abs(moved - smooth_image())[inside].max() > 0.3
    np.testing.assert_allclose(found[inside], smooth_image()[inside], atol=0.03)


def test_labels_follow_their_distribution():
    n, p = 40_000, 0.3
    labels = np.asarray(jax.jit(GeometricAugmentation(p=p, rotation=0.5).draw)(keys(n)).labels())
    x_flip, y_flip, scale, cosine, sine, along, across, right, down = labels.T

    def near(found, expected, std):
        assert abs(found - expected) < 4.5 * std / math.sqrt(n), (found, expected)

    near(x_flip.mean(), 0.5, 0.5)
    near(y_flip.mean(), p / 2, 0.5)
    stretch = np.hypot(along, across)
    for done in (scale != 0, sine != 0, stretch != 0, right != 0):
        near(done.mean(), p, 0.5)
    np.testing.assert_array_equal(right != 0, down != 0)
    for numbers in (scale, right, down, np.sqrt(2) * along * np.sign(across + 1e-9)):
        near(numbers.mean(), 0, 1)
    for numbers in (scale, right, down, stretch):
        near(np.mean(numbers**2), p, 2)
    angle = np.arctan2(sine, cosine + 1)[sine != 0]
    assert np.abs(angle).max() < math.pi / 2
    near(np.mean(np.abs(angle)), math.pi / 4, 1.5)
    near(np.mean(angle), 0, 2)
    near(np.mean((stretch != 0) & (across == 0)), p / 2, 0.5)  # along the x axis of the image
    done = np.stack([y_flip != 0, scale != 0, sine != 0, stretch != 0, right != 0])
    np.testing.assert_allclose(np.corrcoef(done), np.eye(5), atol=0.025)


def test_an_image_is_transformed_by_its_own_key():
    images, augmentation = jnp.asarray(RANDOM.normal(size=(6, 5, 5, 1))), GeometricAugmentation(p=0.9)
    change = jax.jit(augmentation)
    found, labels = change(images, keys(6))
    some, their = change(images[2:4], keys(6)[2:4])
    np.testing.assert_allclose(some, found[2:4], atol=1e-12)
    np.testing.assert_array_equal(their, labels[2:4])
    assert isinstance(augmentation, Augmentation)
    assert labels.shape == (6, augmentation.size)


@pytest.mark.slow
def test_disabled_transformations_have_zero_labels():
    off = {
        "x_flip": False,
        "y_flip": False,
        "scale": 0.0,
        "rotation": 0.0,
        "anisotropy": 0.0,
        "translation": 0.0,
    }
    columns = {
        "x_flip": [0],
        "y_flip": [1],
        "scale": [2],
        "rotation": [3, 4],
        "anisotropy": [5, 6],
        "translation": [7, 8],
    }
    for name, on in columns.items():
        only = {field: value for field, value in off.items() if field != name}
        labels = np.asarray(GeometricAugmentation(p=1.0, **only).draw(keys(50)).labels())
        assert list(np.flatnonzero(np.any(labels != 0, axis=0))) == on
    np.testing.assert_array_equal(GeometricAugmentation(p=0.0, x_flip=False).draw(keys(50)).labels(), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"p": 1.1},
        {"p": -0.1},
        {"rotation": 1.5},
        {"scale": -1.0},
        {"anisotropy": -1.0},
        {"translation": -1.0},
    ],
)
def test_impossible_augmentations(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"{name}={value}"):
        GeometricAugmentation(**wrong)
