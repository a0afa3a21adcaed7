"""Colour shift: a shift of every pixel is this shift, and halved contrast is one half."""

import numpy as np
import pytest

from jaxdiff.evaluation.metrics.colour_shift import ColourShift
from tests.evaluation.models import score


def test_a_shift_of_one_channel_and_a_halved_contrast():
    real = np.random.default_rng(0).integers(60, 180, (40, 4, 4, 3)).astype(np.uint8)
    shifted = real.copy()
    shifted[..., 1] += 25
    found = score(ColourShift(), shifted, test=real, size=7)["colour_shift"]
    np.testing.assert_allclose(found["by_channel"], [0, 25, 0], atol=1e-9)
    assert found["largest"] == pytest.approx(25)
    assert found["contrast"] == pytest.approx(1)
    flat = np.rint(120 + (real.astype(float) - 120) / 2).astype(np.uint8)
    assert score(ColourShift(), flat, test=real)["colour_shift"]["contrast"] == pytest.approx(0.5, rel=0.01)
