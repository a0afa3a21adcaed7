"""Each degradation equals its closed form, or the result of Pillow, SciPy or JAX."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.data.degradations import (
    Blur,
    Bsr,
    Chain,
    Degradation,
    Downsample,
    Edges,
    GaussianNoise,
    Grayscale,
    Jpeg,
)
from jaxdiff.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


def noise(height=32, width=24, channels=3, seed=0):
    return rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def smooth(height=48, width=40):
    y, x = np.mgrid[:height, :width]
    planes = 128 + 90 * np.sin(y / 5), 128 + 90 * np.cos(x / 7), 120 + 2 * (x - y)
    return np.stack(planes, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("factor", [2, 4])
def test_area_is_the_mean_of_squares(factor, channels):
    image = noise(channels=channels)
    small = Downsample(factor)(image, rng())
    means = image.reshape(32 // factor, factor, 24 // factor, factor, channels).mean(axis=(1, 3))
    assert small.dtype == np.uint8
    assert np.abs(small - means).max() <= 1  # rounded once for each axis


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "lanczos"])
def test_low_passed_methods_are_jaxs(method):
    image = noise()
    small = Downsample(4, method)(image, rng())
    expected = jax.image.resize(
        jnp.asarray(image, jnp.float32), (8, 6, 3), "lanczos3" if method == "lanczos" else method
    )
    assert np.abs(small - np.clip(expected, 0, 255)).max() < 1.6


def test_nearest_picks_pixels():
    image = noise()
    small = Downsample(2, "nearest")(image, rng())
    assert np.array_equal(small, image[1::2, 1::2])


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match=r"factor=5.*32 x 24"):
        Downsample(5)(noise(), rng())


@pytest.mark.parametrize("sigma", [0.7, 1.5])
def test_blur_of_a_point_is_the_gaussian(sigma):
    image = np.zeros((21, 21, 1), np.uint8)
    image[10, 10] = 255
    blurred = Blur((sigma, sigma))(image, rng())[..., 0].astype(float)
    y, x = np.mgrid[-10:11, -10:11]
    kernel = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    assert np.abs(blurred - 255 * kernel / kernel.sum()).max() <= 0.51


def test_blur_draws_sigma_uniformly_and_acts_with_its_probability():
    image = np.zeros((21, 21, 1), np.uint8)
    image[10, 10] = 255
    peaks = np.array([Blur((0.5, 1.5), 0.7)(image, rng(i))[10, 10, 0] for i in range(600)], float)
    blurred = peaks[peaks < 255]
    assert abs(len(blurred) / 600 - 0.7) < 0.08
    # The peak of a wide Gaussian is 1 / (2 pi sigma^2).
    sigmas = np.sqrt(255 / (2 * np.pi * blurred))
    assert abs(np.quantile(sigmas, 0.5) - 1.0) < 0.08
    assert abs(np.quantile(sigmas, 0.9) - 1.4) < 0.08


def test_blur_mixes_no_channels_and_mirrors_the_edges():
    image = noise()
    blurred = Blur((1.5, 1.5))(image, rng())
    for i in range(3):
        assert np.array_equal(blurred[..., i : i + 1], Blur((1.5, 1.5))(image[..., i : i + 1], rng()))
    mirrored = np.concatenate([image[:, ::-1], image, image[:, ::-1]], axis=1)
    assert np.array_equal(Blur((1.5, 1.5))(mirrored, rng())[:, 24:48], blurred)


def test_no_blur_is_the_image():
    image = noise()
    assert np.array_equal(Blur((0.0, 0.0))(image, rng()), image)


def test_noise_is_gaussian_of_its_strength_and_independent_in_channels():
    flat = np.full((64, 64, 3), 128, np.uint8)
    residual = GaussianNoise((20.0, 20.0))(flat, rng()).astype(float) - 128
    assert (
        stats.kstest((residual + rng(1).uniform(-0.5, 0.5, residual.shape)).ravel() / 20, "norm").pvalue
        > 0.01
    )
    assert np.abs(np.corrcoef(residual.reshape(-1, 3).T) - np.eye(3)).max() < 0.06
    strengths = [np.std(GaussianNoise((5.0, 25.0))(flat, rng(i)).astype(float)) for i in range(100)]
    assert stats.kstest(strengths, "uniform", (5, 20)).pvalue > 0.01


def test_noise_clips_and_does_not_wrap():
    assert GaussianNoise((30.0, 30.0))(np.full((32, 32, 1), 255, np.uint8), rng()).min() > 100


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [10, 75])
def test_jpeg_is_pillows(quality, channels):
    image = smooth()[..., :channels]
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if channels == 1 else image).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file)).reshape(image.shape)
    assert np.array_equal(Jpeg((quality, quality))(image, rng()), expected)


def test_jpeg_draws_both_ends_of_its_range_and_nothing_else():
    image = smooth()
    fixed = {Jpeg((quality, quality))(image, rng()).tobytes() for quality in (30, 31, 32)}
    assert {Jpeg((30, 32))(image, rng(i)).tobytes() for i in range(40)} == fixed


def test_a_chain_is_its_steps_with_one_generator():
    image, generator = noise(), rng(5)
    steps = Blur((1.0, 2.0)), Downsample(2), GaussianNoise()
    expected = image
    for step in steps:
        expected = step(expected, generator)
    assert np.array_equal(Chain(steps)(image, rng(5)), expected)


def test_bsr_draws_orders_and_ends_in_jpeg():
    assert Bsr(4)(noise(), rng()).shape == (8, 6, 3)
    assert Bsr()(noise(), rng()).shape == (32, 24, 3)
    # Blur after noise removes it: the remaining noise shows which came first.
    flat = np.full((96, 96, 1), 128, np.uint8)
    bsr = Bsr(sigma=(2.0, 2.0), std=(40.0, 40.0), quality=(95, 95))
    left = np.array([np.std(bsr(flat, rng(i)).astype(float)) for i in range(60)])
    assert abs((left > 30).mean() - 1 / 3) < 0.2, "noise comes last in a third of all orders"
    # One blur leaves 40 / (2 sqrt(pi) sigma) = 5.6 of it, two blurs 4.0.
    assert abs((left < 4.8).mean() - 1 / 3) < 0.15
    assert abs((left < 10).mean() - 2 / 3) < 0.2
    # Without blur and noise, it is JPEG.
    only_jpeg = Bsr(sigma=(0.0, 0.0), std=(0.0, 0.0), quality=(20, 20))
    assert np.array_equal(only_jpeg(smooth(), rng()), Jpeg((20, 20))(smooth(), rng()))


def test_bsr_shrinks_by_one_of_three_methods_once():
    only_small = Bsr(2, sigma=(0.0, 0.0), std=(0.0, 0.0), quality=(95, 95))
    image = noise()
    methods = "area", "bilinear", "bicubic"
    expected = [Jpeg((95, 95))(Downsample(2, method)(image, rng()), rng()) for method in methods]
    drawn = np.array(
        [[np.array_equal(only_small(image, rng(i)), one) for one in expected] for i in range(60)]
    )
    assert (drawn.sum(axis=1) == 1).all()
    assert (np.abs(drawn.mean(axis=0) - 1 / 3) < 0.2).all()


@pytest.mark.parametrize(("method", "name"), [
    ("nearest", "NEAREST"), ("area", "BOX"), ("bilinear", "BILINEAR"), ("bicubic", "BICUBIC"), ("lanczos", "LANCZOS"),
])  # fmt: skip
def test_every_method_is_pillows(method, name):
    image = noise()
    expected = np.asarray(Image.fromarray(image).resize((6, 8), Image.Resampling[name]))
    assert np.array_equal(Downsample(4, method)(image, rng()), expected)


def test_blur_is_two_passes_of_scipys_gaussian():
    image = noise()
    expected = image.astype(np.float64)
    for axis in (0, 1):
        expected = ndimage.gaussian_filter1d(expected, 1.3, axis, mode="reflect", truncate=4.0)
    assert np.abs(Blur((1.3, 1.3))(image, rng()) - expected).max() < 0.51


def test_grey_is_pillows_too():
    image = noise()
    assert np.array_equal(Grayscale()(image, rng())[..., 0], np.asarray(Image.fromarray(image).convert("L")))


def test_grey_is_the_luma_of_bt_601():
    image = noise()
    luma = image @ np.array((0.299, 0.587, 0.114))
    grey = Grayscale()(image, rng())
    assert grey.shape == (32, 24, 1)
    assert np.abs(grey[..., 0] - luma).max() < 0.51
    assert np.array_equal(Grayscale(3)(image, rng()), grey.repeat(3, axis=-1))
    assert np.array_equal(Grayscale()(grey, rng()), grey)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("height", [20, 30])
def test_a_step_is_one_line_if_it_is_high_enough(height, turns):
    # A step of 0.1 of the range is 25.5 levels: 20 lie below, 30 above.
    step = np.full((24, 24, 1), 100, np.uint8)
    step[:, 12:] += np.uint8(height)
    drawn = Edges(low=0.1, high=0.1)(np.rot90(step, turns), rng())
    assert set(np.unique(drawn)) <= {0, 255}
    lines = np.rot90(drawn, -turns)[..., 0] == 255
    assert (lines.sum(axis=1) == (height == 30)).all(), "one pixel in each row"
    assert np.isin(np.nonzero(lines)[1], (11, 12)).all()


def test_a_disc_is_a_thin_closed_ring():
    y, x = np.mgrid[:64, :64] - 31.5
    disc = np.where(np.hypot(x, y) < 20, 255, 0).astype(np.uint8)[..., None].repeat(3, axis=-1)
    ring = Edges(channels=3)(disc, rng())
    assert ring.shape == (64, 64, 3)
    radii = np.hypot(x, y)[ring[..., 0] == 255]
    assert np.abs(radii - 20).max() < 1.5
    assert 2 * np.pi * 20 * 0.85 < len(radii) < 2 * np.pi * 20 * 1.3
    angles = np.sort(np.arctan2(y, x)[ring[..., 0] == 255])
    assert np.diff(angles).max() < 2.5 / 20, "no gap"


def test_weak_edges_are_drawn_where_they_continue_strong_ones():
    heights = np.linspace(0, 100, 40)  # of a step that grows from row to row
    image = np.full((40, 40, 1), 100, np.uint8)
    image[:, 20:, 0] += heights.astype(np.uint8)[:, None]
    assert not Edges(low=0.2, high=0.5)(image, rng()).any(), "the step is 0.39 high at its highest"
    drawn = Edges(low=0.2, high=0.35)(image, rng())[..., 0] == 255
    rows = drawn.any(axis=1)
    assert rows[heights / 255 > 0.21].all()
    assert not rows[heights / 255 < 0.19].any()
    assert np.isin(np.nonzero(drawn)[1], (19, 20)).all()


@pytest.mark.parametrize(
    "degradation", [Blur(), GaussianNoise(), Jpeg(), Bsr(2), Downsample(2), Grayscale(), Edges()], ids=str
)
def test_draws_follow_from_the_generator_and_the_input_is_unchanged(degradation):
    assert isinstance(degradation, Degradation)
    image = smooth()
    image.flags.writeable = False
    one, same = degradation(image, rng(3)), degradation(image, rng(3))
    assert one.dtype == np.uint8
    assert np.array_equal(one, same)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Downsample(1), "factor=1"),
        (lambda: Blur((2.0, 1.0)), "sigma"),
        (lambda: Blur((-1.0, 1.0)), "sigma"),
        (lambda: Blur(probability=1.1), "probability"),
        (lambda: GaussianNoise((-1.0, 3.0)), "std"),
        (lambda: Jpeg((0, 50)), "quality"),
        (lambda: Jpeg((50, 101)), "quality"),
        (lambda: Bsr(0), "factor"),
        (lambda: Bsr(sigma=(3.0, 1.0)), "sigma"),
        (lambda: Bsr(std=(3.0, 1.0)), "std"),
        (lambda: Bsr(quality=(0, 1)), "quality"),
        (lambda: Edges(sigma=0.0), "sigma"),
        (lambda: Edges(low=0.3, high=0.2), "low"),
        (lambda: Jpeg()(noise(channels=2), rng()), "1 or 3"),
        (lambda: Grayscale()(noise(channels=4), rng()), "grey or RGB"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_blocks_survive_json():
    written = spec(Chain, steps=(spec(Blur, sigma=(0.0, 2.0)), spec(Bsr, quality=(40, 50))))
    expected = Chain((Blur((0.0, 2.0)), Bsr(quality=(40, 50))))
    assert build(from_json(to_json(written)), packages=("jaxdiff",)) == expected
