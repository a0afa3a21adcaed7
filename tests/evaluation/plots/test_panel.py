import dataclasses

import numpy as np
import pytest

from jaxdiff.evaluation.plots.drawing import TEST, TRAIN
from jaxdiff.evaluation.plots.panel import picture
from jaxdiff.evaluation.reports.class_conditional import ImageEvaluation


@dataclasses.dataclass(frozen=True)
class Means:
    """The mean of each row of pixels: few numbers for large images."""

    name: str = "means of rows"

    def __call__(self, images):
        return images.mean(axis=(2, 3))


def drawn(shape, losses, guidances=(1.0,)):
    """A picture of random samples of three classes, in the given shape of image."""
    generator = np.random.default_rng(0)
    train, test = (
        (generator.integers(0, 256, (n, *shape)).astype(np.uint8), np.arange(n) % 3) for n in (30, 20)
    )
    evaluation = ImageEvaluation(features=Means(), n=12)
    labels, samples = train[1][:12], dict.fromkeys(guidances, train[0][:12])
    report = evaluation.score(samples, labels, train, test, losses)
    return picture(report, evaluation.gallery(samples, labels, train)), samples[1.0]


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (64, 64, 3), (16, 32, 3)])
def test_any_image_can_be_shown(shape):
    image, _ = drawn(shape, None, (1.0, 2.0, 4.0))
    assert image.dtype == np.uint8
    assert image.shape[2] == 3


def test_small_samples_are_shown_pixel_by_pixel():
    image, samples = drawn((8, 8, 3), None)
    enlarged = samples[0].repeat(5, axis=0).repeat(5, axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(image[:, :, 0], (40, 40))
    assert (windows[:200, :200] == enlarged[:, :, 0]).all(axis=(2, 3)).any()


@pytest.mark.parametrize("scale", [1.0, 1e-4, 0.0], ids=["wide", "small", "constant zero"])
def test_both_curves_are_drawn(scale):
    log_snr = np.linspace(-10, 10, 9)
    train = scale / (1 + np.exp(log_snr))
    losses = {"log_snr": log_snr, "train": train, "test": 1.5 * train + 0.1 * scale}
    image, _ = drawn((8, 8, 1), losses)
    for colour in (TEST,) if scale == 0 else (TRAIN, TEST):  # equal curves hide each other
        columns = np.flatnonzero((image == colour).all(axis=-1).any(axis=0))
        assert np.ptp(columns) > 300
