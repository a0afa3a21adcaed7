import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.grids import Karras, LogSnrUniform, Uniform

PROCESSES = [VariancePreserving(Cosine()), VarianceExploding(), RectifiedFlow()]


def test_uniform_ends_one_step_before_clean_data():
    np.testing.assert_allclose(Uniform()(RectifiedFlow(), 4), [1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(Uniform(0.8)(RectifiedFlow(), 2), [0.8, 0.4])


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_karras_levels_are_the_papers(process):
    alpha, sigma = map(np.asarray, process.signal(Karras(0.01, 50.0, 5.0)(process, 6)))
    i = np.arange(6) / 5
    np.testing.assert_allclose(sigma / alpha, (50**0.2 + i * (0.01**0.2 - 50**0.2)) ** 5, rtol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_uniform_log_snr(process):
    log_snr = process.log_snr(LogSnrUniform(-8.0, 6.0)(process, 8))
    np.testing.assert_allclose(log_snr, np.arange(-8.0, 7.0, 2.0), atol=1e-9)


@pytest.mark.parametrize("grid", [Uniform(), Karras(), LogSnrUniform()], ids=str)
def test_one_step_is_the_noisiest_level(grid):
    assert grid(RectifiedFlow(), 1).tolist() == grid(RectifiedFlow(), 3)[:1].tolist()
    assert np.all(np.diff(grid(RectifiedFlow(), 9)) < 0)
    assert jnp.all(grid(RectifiedFlow(), 9) > 0)


@pytest.mark.parametrize(
    "make",
    [lambda: Uniform(0.0), lambda: Karras(0.0), lambda: Karras(2.0, 1.0), lambda: LogSnrUniform(1.0, 0.0)],
)
def test_impossible_numbers_are_refused(make):
    with pytest.raises(UserError, match="Fix"):
        make()
