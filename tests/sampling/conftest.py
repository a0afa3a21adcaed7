"""Formulas are checked in float64, where rounding hides nothing."""

import jax
import pytest


@pytest.fixture(autouse=True)
def x64(request):
    """Double precision, unless a test is marked to run in float32 by a parameter or fixture of that name."""
    with jax.enable_x64("float32" not in request.fixturenames):
        yield


@pytest.fixture
def float32():
    """Ask for it to test in single precision."""
