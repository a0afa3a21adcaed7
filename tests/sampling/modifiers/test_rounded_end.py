"""The last step of published samplers in single precision: the rounding of a published table, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.table import CosineBetas, Table
from jaxdiff.sampling.modifiers.rounded_end import RoundedEnd
from jaxdiff.sampling.protocols import stateless

KEYS = jax.random.split(jax.random.key(0), 1)
BETA = CosineBetas().array()[0]


def x_0_at(step, process, dtype):
    ones = jnp.ones((1, 2), dtype)
    denoise = RoundedEnd()(stateless(lambda x, t: Prediction(ones, 0 * ones)), process, {}, KEYS)
    return denoise.call(ones, jnp.asarray(step / process.schedule.steps, dtype), ())[0].x_0


def test_the_first_step_has_the_rounding_of_single_precision(float32):
    process = VariancePreserving(Table(CosineBetas(), rounded=True))
    kept = np.float32(1) - np.float32(BETA)
    expected = BETA / float(np.float32(1) - kept)
    assert abs(expected - 1) > 1e-5
    np.testing.assert_allclose(x_0_at(1, process, jnp.float32), expected, rtol=1e-6)
    np.testing.assert_array_equal(x_0_at(2, process, jnp.float32), 1)


def test_in_double_precision_it_does_nothing():
    process = VariancePreserving(Table(CosineBetas(), rounded=True))
    np.testing.assert_allclose(x_0_at(1, process, jnp.float64), 1, rtol=1e-9)


def test_other_processes_are_refused():
    with pytest.raises(UserError, match="expected a process on a Table"):
        RoundedEnd()(stateless(lambda x, t: None), VarianceExploding(), {}, KEYS)
