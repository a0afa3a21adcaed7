import numpy as np
import pytest

from jaxdiff.evaluation.plots.drawing import TEST, TRAIN
from jaxdiff.evaluation.plots.panel import Gallery, figure

TABLE = (("", "real", "guidance 1"), ("recall (k=5)", "0.9", "0.8"))


def drawn(shape, losses, panels=1):
    """A figure of random samples of three classes, in the given shape of image."""
    images = np.random.default_rng(0).integers(0, 256, (12, *shape)).astype(np.uint8)
    titles = [f"Samples at guidance {i}" for i in range(panels)]
    gallery = Gallery(
        np.arange(12) % 3, dict.fromkeys(titles, images), dict.fromkeys(titles[:1], images[::-1])
    )
    return figure(TABLE, ["a caption of a few words"], losses, gallery), images


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (64, 64, 3), (16, 32, 3)])
def test_any_image_can_be_shown(shape):
    image, _ = drawn(shape, None, 3)
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
    curves = {"log_snr": log_snr, "train": train, "test": 1.5 * train + 0.1 * scale}
    losses = {name: values.tolist() for name, values in curves.items()}
    image, _ = drawn((8, 8, 1), losses)
    for colour in (TEST,) if scale == 0 else (TRAIN, TEST):  # equal curves hide each other
        columns = np.flatnonzero((image == colour).all(axis=-1).any(axis=0))
        assert np.ptp(columns) > 300
